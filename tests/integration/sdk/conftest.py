"""
Both topologies with the fake upstream behind, started once for all tests of this folder.

Tests here only ask; they hurt nothing and change no configuration. Those that do are in ../topology.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import httpx
import openai
import pytest
from tests.harness.topology import Services, Up, make_config
from tests.harness.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    Gateway = Up | Services

CLIENT_KEYS = [
    {"name": "tests", "key": "test-client-key", "models": ["*"]},
    {"name": "limited", "key": "test-limited-key", "models": ["ech*", "public-*"]},
]


@pytest.fixture(scope="session")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Upstream]:
    """The provider behind all gateways."""
    fake = Upstream(tmp_path_factory.mktemp("upstream"))
    fake.process.start()
    yield fake
    fake.process.kill()


@pytest.fixture(scope="session")
def gateways(
    tmp_path_factory: pytest.TempPathFactory, upstream: Upstream
) -> Iterator[Callable[[str], Gateway]]:
    """Start each topology when it is first asked for; all stop at the end."""
    made: dict[str, Gateway] = {}

    def get(kind: str) -> Gateway:
        if kind not in made:
            config = make_config(upstream.url, client_keys=CLIENT_KEYS)
            config["providers"][1]["models"].append({"name": "fake-model", "alias": "public-name"})
            directory = tmp_path_factory.mktemp(kind)
            if kind == "open":
                # No key at all, and nothing of ours in answers.
                config |= {"client_keys": [], "headers": {"patchbay": False}}
            made[kind] = (
                Services(directory, config) if kind == "services" else Up(directory, config)
            )
            made[kind].start()
        return made[kind]

    with contextlib.ExitStack() as stack:
        yield get
        for gateway in made.values():
            stack.callback(gateway.stop)


@pytest.fixture(params=["up", "services"])
def gateway(request: pytest.FixtureRequest, gateways: Callable[[str], Gateway]) -> Gateway:
    """One topology after the other."""
    return gateways(request.param)


@pytest.fixture
def open_gateway(gateways: Callable[[str], Gateway]) -> Gateway:
    """`patchbay up` without client keys and without `x-patchbay-*`."""
    return gateways("open")


@pytest.fixture
async def sdk(gateway: Gateway) -> AsyncIterator[openai.AsyncOpenAI]:
    """The official SDK, without retries; it loads no certificates, which costs 0.1 s."""
    async with openai.AsyncOpenAI(
        base_url=f"{gateway.base_url}/v1",
        api_key=gateway.client_key,
        max_retries=0,
        timeout=20,
        http_client=openai.DefaultAsyncHttpxClient(verify=False),
    ) as client:
        yield client


@pytest.fixture
async def http(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    """Plain HTTP with a key."""
    async with httpx.AsyncClient(
        base_url=gateway.base_url,
        headers=gateway.headers(),
        timeout=20,
        trust_env=False,
        verify=False,
    ) as client:
        yield client


@pytest.fixture
async def keyless(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    """Plain HTTP without a key."""
    async with httpx.AsyncClient(
        base_url=gateway.base_url, timeout=20, trust_env=False, verify=False
    ) as client:
        yield client
