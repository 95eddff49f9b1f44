"""A PostgreSQL server of the tests' own, where one is installed. Not here: databases of single tests."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.requirements import lack, need

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextlib.contextmanager
def running_postgres() -> Iterator[str]:
    """Give the URL of its database `postgres`, on a socket; skip who asks where there is none."""
    initdb, pg_ctl = _program("initdb"), _program("pg_ctl")
    need("postgres")
    assert initdb is not None
    assert pg_ctl is not None
    # Not in pytest's folder: a socket's path may have 100 characters, and the server refuses to be root.
    home = Path(tempfile.mkdtemp(prefix="pbpg-"))
    owner: dict[str, Any] = {}
    if os.geteuid() == 0:
        shutil.chown(home, "nobody")
        owner = {"user": "nobody", "cwd": home}
    data = home / "data"
    made = subprocess.run(
        [initdb, "-D", data, "-A", "trust", "-U", "ledger", "-N"],
        capture_output=True,
        text=True,
        check=False,
        **owner,
    )
    if made.returncode:
        shutil.rmtree(home, ignore_errors=True)
        lack("postgres", f"it cannot make a database here: {made.stderr.strip()[-200:]}")
    options = f"-k {home} -c listen_addresses='' -c fsync=off"
    start = [
        pg_ctl,
        "-D",
        str(data),
        "-o",
        options,
        "-l",
        str(home / "log"),
        "-w",
        "-t",
        "180",
        "start",
    ]
    subprocess.run(start, check=True, stdout=subprocess.DEVNULL, **owner)
    try:
        yield f"postgresql://ledger@/postgres?host={home}"
    finally:
        stop = [pg_ctl, "-D", str(data), "-m", "immediate", "stop"]
        subprocess.run(stop, check=True, stdout=subprocess.DEVNULL, **owner)
        shutil.rmtree(home, ignore_errors=True)


def _program(name: str) -> str | None:
    # Debian keeps them off PATH.
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    return shutil.which(name) or (str(found[-1]) if found else None)
