"""
The token file: a management key that a process makes for the machine it runs on.

It lies in the data directory with mode 0600; who can read it may manage the gateway, as he could by
changing its files. Not here: keys of the configuration (kernel/config), checking (edge/management).
"""

from __future__ import annotations

import contextlib
import os
import secrets
from typing import TYPE_CHECKING, Final

from patchbay.errors import FailedPrecondition

if TYPE_CHECKING:
    from pathlib import Path

TOKEN_FILE: Final = "management-token"  # noqa: S105 - the name of a file
_TOKEN_BYTES: Final = 32


def read_token(data_dir: Path) -> str | None:
    """Return the token of the gateway with this data directory; None if there is none for us."""
    try:
        return (data_dir.expanduser() / TOKEN_FILE).read_text(encoding="ascii").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def ensure_token(data_dir: Path) -> str:
    """
    Return the token, made if there is none; one that others could read is replaced.

    Raises:
        FailedPrecondition: The file cannot be written.
    """
    path = data_dir.expanduser() / TOKEN_FILE
    try:
        if path.exists() and not path.stat().st_mode & 0o077 and (token := read_token(data_dir)):
            return token
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        token = secrets.token_urlsafe(_TOKEN_BYTES)
        draft = path.with_name(f".{TOKEN_FILE}.{os.getpid()}.{secrets.token_hex(4)}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as file:
                file.write(f"{token}\n")
            draft.replace(path)
        finally:
            with contextlib.suppress(FileNotFoundError):
                draft.unlink()
    except OSError as error:
        raise FailedPrecondition(
            f"cannot write {path}: {error.strerror}; choose another place with PATCHBAY_DATA_DIR",
            reason="DATA_DIR_NOT_WRITABLE",
        ) from error
    return token
