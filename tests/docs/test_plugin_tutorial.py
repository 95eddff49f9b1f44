"""docs/plugin-tutorial.md is done as it says, in an empty folder, with other ports."""

from __future__ import annotations

import contextlib
import os
import queue
import re
import signal
import socket
import subprocess
import threading
import time
from typing import TYPE_CHECKING

import httpx
import pytest
from tests.docs.pages import text
from tests.harness.observing import until
from tests.harness.processes import PATCHBAY, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAGE = "docs/plugin-tutorial.md"
_BLOCK = re.compile(r"^```(\w+) ?([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_END = "-- end of a command --"


class Terminal:
    """A shell that keeps its environment from command to command."""

    def __init__(self, folder: Path, ports: dict[str, str]) -> None:
        self._ports = ports
        environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("PATCHBAY_", "OPENAI_"))},
            "PATH": f"{PATCHBAY.parent}{os.pathsep}{os.environ['PATH']}",
            "PATCHBAY_DATA_DIR": str(folder / "data"),
            "PATCHBAY_MANAGEMENT_URL": f"http://127.0.0.1{ports[':8081']}",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        self._shell = subprocess.Popen(
            ["bash"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folder,
            env=environment,
            start_new_session=True,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self.seen: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._shell.stdout is not None
        for line in self._shell.stdout:
            self.seen.append(line)
            self._lines.put(line)

    def send(self, command: str) -> None:
        """Type a command and do not wait for its end."""
        for documented, actual in self._ports.items():
            command = command.replace(documented, actual)
        assert self._shell.stdin is not None
        self._shell.stdin.write(command + "\n")
        self._shell.stdin.flush()

    def run(self, command: str) -> str:
        """Run a command and return what it printed; it must succeed."""
        self.send(f'{command}\necho "{_END} $?"')
        said: list[str] = []
        while True:
            line = self._lines.get(timeout=120)
            before, found, status = line.partition(_END)
            said.append(before)
            if found:
                assert status.strip() == "0", "".join(said)
                return "".join(said)

    def close(self) -> None:
        """End what runs in it, as Ctrl-C and leaving do."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._shell.pid, signal.SIGTERM)
        assert self._shell.stdin is not None
        assert self._shell.stdout is not None
        self._shell.stdin.close()
        # Output ends with the last process that has it, and a gateway drains first.
        self._reader.join(60)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._shell.pid, signal.SIGKILL)
        self._reader.join(60)
        self._shell.wait(60)
        self._shell.stdout.close()


@pytest.fixture
def ports() -> dict[str, str]:
    """Return each of the page's ports and the one that is used here."""
    names = (":8080", ":8081", "127.0.0.1:7003")
    found = {name: name.rpartition(":")[0] + f":{free_port()}" for name in names}
    client, management, plugin = (value.rpartition(":")[2] for value in found.values())
    found["patchbay up"] = f"patchbay up --port {client} --management-port {management}"
    found["plugin run my-filter/my_filter.py"] = (
        f"plugin run my-filter/my_filter.py --address 127.0.0.1:{plugin}"
    )
    return found


@pytest.fixture
def terminals(tmp_path: Path, ports: dict[str, str]) -> Iterator[dict[str, Terminal]]:
    """Return the three terminals of the page."""
    made = {name: Terminal(tmp_path, ports) for name in ("1", "2", "3")}
    yield made
    for terminal in reversed(made.values()):
        terminal.close()


def _listening(port: int) -> bool:
    with socket.socket() as found:
        return found.connect_ex(("127.0.0.1", port)) == 0


def _wait(what: str, ports: dict[str, str], terminal: Terminal) -> None:
    """Wait as a person does: until what was started is there."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if what == "2" and _listening(int(ports["127.0.0.1:7003"].rpartition(":")[2])):
            return
        if what == "3":
            # Also until the plugin is taken: a person reads a page meanwhile.
            with contextlib.suppress(httpx.HTTPError):
                url = f"http://127.0.0.1{ports[':8081']}/v0/management/plugins"
                known = httpx.get(url, timeout=60, trust_env=False, verify=False).json()
                if any(p["id"] == "my-filter" and p["ready"] for p in known):
                    return
        time.sleep(0.1)  # polls another process
    raise AssertionError("".join(terminal.seen))


def _matches(expected: str, said: str) -> bool:
    """Whether *said* is as the page has it, `…` standing for anything."""
    parts = [re.escape(part) for part in expected.strip().split("…")]
    return re.fullmatch(r"(?s)\s*" + r".*?".join(parts) + r"\s*", said.strip()) is not None


def test_tutorial_from_an_empty_folder(
    terminals: dict[str, Terminal], ports: dict[str, str], tmp_path: Path
) -> None:
    said = ""
    counted: dict[str, int] = {}
    for language, info, block in _BLOCK.findall(text(PAGE)):
        counted[language] = counted.get(language, 0) + 1
        if language in {"python", "yaml"}:
            name = block.splitlines()[0].removeprefix("# ")
            for documented, actual in ports.items():
                block = block.replace(documented, actual)  # noqa: PLW2901 - the page's, as here
            (tmp_path / name).write_text(block, encoding="utf-8")
        elif language == "sh" and info:
            number = info.removeprefix("terminal=")
            terminals[number].send(block)
            _wait(number, ports, terminals[number])
        elif language == "sh":
            said = terminals["1"].run(block)
        else:
            assert _matches(block, said), f"expected:\n{block}\nsaid:\n{said}"
    assert counted["sh"] >= 8
    assert counted["text"] >= 6
    until(lambda: "uses plugin my-filter" in "".join(terminals["2"].seen))
