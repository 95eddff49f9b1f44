"""
The OpenAPI document as one page of HTML.

Our own and without script: a page on the management port loads nothing from anywhere, and it works on a
machine without a network. Not here: the document (FastAPI makes it from routes.py).
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem;
color:#222;background:#fff}
h2{margin-top:2rem;font:600 1.1rem ui-monospace,monospace}h2 b{color:#0a6}
pre{background:#f4f4f4;padding:.6rem;overflow-x:auto}table{border-collapse:collapse}
td,th{border:1px solid #ccc;padding:.2rem .6rem;text-align:left}
@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}pre{background:#262626}td,th{border-color:#444}}
"""
_KEYS = (
    "<p>Send a management key as <code>Authorization: Bearer …</code>. Without keys, "
    "<code>patchbay up</code> lets this machine read. <a href='/openapi.json'>openapi.json</a></p>"
)


def render(document: Mapping[str, Any]) -> str:
    """Return the page for an OpenAPI *document*."""
    info = document["info"]
    body = [
        f"<h1>{escape(info['title'])}</h1><p>{escape(info.get('description', ''))}</p>",
        _KEYS,
    ]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            body.extend(_operation(path, method.upper(), operation))
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        "<meta name=viewport content='width=device-width'>"
        f"<title>{escape(info['title'])}</title><style>{_STYLE}</style>{''.join(body)}</html>"
    )


def _operation(path: str, method: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"<h2><b>{method}</b> {escape(path)}</h2>"
    for paragraph in operation.get("description", "").split("\n\n"):
        yield f"<p>{escape(paragraph)}</p>"
    if parameters := operation.get("parameters"):
        yield "<table><tr><th>parameter<th>default<th>what it does</tr>"
        for parameter in parameters:
            default = parameter.get("schema", {}).get("default", "")
            yield (
                f"<tr><td>{escape(parameter['name'])}<td>{escape(str(default))}"
                f"<td>{escape(parameter.get('description', ''))}</tr>"
            )
        yield "</table>"
    url = f"http://127.0.0.1:8081{path}"
    yield f"<pre>curl -H \"Authorization: Bearer $PATCHBAY_MANAGEMENT_KEY\" '{escape(url)}'</pre>"
