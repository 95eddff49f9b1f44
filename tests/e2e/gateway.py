"""The gateway on a cluster as tests handle it: kubectl, helm, requests, load. Not here: what is expected."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import httpx
from tests.harness.helm import CHARTS
from tests.requirements import need

if TYPE_CHECKING:
    from collections.abc import Callable

NAMESPACE = os.environ.get("PATCHBAY_E2E_NAMESPACE", "patchbay-e2e")
IMAGE = os.environ.get("PATCHBAY_E2E_PLUGIN_IMAGE", "patchbay/executors:0.1.0")
PULL = os.environ.get("PATCHBAY_E2E_PULL", "IfNotPresent")
PROGRAMS = Path(__file__).parent


class Cluster:
    """kubectl and helm, for the namespace of the tests."""

    def __init__(self, tools: Path) -> None:
        self._tools = tools
        self.values = os.environ.get("PATCHBAY_E2E_VALUES", "")
        self.url = os.environ.get("PATCHBAY_E2E_URL", "http://127.0.0.1:30880")
        self.key = ""

    def run(self, *argv: str, given: str = "", within: float = 300.0) -> str:
        """Run and return what it printed; AssertionError with its words when it fails."""
        done = subprocess.run(
            [str(self._tools / argv[0]), *argv[1:]],
            input=given,
            capture_output=True,
            text=True,
            check=False,
            timeout=within,
        )
        assert done.returncode == 0, f"{argv}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done.stdout

    def kubectl(self, *argv: str, given: str = "", within: float = 200.0) -> str:
        """Run kubectl in the namespace."""
        return self.run("kubectl", "-n", NAMESPACE, *argv, given=given, within=within)

    def apply(self, *documents: str) -> None:
        """Apply YAML documents."""
        self.kubectl("apply", "-f", "-", given="\n---\n".join(documents))

    def helm(self, *argv: str, within: float = 300.0) -> str:
        """Run helm in the namespace."""
        return self.run("helm", "-n", NAMESPACE, *argv, within=within)

    def install(self, *options: str) -> str:
        """Install or upgrade the gateway and wait until it is ready."""
        values = ("-f", self.values) if self.values else ()
        return self.helm(
            *("upgrade", "--install", "patchbay", str(CHARTS / "patchbay"), *values),
            # Two, so that one can be killed.
            *("--set", "operator.replicaCount=2", *options, "--wait", "--timeout", "400s"),
            within=450,
        )

    def document(self, kind: str, name: str) -> dict[str, Any]:
        """Return an object."""
        found: dict[str, Any] = json.loads(self.kubectl("get", kind, name, "-o", "json"))
        return found

    def items(self, kind: str, *options: str) -> list[dict[str, Any]]:
        """Return the objects of a kind."""
        found: list[dict[str, Any]] = json.loads(self.kubectl("get", kind, *options, "-o", "json"))[
            "items"
        ]
        return found

    def condition(self, kind: str, name: str, type_: str) -> dict[str, str]:
        """Return a condition of an object; an empty mapping when it is not there."""
        status = self.document(kind, name).get("status") or {}
        found = [c for c in status.get("conditions") or () if c["type"] == type_]
        return found[0] if found else {}

    def ready(self, *names: str) -> None:
        """Wait until resources are ready."""
        self.kubectl("wait", "--for=condition=Ready", *names, "--timeout=180s", within=220)

    def rolled_out(self, *deployments: str) -> None:
        """Wait until Deployments have rolled out."""
        for name in deployments:
            self.kubectl("rollout", "status", f"deployment/{name}", "--timeout=240s", within=260)

    def secret(self, name: str, **values: str) -> None:
        """Make or change a Secret."""
        document = {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": name},
            "stringData": values,
        }
        self.apply(json.dumps(document))

    def mount(self, name: str, program: str) -> None:
        """Keep a program of this folder in the ConfigMap *name*, for pods to run."""
        text = self.kubectl(
            *("create", "configmap", name, f"--from-file=main.py={PROGRAMS / program}"),
            *("--dry-run=client", "-o", "yaml"),
        )
        self.apply(text)


def hook(variable: str, requirement: str) -> Callable[..., None]:
    """Return the cluster's own command for what kubectl cannot do; skip the test by name without one."""
    need(requirement)
    command = os.environ[variable]

    def run(*argv: str) -> None:
        subprocess.run([*shlex.split(command), *argv], check=True, timeout=200)

    return run


