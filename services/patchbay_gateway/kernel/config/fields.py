"""
Checked kinds of text in the configuration: names, URLs, addresses, files.

Not here: durations and sizes (quantities.py), which key has which kind (model.py).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, ValidationInfo

# The contract's rule for plugin ids; the names of providers, credentials and keys follow it.
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_ADDRESS: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):(\d{1,5})")
_PROXY_SCHEMES: Final = frozenset({"http", "https", "socks5", "socks5h"})


def _check_name(value: str) -> str:
    if _NAME.fullmatch(value) is None:
        raise ValueError("a name begins with a letter or digit and has only A-Z a-z 0-9 . _ -")
    return value


def _check_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("is no URL; write it like https://host/path")
    if parts.username or parts.password:
        raise ValueError("a URL carries no user or password; use a credential")
    return value.rstrip("/")


def _check_proxy(value: str) -> str:
    if value in {"direct", "none"}:
        return value
    parts = urlsplit(value)
    if parts.scheme not in _PROXY_SCHEMES or not parts.hostname:
        raise ValueError("write it like http://host:port or socks5://host:port, or direct")
    return value


def check_address(value: str) -> str:
    """Return *value* if it is `host:port`; raise ValueError with the form otherwise."""
    found = _ADDRESS.fullmatch(value)
    if found is None or not 0 < int(found[2]) < 65536:
        raise ValueError(f"{value!r} is no address; write it like host:7003")
    return value


def _anchor(value: Path, info: ValidationInfo) -> Path:
    """Resolve a relative path against the directory of the configuration file."""
    directory = (info.context or {}).get("directory")
    value = value.expanduser()
    return value if directory is None or value.is_absolute() else Path(directory) / value


Name = Annotated[str, AfterValidator(_check_name)]
Url = Annotated[str, AfterValidator(_check_url)]
ProxyUrl = Annotated[str, AfterValidator(_check_proxy)]
Address = Annotated[str, AfterValidator(check_address)]
File = Annotated[Path, AfterValidator(_anchor)]
Glob = Annotated[str, Field(min_length=1)]
