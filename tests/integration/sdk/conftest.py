"""
The fake upstream itself and both topologies before it, started once for all tests of this folder.

Tests here only ask; they hurt nothing and change no configuration. Those that do are in ../topology. What
the official SDKs do is asked in three places (`place`): of the provider directly, of `patchbay up` and of the
four services. Credentials never rest here, so that a failure that one test wants is none for the next, but
for those of the models `tired-…`.
"""

from __future__ import annotations

import contextlib
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anthropic
import httpx
import openai
import pytest
from tests.harness.topology import Services, Up, make_config
from tests.harness.upstream import Upstream

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its typing is older than this Python's
    from google import genai

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


def sdk_config(upstream: Upstream) -> dict[str, Any]:
    """Return a configuration with the fake as a provider of each dialect."""
    config = make_config(upstream.url, client_keys=CLIENT_KEYS)
    providers = config["providers"]
    providers[1]["models"].append({"name": "fake-model", "alias": "public-name"})
    host = upstream.url.removesuffix("/v1")
    for plugin in ("claude", "gemini"):
        providers.append(
            {
                "name": f"fake-{plugin}",
                "plugin": plugin,
                "base_url": host,
                "attempt_header": "x-patchbay-attempt",
                "models": [f"{plugin}-fake"],
                "credentials": [{"id": plugin, "api_key": f"test-{plugin}-key"}],
            }
        )
    for provider in providers:
        provider["cooldown"] = {"enabled": False}
    for name, plugin in (
        ("openai", "openai-compatible"), ("claude", "claude"), ("gemini", "gemini")
    ):  # fmt: skip
        providers.append(
            {
                "name": f"tired-{name}",
                "plugin": plugin,
                "base_url": upstream.url if name == "openai" else host,
                "models": [f"tired-{name}"],
                "credentials": [{"id": f"tired-{name}", "api_key": "test-tired-key"}],
            }
        )
    return config


@pytest.fixture(scope="session")
def gateways(
    tmp_path_factory: pytest.TempPathFactory, upstream: Upstream
) -> Iterator[Callable[[str], Gateway]]:
    """Start each topology when it is first asked for; all stop at the end."""
    made: dict[str, Gateway] = {}

    def get(kind: str) -> Gateway:
        if kind not in made:
            config = sdk_config(upstream)
            directory = tmp_path_factory.mktemp(kind)
            if kind == "open":
                # No key at all, nothing of ours in answers, and impatient with silent providers.
                config |= {"client_keys": [], "headers": {"patchbay": False}}
                config["streaming"] = {"first_byte_grace": "200ms", "keepalive": "100ms"}
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
        timeout=60,
        http_client=openai.DefaultAsyncHttpxClient(verify=False),
    ) as client:
        yield client


@pytest.fixture
async def http(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    """Plain HTTP with a key."""
    async with httpx.AsyncClient(
        base_url=gateway.base_url,
        headers=gateway.headers(),
        timeout=60,
        trust_env=False,
        verify=False,
    ) as client:
        yield client


@pytest.fixture
async def keyless(gateway: Gateway) -> AsyncIterator[httpx.AsyncClient]:
    """Plain HTTP without a key."""
    async with httpx.AsyncClient(
        base_url=gateway.base_url, timeout=60, trust_env=False, verify=False
    ) as client:
        yield client


# The official SDKs, in three places.


@dataclass(frozen=True)
class Place:
    """Where an SDK is pointed."""

    kind: str
    """`direct`, `up`, `services` or `open`."""
    host: str
    """URL without a path."""
    key: str

    @property
    def is_gateway(self) -> bool:
        """Whether it is not the provider itself."""
        return self.kind != "direct"

    def openai(self) -> openai.OpenAI:
        """Return OpenAI's SDK, without retries; it loads no certificates, which costs 0.1 s."""
        return openai.OpenAI(
            base_url=f"{self.host}/v1",
            api_key=self.key,
            max_retries=0,
            timeout=60,
            http_client=openai.DefaultHttpxClient(verify=False),
        )

    def anthropic(self) -> anthropic.Anthropic:
        """Return Anthropic's SDK, likewise."""
        return anthropic.Anthropic(
            base_url=self.host,
            api_key=self.key,
            max_retries=0,
            timeout=60,
            http_client=anthropic.DefaultHttpxClient(verify=False),
        )

    def google(self) -> genai.Client:
        """Return Google's SDK, likewise."""
        return genai.Client(
            api_key=self.key,
            http_options=genai.types.HttpOptions(
                base_url=self.host, timeout=60_000, client_args={"verify": False}
            ),
        )


@pytest.fixture(scope="session")
def places(gateways: Callable[[str], Gateway], upstream: Upstream) -> Callable[[str], Place]:
    """Return the place of each kind."""

    def get(kind: str) -> Place:
        if kind == "direct":
            return Place(kind, upstream.url.removesuffix("/v1"), "test-direct-key")
        gateway = gateways(kind)
        return Place(kind, gateway.base_url, gateway.client_key)

    return get


@pytest.fixture(scope="session", params=["direct", "up", "services"])
def place(request: pytest.FixtureRequest, places: Callable[[str], Place]) -> Place:
    """One place after the other."""
    return places(request.param)


@pytest.fixture(scope="session")
def openai_sdk(place: Place) -> Iterator[openai.OpenAI]:
    """OpenAI's SDK in each place."""
    with place.openai() as client:
        yield client


@pytest.fixture(scope="session")
def anthropic_sdk(place: Place) -> Iterator[anthropic.Anthropic]:
    """Anthropic's SDK in each place."""
    with place.anthropic() as client:
        yield client


@pytest.fixture(scope="session")
def google_sdk(place: Place) -> Iterator[genai.Client]:
    """Google's SDK in each place."""
    with place.google() as client:
        yield client
