# ruff: noqa: INP001, T201 - a script of the images, no package, and its output is what it is for
"""
First step of docker-compose: makes every key once, gives each service only what is its own, waits for Redis.

    /keys/scheduler   the roots store, plugins and cluster, and the client key
    /keys/edge        the root cluster, the management key
    /keys/usage       the root cluster
    /keys/executors   the keys of the built-in plugins, derived from the root plugins

What exists is left alone, so a second start changes nothing. The client key is printed; `docker-compose logs
init` shows it again. Not for Kubernetes, where Secrets and the operator do this.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

from patchbay.keys import KEY_BYTES
from patchbay_gateway.kernel.config import BUILTIN_PLUGINS
from patchbay_gateway.kernel.keys import plugin_key

REDIS_SECONDS = 60.0


def main(keys: Path, redis_url: str, port: str) -> int:
    """Make what is missing below *keys*, wait for Redis and print the client key."""
    scheduler, edge, executors = keys / "scheduler", keys / "edge", keys / "executors"
    usage = keys / "usage"
    for root in ("store", "plugins", "cluster"):
        once(scheduler / root, secrets.token_hex(KEY_BYTES))
    client = once(scheduler / "client-key", f"pb-{secrets.token_urlsafe(32)}")
    once(edge / "cluster", (scheduler / "cluster").read_text())
    once(usage / "cluster", (scheduler / "cluster").read_text())
    once(edge / "management-key", f"pbm-{secrets.token_urlsafe(32)}")
    # Rewritten at each start: it follows from the root, and a new version may bring new plugins.
    generations = [bytes.fromhex(line) for line in (scheduler / "plugins").read_text().split()]
    write(
        executors / "plugin-keys",
        "".join(
            f"{plugin}={plugin_key(root, plugin).hex()}\n"
            for plugin in BUILTIN_PLUGINS
            for root in generations
        ),
    )
    if not redis_answers(redis_url):
        print(f"no Redis answers at {redis_url}", file=sys.stderr)
        return 1
    print(f"client key: {client}")
    print(
        f"try: curl http://127.0.0.1:{port}/v1/chat/completions"
        f" -H 'Authorization: Bearer {client}' -H 'Content-Type: application/json'"
        """ -d '{"model": "echo", "messages": [{"role": "user", "content": "hello"}]}'"""
    )
    return 0


def once(path: Path, text: str) -> str:
    """Return the content of *path*, which becomes *text* if there is none yet."""
    if not path.exists():
        write(path, text.strip() + "\n")
    return path.read_text().strip()


def write(path: Path, text: str) -> None:
    """Replace a file that only its owner can read; whoever is interrupted leaves the old one."""
    draft = path.with_name(f".{path.name}.draft")
    draft.unlink(missing_ok=True)
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def redis_answers(url: str) -> bool:
    """Wait until a server at *url* speaks RESP, for a minute at most; whether it lets us in is not asked."""
    parts = urlsplit(url)
    deadline = time.monotonic() + REDIS_SECONDS
    while time.monotonic() < deadline:
        try:
            with socket.create_connection((parts.hostname, parts.port or 6379), 2) as connection:
                connection.sendall(b"PING\r\n")
                answer = connection.recv(64)
            if answer.startswith((b"+PONG", b"-NOAUTH")):
                return True
        except OSError:
            pass  # it is still starting
        time.sleep(0.3)
    return False


if __name__ == "__main__":
    sys.exit(main(Path("/keys"), os.environ["REDIS_URL"], os.environ.get("PUBLISHED_PORT", "8080")))
