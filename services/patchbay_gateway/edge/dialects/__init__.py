"""
The four dialects that clients speak, one module each, behind the port in `port`.

A dialect knows how its errors, keep-alives and stream frames look. It does not translate (translate/)
and does not know the pipeline.
"""
