"""README's commands are run and its files loaded: a newcomer's first minutes, on other ports."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import yaml
from tests.docs.pages import ROOT, Block, blocks, pages, text
from tests.harness.observing import until
from tests.harness.processes import PATCHBAY, Process, free_port

from patchbay_gateway.kernel import config
from patchbay_gateway.kernel.config import schema
from patchbay_gateway.plugins.prices import parse_prices
from patchbay_operator.resources import understand

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class Gateway(Process):
    """`patchbay up` as README has it, but for its ports and its data directory."""

    def __init__(self, directory: Path) -> None:
        self.port, self.management = free_port(), free_port()
        self.data_dir = directory / "data"
        ports = ["--port", str(self.port), "--management-port", str(self.management)]
        super().__init__(
            "up",
            [PATCHBAY, "up", *ports, "--data-dir", self.data_dir],
            env={},
            directory=directory,
            ready_url=f"http://127.0.0.1:{self.management}/readyz",
        )

    def here(self, command: str) -> str:
        """Return a command of README for this gateway."""
        command = command.replace(".venv/bin/patchbay", str(PATCHBAY))
        return command.replace(":8080", f":{self.port}").replace(":8081", f":{self.management}")


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway without file, keys or provider."""
    gateway = Gateway(tmp_path_factory.mktemp("up"))
    gateway.start()
    yield gateway
    assert gateway.stop() == 0


def _commands(block: Block) -> list[str]:
    joined = block.text.replace("\\\n", " ")
    return [line.strip() for line in joined.splitlines() if line.strip()]


def _run(gateway: Gateway, command: str) -> str:
    done = subprocess.run(
        ["bash", "-c", gateway.here(command)],
        env={
            **os.environ,
            "PATCHBAY_MANAGEMENT_URL": f"http://127.0.0.1:{gateway.management}",
            "PATCHBAY_DATA_DIR": str(gateway.data_dir),
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        },
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_quick_start_each_command_does_what_it_says(gateway: Gateway) -> None:
    block = next(b for b in blocks("README.md", "sh") if "curl" in b.text)
    plain, stream, report = _commands(block)
    answer = json.loads(_run(gateway, plain))
    assert answer["choices"][0]["message"]["content"] == "hello there"
    events = _run(gateway, stream)
    assert "event: message_start" in events
    assert events.rstrip().endswith('data: {"type":"message_stop"}')
    # What a person types comes a second later; the ledger takes its events in batches.
    deadline = time.monotonic() + 60
    while not re.search(r"^echo +[2-9] ", table := _run(gateway, report), re.MULTILINE):
        assert time.monotonic() < deadline, table
        time.sleep(0.1)


def test_greeting_names_a_curl_that_works(gateway: Gateway) -> None:
    greeting = until(lambda: "Ctrl-C drains" in (said := gateway.log.read_text()) and said)
    command = greeting[greeting.index("  curl ") : greeting.index("Ctrl-C drains")]
    answer = json.loads(_run(gateway, command.strip().replace("curl ", "curl -s ", 1)))
    assert answer["choices"][0]["message"]["content"] == "hello"


def test_python_of_the_readme_reaches_the_gateway(gateway: Gateway) -> None:
    (block,) = blocks("README.md", "python")
    names: dict[str, Any] = {}
    exec(gateway.here(block.text), names)  # our own page
    with names["client"] as client:
        assert [model.id for model in client.models.list()] == ["echo"]


def test_doctor_finds_the_gateway_well(gateway: Gateway) -> None:
    ports = f"--port {gateway.port} --management-port {gateway.management}"
    told = _run(gateway, f".venv/bin/patchbay doctor {ports}")
    assert "gateway: http://127.0.0.1" in told
    assert "fail" not in told


def test_stranger_is_refused_before_the_body(gateway: Gateway) -> None:
    """A body is announced and never sent; the refusal does not wait for it (docs/adr/0017)."""
    with socket.create_connection(("127.0.0.1", gateway.port), timeout=60) as client:
        client.sendall(
            b"POST /v1/chat/completions HTTP/1.1\r\nhost: elsewhere.example\r\n"
            b"content-type: application/json\r\ncontent-length: 1000000\r\n\r\n"
        )
        assert client.recv(1000).startswith(b"HTTP/1.1 403 ")


def _yaml() -> list[Block]:
    return [block for page in pages() for block in blocks(page, "yaml")]


@pytest.mark.parametrize("block", _yaml(), ids=lambda b: b.page)
def test_yaml_of_the_pages_is_taken(block: Block, tmp_path: Path) -> None:
    """Each is a configuration, a part of one, custom resources, or a file of prices where it says so."""
    if block.text.startswith("# prices.yaml"):
        assert parse_prices(block.text)
        return
    if block.text.startswith("apiVersion: patchbay.dev/"):
        for document in yaml.safe_load_all(block.text):
            assert understand({**document, "metadata": {"uid": "1", **document["metadata"]}}).spec
        return
    file = tmp_path / "patchbay.yaml"
    file.write_text(block.text, encoding="utf-8")
    assert config.load(file, {}) != config.Config()


@pytest.mark.parametrize("page", pages())
def test_shell_of_the_pages_is_shell(page: str) -> None:
    for block in blocks(page, "sh"):
        shell = block.text.replace("<this repository>", "repository")
        subprocess.run(["bash", "-n"], input=shell, text=True, check=True)


def test_configuration_page_is_what_the_model_says() -> None:
    """After a change of the model: make docs."""
    made = subprocess.run(
        [sys.executable, "-m", schema.__name__],
        check=True, capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert made.stdout == text("docs/configuration.md")


def test_drain_ends_open_answers_and_leaves_nothing(tmp_path: Path) -> None:
    """README: Ctrl-C drains."""
    gateway = Gateway(tmp_path)
    gateway.start()
    url = f"http://127.0.0.1:{gateway.port}/v1/chat/completions"
    body = {"model": "echo", "stream": True, "messages": [{"role": "user", "content": "a b c"}]}
    headers = {"x-echo-chunks": "20", "x-echo-delay-ms": "50"}
    with httpx.stream(
        "POST", url, json=body, headers=headers, timeout=60, trust_env=False, verify=False
    ) as answer:
        lines = answer.iter_lines()
        next(lines)
        gateway.signal(signal.SIGINT)
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert gateway.wait(60) == 0
