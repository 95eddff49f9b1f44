"""One composition for all tests here: images of this tree, a Valkey image of the tests' own, free ports."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from tests.harness.ports import free_port
from tests.requirements import lack, need

from patchbay_gateway.kernel.valkey import find_server

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[3]
TAG = "test"
DEFAULT_BASE = "python:3.12-slim-bookworm"
EXECUTORS = 3


@dataclass(frozen=True, slots=True)
class Stack:
    """A running composition."""

    project: str
    url: str
    client_key: str
    env: dict[str, str]

    def compose(self, *arguments: str) -> str:
        """Run docker/compose and return what it prints."""
        return _run("docker/compose", *arguments, env=self.env)

    def containers(self, service: str) -> list[str]:
        """Return the ids of a service's running containers."""
        return docker("ps", "-q", *self._filters(service)).split()

    def container(self, service: str) -> str:
        """Return the id of a service's only container, ended ones included."""
        (found,) = docker("ps", "-qa", *self._filters(service)).split()
        return found

    def client(self) -> httpx.AsyncClient:
        """Return a client with the client key."""
        headers = {"authorization": f"Bearer {self.client_key}"}
        return httpx.AsyncClient(base_url=self.url, headers=headers, timeout=60)

    def attempts(self) -> dict[str, int]:
        """Return the sums of the ledger over all models."""
        report = docker(
            "exec",
            self.container("edge"),
            "patchbay",
            "usage",
            "report",
            "--json",
            "--since",
            "all",
        )
        rows: list[dict[str, Any]] = json.loads(report)
        return {key: sum(row[key] for row in rows) for key in ("requests", "attempts", "lost")}

    def _filters(self, service: str) -> tuple[str, ...]:
        labels = {"project": self.project, "service": service}
        return tuple(
            f"--filter=label=com.docker.compose.{name}={value}" for name, value in labels.items()
        )


def docker(*arguments: str) -> str:
    """Run docker and return what it prints."""
    return _run("docker", *arguments)


@pytest.fixture(scope="session")
def base_image() -> str:
    """The image that services are built on: BASE_IMAGE, else the default where it is here already."""
    need("compose")
    name = os.environ.get("BASE_IMAGE", DEFAULT_BASE)
    known = subprocess.run(["docker", "image", "inspect", name], capture_output=True, check=False)
    if known.returncode:
        lack("compose", f"the engine has no image {name}; name a base image in BASE_IMAGE")
    return name


@pytest.fixture(scope="session")
def images(base_image: str) -> str:
    """All images of this tree; returns their tag."""
    _run("docker/build", "--base", base_image, "--tag", TAG)
    return TAG


@pytest.fixture(scope="session")
def valkey_image(base_image: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image of the server that the other tests use, so that nothing is pulled."""
    context = tmp_path_factory.mktemp("valkey")
    shutil.copy(find_server(), context / "server")
    (context / "Dockerfile").write_text(
        f"FROM {base_image}\nCOPY server /server\n"
        "RUN mkdir /data && chown 65532:65532 /data\nWORKDIR /data\nUSER 65532:65532\n"
        'ENTRYPOINT ["/server"]\n'
    )
    name = f"patchbay/valkey-for-tests:{TAG}"
    docker("build", "-q", "-t", name, str(context))
    return name


@pytest.fixture(scope="session")
def stack(images: str, valkey_image: str, base_image: str) -> Iterator[Stack]:
    """Everything of docker-compose.yml, with three executors."""
    port, management_port = free_port(), free_port()
    project = f"patchbay-test-{os.getpid()}"
    env = {
        "COMPOSE_PROJECT_NAME": project,
        "PATCHBAY_TAG": images,
        "BASE_IMAGE": base_image,
        "VALKEY_IMAGE": valkey_image,
        "PATCHBAY_PORT": str(port),
        "PATCHBAY_MANAGEMENT_PORT": str(management_port),
    }
    try:
        _run(
            "docker/compose", "up", "-d", "--no-build", "--scale", f"executors={EXECUTORS}", env=env
        )
        said = _run("docker/compose", "logs", "--no-color", "init", env=env)
        printed = re.search(r"client key: (\S+)", said)
        assert printed, said
        _wait_ready(f"http://127.0.0.1:{management_port}/readyz", env)
        yield Stack(project, f"http://127.0.0.1:{port}", printed.group(1), env)
    finally:
        _run("docker/compose", "down", "-v", "--timeout", "5", env=env)


def _wait_ready(url: str, env: dict[str, str]) -> None:
    transport = httpx.HTTPTransport(retries=3)
    with httpx.Client(transport=transport, timeout=5) as client:
        for _ in range(900):
            try:
                if client.get(url).status_code == 200:
                    return
            except httpx.HTTPError:
                pass  # the port is open before the server behind it
            # A container gives no event to wait for from here.
            subprocess.run(["sleep", "0.2"], check=True)
    pytest.fail(_run("docker/compose", "logs", "--no-color", env=env)[-4000:])


def _run(*argv: str, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(
        argv,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert done.returncode == 0, f"{' '.join(argv)}: {done.stdout[-3000:]}"
    return done.stdout
