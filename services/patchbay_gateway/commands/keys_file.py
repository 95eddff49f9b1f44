"""
Client keys in a configuration file: entries of `client_keys` with the digest of a generated key.

The file is edited as text, so that comments and layout stay, and the edit is believed only if the file then
says exactly what it said before with the one entry more or less; else a person is told what to write. Needs
the root key `cluster` of the gateway that reads the file. Not here: resources (keys_cluster.py).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from patchbay import errors
from patchbay_gateway.commands.keys import Created, Listed, Revoked, Wish
from patchbay_gateway.kernel import config as configuration
from patchbay_gateway.kernel.config.settings import default_data_dir
from patchbay_gateway.kernel.keys import client_key_digest, load_roots

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

_SECTION: Final = "client_keys"
_LOOK_EVERY: Final = 0.25


class FileKeys:
    """
    The keys of one file.

    Args:
        path: The file.
        environ: The environment of the gateway, for its root key.
        data_dir: The gateway's data directory, where the root key is not in the environment.
        running: Returns the names that a running gateway knows; raises PatchbayError when none answers.
        patience: Seconds to wait for it.
        alone: Lets one at a time edit the files of a directory; default a lock on it.
    """

    def __init__(
        self,
        path: Path,
        environ: Mapping[str, str],
        data_dir: Path | None,
        running: Callable[[], Sequence[str]],
        *,
        patience: float,
        alone: Callable[[Path], AbstractContextManager[None]] | None = None,
    ) -> None:
        self._alone = alone or _alone
        self._path = path.expanduser()
        self._environ = environ
        self._data_dir = data_dir
        self._running = running
        self._patience = patience

    def list(self) -> Sequence[Listed]:
        """Return the keys, by name."""
        found = configuration.load(self._path, self._environ).client_keys
        return sorted((self._listed(key) for key in found), key=lambda k: k.name)

    def create(self, wish: Wish) -> Created:
        """Add an entry with a generated key's digest."""
        if wish.secret:
            raise errors.InvalidRequest(
                "--secret names a Secret of a cluster; in a file write key_file or key_env yourself"
            )
        with self._alone(self._path.resolve().parent):
            plain = self._add(wish)
        accepted = self._until(lambda names: wish.name in names) is not None
        note = (
            ""
            if accepted
            else "Gateways that run take it when they read the file anew, in seconds."
        )
        return Created(wish.name, plain, f"digest in {self._path}", accepted, note)

    def _add(self, wish: Wish) -> str:
        """Add the entry and return the key."""
        loaded = configuration.load(self._path, self._environ)
        if any(key.name == wish.name for key in loaded.client_keys):
            raise errors.FailedPrecondition(
                f"{self._path} has a client key {wish.name!r} already; choose another name, or "
                "revoke it first"
            )
        plain = f"pb-{secrets.token_urlsafe(32)}"
        entry: dict[str, Any] = {"name": wish.name, "hash": client_key_digest(self._root(), plain)}
        if list(wish.models) != ["*"]:
            entry["models"] = list(wish.models)
        if wish.tenant != "default":
            entry["tenant"] = wish.tenant
        text = self._path.read_text(encoding="utf-8")
        before = yaml.safe_load(text) or {}
        wanted = {**before, _SECTION: [*(before.get(_SECTION) or []), entry]}
        edited = added(text, flow(entry))
        by_hand = f"add to {_SECTION}:\n  - {flow(entry)}"
        self._replace(edited, wanted, by_hand)
        return plain

    def revoke(self, name: str) -> Revoked:
        """Remove an entry."""
        with self._alone(self._path.resolve().parent):
            left = self._remove(name)
        stopped = self._until(lambda names: name not in names)
        notes = []
        if stopped is None:
            notes.append(
                "No gateway answered to tell when: those that run refuse it as soon as they have read "
                "the file, in seconds."
            )
        if not left:
            notes.append(
                "No client key is left: `patchbay up` on loopback answers everybody on this machine, "
                "other gateways nobody."
            )
        return Revoked(name, stopped, " ".join(notes))

    def _remove(self, name: str) -> int:
        """Remove the entry and return how many are left."""
        text = self._path.read_text(encoding="utf-8")
        configuration.load(self._path, self._environ)
        before = yaml.safe_load(text) or {}
        entries = before.get(_SECTION) or []
        index = next((i for i, entry in enumerate(entries) if entry.get("name") == name), None)
        if index is None:
            known = ", ".join(str(entry.get("name")) for entry in entries) or "none"
            raise errors.NotFound(f"{self._path} has no client key {name!r}; it has {known}")
        left = [entry for i, entry in enumerate(entries) if i != index]
        by_hand = f"remove the entry {name!r} of {_SECTION} yourself"
        self._replace(removed(text, index), {**before, _SECTION: left}, by_hand)
        return len(left)

    def _listed(self, key: configuration.ClientKey) -> Listed:
        source = "digest" if key.hash else "the file itself"
        if key.key_env:
            source = f"variable {key.key_env}"
        elif key.key_file:
            source = f"file {key.key_file}"
        state, message = "ready", ""
        try:
            key.resolve(self._environ)
        except configuration.ConfigError as error:
            state, message = "missing", error.problems[0].message
        return Listed(key.name, key.models, key.tenant, state, message, None, source)

    def _root(self) -> bytes:
        directory = self._data_dir or Path(
            self._environ.get("PATCHBAY_DATA_DIR") or default_data_dir(self._environ)
        )
        given = any(self._environ.get(f"PATCHBAY_CLUSTER_KEY{s}") for s in ("", "_FILE"))
        if not given and not (directory / "keys" / "cluster").exists():
            # A root made here would make a key that opens nothing.
            raise errors.FailedPrecondition(
                f"the gateway's root key is not in {directory}: start `patchbay up` once, name its "
                "directory with --data-dir, or set PATCHBAY_CLUSTER_KEY_FILE as the gateway has it"
            )
        return load_roots(self._environ, ("cluster",), directory).cluster[0]

    def _replace(self, text: str, wanted: Mapping[str, Any], by_hand: str) -> None:
        """Write *text* if it says what is wanted and the gateway would take it."""
        try:
            same = yaml.safe_load(text) == wanted
        except yaml.YAMLError:
            same = False
        if not same:
            raise errors.FailedPrecondition(
                f"{self._path} is laid out in a way that is not edited here; {by_hand}"
            )
        directory = self._path.resolve().parent
        configuration.parse(text, source=str(self._path), directory=directory, env=self._environ)
        target = self._path.resolve()
        try:
            mode = target.stat().st_mode & 0o777
            descriptor, draft = tempfile.mkstemp(prefix=f".{target.name}-", dir=directory)
            try:
                with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                Path(draft).chmod(mode)
                Path(draft).replace(target)
            except BaseException:
                with contextlib.suppress(OSError):
                    Path(draft).unlink()
                raise
        except OSError as error:
            raise errors.FailedPrecondition(
                f"{self._path} cannot be written ({error.strerror}); {by_hand}"
            ) from error

    def _until(self, holds: Callable[[Sequence[str]], bool]) -> str | None:
        """Return when a running gateway was seen to follow; None when none did."""
        deadline = time.monotonic() + self._patience
        while True:
            try:
                if holds(self._running()):
                    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            except errors.PatchbayError:
                return None
            if time.monotonic() >= deadline:
                return None
            time.sleep(_LOOK_EVERY)


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """
    Let the body be the only one of us that edits files of *directory*.

    On the directory, for each edit puts another file in the place of the last one.
    """
    descriptor = None
    try:
        # Where nothing can be locked a person takes turns with himself.
        with contextlib.suppress(OSError):
            descriptor = os.open(directory, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


# -- the file as text -----------------------------------------------------------------------------


def flow(entry: Mapping[str, Any]) -> str:
    """Return an entry on one line."""
    dumped: str = yaml.safe_dump(
        dict(entry), default_flow_style=True, sort_keys=False, width=10_000, allow_unicode=True
    )
    return dumped.strip()


def added(text: str, entry: str) -> str:
    """Return *text* with *entry* at the end of `client_keys`."""
    key, value = _section(text)
    if key is None:
        head = text if not text or text.endswith("\n") else f"{text}\n"
        return f"{head}{_SECTION}:\n  - {entry}\n"
    if not isinstance(value, yaml.SequenceNode):  # nothing stands after the colon
        at = text.index(":", key.end_mark.index) + 1
        return f"{text[:at]}\n  - {entry}{text[at:]}"
    if value.flow_style:
        at = value.end_mark.index - 1
        head = text[:at].rstrip()
        comma = ", " if value.value and not head.endswith(",") else ""
        return f"{head}{comma}{entry}{text[at:]}"
    last = value.value[-1]
    at = _line_end(text, _end(last))
    head = text[:at] if text[:at].endswith("\n") else f"{text[:at]}\n"
    return f"{head}{' ' * _dash(text, last)}- {entry}\n{text[at:]}"


def removed(text: str, index: int) -> str:
    """Return *text* without one entry of `client_keys`."""
    key, value = _section(text)
    if key is None or not isinstance(value, yaml.SequenceNode):
        return text
    if len(value.value) == 1:
        end = value.end_mark.index if value.flow_style else _end(value.value[0])
        return f"{text[: key.start_mark.index]}{_SECTION}: []{text[end:]}"
    node = value.value[index]
    if value.flow_style:
        if index:
            return text[: value.value[index - 1].end_mark.index] + text[node.end_mark.index :]
        return text[: node.start_mark.index] + text[value.value[1].start_mark.index :]
    start = text.rindex("\n", 0, node.start_mark.index) + 1
    return text[:start] + text[_line_end(text, _end(node)) :]


def _section(text: str) -> tuple[yaml.Node | None, yaml.Node | None]:
    """Return the nodes of the key `client_keys` and of its value."""
    root = yaml.compose(text, Loader=yaml.SafeLoader)
    if isinstance(root, yaml.MappingNode) and not root.flow_style:
        for key, value in root.value:
            if key.value == _SECTION:
                return key, value
    return None, None


def _end(node: yaml.Node) -> int:
    """Return where the last thing in *node* ends; the end of a block counts what follows it."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        return _end(last[1] if isinstance(last, tuple) else last)
    return int(node.end_mark.index)


def _line_end(text: str, at: int) -> int:
    """Return where the line of *at* ends, its line break included."""
    found = text.find("\n", at)
    return len(text) if found < 0 else found + 1


def _dash(text: str, item: yaml.Node) -> int:
    """Return the column of the dash before *item*."""
    start = text.rindex("\n", 0, item.start_mark.index) + 1
    return text.index("-", start) - start
