"""
Providers behind TLS, behind HTTP proxies and behind both, as `patchbay up` reaches them in its own process.

The authority that signed their certificates is named by SSL_CERT_FILE and by nothing else. The upstream is
the fake one; what is before it only moves bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from tests.harness.authority import Authority
from tests.harness.identity import Identity
from tests.harness.observing import until
from tests.harness.relays import Proxy, Relays
from tests.harness.topology import Up, make_config
from tests.harness.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import Iterator

PASSWORD = "test-proxy-password"


@dataclass(frozen=True)
class World:
    """A gateway and what it goes through."""

    gateway: Up
    upstream: Upstream
    identity: Identity
    open: Proxy
    guarded: Proxy
    of_environment: Proxy
    secure: int
    """Port of TLS before the upstream."""
    tokens: int
    """Port of TLS before the identity server."""

    def ask(self, model: str, *, stream: bool = False) -> httpx.Response:
        """Ask *model* for a chat."""
        return httpx.post(
            f"{self.gateway.base_url}/v1/chat/completions",
            json={
                "model": model,
                "messages": [{"role": "user", "content": "hi"}],
                "stream": stream,
            },
            headers=self.gateway.headers(),
            timeout=60,
            trust_env=False,
            verify=False,
        )


def provider(name: str, base_url: str, **more: Any) -> dict[str, Any]:
    """Return a provider of one model, of its own name."""
    return {
        "name": name,
        "plugin": "openai-compatible",
        "base_url": base_url,
        "models": [{"name": "fake-model", "alias": name}],
        "cooldown": {"enabled": False},
        "credentials": [{"id": name, "api_key": "test-upstream-key"}],
        **more,
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    directory = tmp_path_factory.mktemp("tls")
    trusted, other = Authority(directory), Authority(directory, "other")
    upstream, relays = Upstream(directory), Relays()
    identity = Identity(directory, families=["a"])
    relays.start()
    upstream.process.start()
    identity.process.start()
    secure = relays.tls(trusted.server("localhost"), upstream.port)
    strange = relays.tls(other.server("localhost"), upstream.port)
    tokens = relays.tls(trusted.server("localhost"), identity.port)
    plain, guarded = relays.proxy(), relays.proxy(password=PASSWORD)
    of_environment = relays.proxy()
    seed = directory / "seed"
    seed.write_text("test-refresh-a-0")
    account = {
        "id": "account",
        "oauth2": {
            "token_url": f"https://localhost:{tokens}/token",
            "client_id": "test-client",
            "refresh_token_file": str(seed),
        },
    }
    with_password = f"http://tests:{PASSWORD}@127.0.0.1:{guarded.port}"
    wrong_password = f"http://tests:wrong@127.0.0.1:{guarded.port}"
    config = make_config(upstream.url)
    config["providers"] = [
        provider("direct", f"https://localhost:{secure}/v1"),
        provider("untrusted", f"https://localhost:{strange}/v1"),
        provider("misnamed", f"https://127.0.0.1:{secure}/v1"),
        provider("tunnelled", f"https://localhost:{secure}/v1", proxy_url=plain.url),
        provider("forwarded", upstream.url, proxy_url=plain.url),
        provider("guarded", f"https://localhost:{secure}/v1", proxy_url=with_password),
        provider(
            "referring",
            f"https://localhost:{secure}/v1",
            proxy_url=f"http://${{PROXY_AUTH}}@127.0.0.1:{guarded.port}",
        ),
        provider("refused", f"https://localhost:{secure}/v1", proxy_url=wrong_password),
        provider("nowhere", f"https://localhost:{secure}/v1", proxy_url="http://127.0.0.1:1"),
        # By a name that is not this machine's own: those never go through the environment's proxy.
        provider("environment", "http://provider.patchbay.test/v1"),
        provider(
            "account",
            f"https://localhost:{secure}/v1",
            proxy_url=plain.url,
            credentials=[account],
        ),
    ]
    gateway = Up(
        directory,
        config,
        {
            "SSL_CERT_FILE": str(trusted.path),
            "HTTP_PROXY": of_environment.url,
            "NO_PROXY": "other.test",
            "PROXY_AUTH": f"tests:{PASSWORD}",
        },
    )
    of_environment.names["provider.patchbay.test"] = upstream.port
    gateway.start()
    yield World(gateway, upstream, identity, plain, guarded, of_environment, secure, tokens)
    gateway.stop()
    identity.process.stop()
    upstream.process.stop()
    relays.stop()


@pytest.mark.parametrize("model", ["direct", "tunnelled", "forwarded", "guarded", "referring"])
def test_answers_and_streams_arrive_whole(world: World, model: str) -> None:
    answer = world.ask(model)
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"]
    stream = world.ask(model, stream=True)
    assert stream.status_code == 200, stream.text
    assert stream.content.endswith(b"data: [DONE]\n\n")


@pytest.mark.parametrize("model", ["untrusted", "misnamed"])
def test_certificate_that_proves_nothing_gets_no_request(world: World, model: str) -> None:
    """Neither one of an unknown authority nor one for another name; the client is told without details."""
    before = len(world.upstream.records())
    answer = world.ask(model)
    assert answer.status_code in {502, 503}, answer.text
    assert answer.json()["error"]["message"]
    assert "localhost" not in answer.text
    assert len(world.upstream.records()) == before


def test_proxy_sees_where_a_tunnel_leads_and_nothing_else(world: World) -> None:
    assert world.ask("tunnelled").status_code == 200
    assert f"CONNECT localhost:{world.secure} HTTP/1.1" in world.open.asked
    tunnels = [head for head in world.open.seen if head.startswith(b"CONNECT")]
    assert not any(b"test-upstream-key" in head or b"/v1" in head for head in tunnels)


@pytest.mark.parametrize("model", ["refused", "nowhere"])
def test_proxy_that_refuses_or_is_away_is_a_failed_attempt(world: World, model: str) -> None:
    """The upstream sees nothing, the client an error of its dialect that names no address and no password."""
    before = len(world.upstream.records())
    answer = world.ask(model)
    assert answer.status_code in {502, 503}, answer.text
    for secret in (PASSWORD, "wrong", "127.0.0.1", "localhost"):
        assert secret not in answer.text
    assert len(world.upstream.records()) == before


def test_proxy_of_the_environment_is_used(world: World) -> None:
    answer = world.ask("environment")
    assert answer.status_code == 200, answer.text
    assert any("provider.patchbay.test" in line for line in world.of_environment.asked)


def test_account_refreshes_over_tls_and_its_token_goes_through_the_proxy(world: World) -> None:
    # The first refresh begins with the process; until it is done the answer says so.
    until(lambda: world.ask("account").status_code == 200, 60, "the account has a token")
    assert world.identity.counts() == {"a.0": 1}
    assert f"CONNECT localhost:{world.tokens} HTTP/1.1" in world.open.asked
