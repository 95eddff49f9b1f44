"""Print docs/conformance-matrix.md: `python -m tests.conformance_matrix.page`, as `make docs` does."""

from __future__ import annotations

import sys

from tests.conformance_matrix.matrix import page

if __name__ == "__main__":
    sys.stdout.write(page())