async def off(call: Callable[..., Any], *argv: Any) -> Any:
    """Run a blocking call beside the load."""
    return await asyncio.to_thread(call, *argv)


async def eventually(ask: Callable[[], Any], what: str, *, within: float = 120.0) -> Any:
    """Return the first true answer of the blocking *ask*; fail after *within* seconds."""
    deadline = time.monotonic() + within
    while True:
        found = await asyncio.to_thread(ask)
        if found:
            return found
        assert time.monotonic() < deadline, f"not within {within:.0f} s: {what}; last: {found!r}"
        await asyncio.sleep(0.5)  # the cluster's work; it is asked, not told


def chat(text: str, model: str = "echo", **more: Any) -> dict[str, Any]:
    """Return the body of a chat."""
    return {"model": model, "messages": [{"role": "user", "content": text}], **more}


async def post(
    cluster: Cluster, client: httpx.AsyncClient, body: dict[str, Any], **headers: str
) -> httpx.Response:
    """Ask for a chat completion."""
    return await client.post(
        f"{cluster.url}/v1/chat/completions",
        headers={"authorization": f"Bearer {cluster.key}", **headers},
        json=body,
        timeout=90,
    )


async def answer(cluster: Cluster, text: str = "hello", model: str = "echo") -> str:
    """Return what a model says; AssertionError with the status when it fails."""
    async with httpx.AsyncClient() as client:
        got = await post(cluster, client, chat(text, model))
    assert got.status_code == 200, got.text
    return content(got.json())


def content(document: dict[str, Any]) -> str:
    """Return the text of a chat completion."""
    text: str = document["choices"][0]["message"]["content"]
    return text


@dataclass(frozen=True, slots=True)
class Stream:
    """What came of a streamed chat."""

    words: tuple[str, ...]
    whole: bool
    """Whether it ended as a stream should."""


async def stream(
    cluster: Cluster,
    client: httpx.AsyncClient,
    body: dict[str, Any],
    *,
    began: Callable[[str], None] | None = None,
    **headers: str,
) -> Stream:
    """Read a streamed chat to its end; *began* is told the first word."""
    words: list[str] = []
    done = False
    request = client.stream(
        "POST",
        f"{cluster.url}/v1/chat/completions",
        headers={"authorization": f"Bearer {cluster.key}", **headers},
        json={**body, "stream": True},
        timeout=180,
    )
    async with request as got:
        async for line in got.aiter_lines():
            if line == "data: [DONE]":
                done = True
            elif line.startswith("data: "):
                choices: Any = json.loads(line[6:]).get("choices") or ({},)
                word = (choices[0].get("delta") or {}).get("content")
                if word:
                    words.append(word.strip())
                    if len(words) == 1 and began is not None:
                        began(word.strip())
    return Stream(tuple(words), done)


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer under load."""

    text: str
    at: float
    """Unix seconds of its end."""


class Load:
    """Requests one after the other from some clients, until told to stop."""

    def __init__(
        self, cluster: Cluster, clients: int = 4, *, model: str = "echo", pause: float = 0.05
    ) -> None:
        self.cluster = cluster
        self.clients = clients
        self.model = model
        self.pause = pause
        self.answers: list[Answer] = []
        self.failed: list[str] = []

    async def __aenter__(self) -> Self:
        self._stop = asyncio.Event()
        self._tasks = [asyncio.create_task(self._run()) for _ in range(self.clients)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stop.set()
        await asyncio.gather(*self._tasks)

    @property
    def answered(self) -> int:
        """Number of answers so far."""
        return len(self.answers)

    async def more(self, count: int = 20, within: float = 60.0) -> None:
        """Wait until *count* more answers have come."""
        wanted = len(self.answers) + count
        await eventually(lambda: len(self.answers) >= wanted, "answers under load", within=within)

    async def _run(self) -> None:
        async with httpx.AsyncClient() as client:
            while not self._stop.is_set():
                try:
                    got = await post(self.cluster, client, chat("hello", self.model))
                    if got.status_code == 200:
                        self.answers.append(Answer(content(got.json()), time.time()))
                    else:
                        self.failed.append(f"{time.time():.1f} {got.status_code} {got.text[:200]}")
                except httpx.HTTPError as error:
                    self.failed.append(f"{time.time():.1f} {error!r}")
                await asyncio.sleep(self.pause)
