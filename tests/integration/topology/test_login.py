"""`patchbay login` against an identity server, with real processes in both topologies."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from tests.harness.identity import Identity
from tests.harness.observing import until
from tests.harness.processes import Verb
from tests.harness.topology import Services, Up, make_config
from tests.harness.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.harness.topology import Gateway

World = tuple["Gateway", Identity, Upstream]
BODY = {"model": "mine", "messages": [{"role": "user", "content": "hi"}]}
CALLBACK = "/v0/management/oauth-callback"


@pytest.fixture(scope="module", params=["up", "services"])
def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """A gateway with two accounts that have no tokens yet."""
    directory = tmp_path_factory.mktemp(f"login-{request.param}")
    identity, upstream = (
        Identity(directory, clients=["app:test-client-secret"]),
        Upstream(directory),
    )
    identity.process.start()
    upstream.process.start()
    oauth2 = {
        "token_url": identity.token_url,
        "client_id": "app",
        "client_secret": "test-client-secret",
        "authorization_url": f"{identity.url}/authorize",
        "device_authorization_url": f"{identity.url}/device/code",
    }
    config = make_config(upstream.url)
    config["providers"].append(
        {
            "name": "accounts",
            "plugin": "openai-compatible",
            "base_url": upstream.url,
            "models": [{"name": "fake-model", "alias": "mine"}],
            "cooldown": {"enabled": False},
            "credentials": [{"id": "ann", "oauth2": oauth2}, {"id": "bob", "oauth2": oauth2}],
        }
    )
    gateway = (Up if request.param == "up" else Services)(directory, config)
    gateway.start()
    yield gateway, identity, upstream
    gateway.stop()
    upstream.process.stop()
    identity.process.stop()


def login(gateway: Gateway, *args: str) -> Verb:
    """Start the verb."""
    return Verb("login", *args, "--no-browser", env=gateway.management_env)


def credential(gateway: Gateway, id_: str) -> dict[str, Any]:
    """Return how a credential stands."""
    found: dict[str, Any] = gateway.managed(f"credentials/{id_}")
    return found


def token_used(gateway: Gateway, upstream: Upstream) -> str:
    """Return the token that reached the provider, once the model is served."""
    deadline = time.monotonic() + 60
    while True:
        answer = httpx.post(
            f"{gateway.base_url}/v1/chat/completions",
            json=BODY,
            headers=gateway.headers(),
            timeout=60,
            verify=False,
        )
        if answer.status_code == 200:
            header = upstream.records()[-1]["headers"]["authorization"]
            return str(header).removeprefix("Bearer ")
        assert time.monotonic() < deadline, answer.text
        time.sleep(0.1)  # polls other processes


def test_login_by_redirect_gives_the_credential_its_tokens(world: World) -> None:
    gateway, identity, upstream = world
    running = login(gateway, "accounts", "--credential", "ann")
    url = running.first_line().removeprefix("Open ").strip()
    assert "code_challenge_method=S256" in url
    page = httpx.get(url, follow_redirects=True, timeout=60, verify=False)
    assert page.status_code == 200, page.text
    assert page.url.path == CALLBACK
    # The state was good for once.
    assert httpx.get(page.url, timeout=60, verify=False).status_code == 404
    done = running.end()
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Credential ann is logged in.\n"
    assert identity.valid(token_used(gateway, upstream))
    until(lambda: credential(gateway, "ann")["version"] > 0)


def test_login_on_another_device_waits_for_the_person(world: World) -> None:
    gateway, identity, _ = world
    running = login(gateway, "accounts", "--credential", "bob", "--device")
    url = running.first_line()
    code = re.search(r"user_code=([0-9A-F]+)", url)
    assert code is not None, url
    httpx.post(f"{identity.url}/__approve", params={"user_code": code[1]}, timeout=60, verify=False)
    done = running.end()
    assert done.returncode == 0, done.stderr
    until(lambda: credential(gateway, "bob")["version"] > 0)


def test_refusal_of_the_provider_ends_the_login(world: World) -> None:
    gateway, _, _ = world
    running = login(gateway, "accounts", "--credential", "bob")
    state = re.search(r"[?&]state=([^&\s]+)", running.first_line())
    assert state is not None
    httpx.get(
        gateway.management_url + CALLBACK,
        params={"state": state[1], "error": "access_denied"},
        timeout=60,
        verify=False,
    )
    done = running.end()
    assert done.returncode == 1
    assert "access_denied" in done.stderr


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (["accounts"], "ann, bob"),
        (["fake"], "oauth2"),
        (["accounts", "--credential", "nobody"], "oauth2"),
    ],
)
def test_login_that_cannot_be_says_why(world: World, args: list[str], why: str) -> None:
    done = login(world[0], *args).end()
    assert done.returncode == 1
    assert why in done.stderr


def test_callback_of_no_login_is_refused_and_others_need_a_key(world: World) -> None:
    gateway, _, _ = world
    url = gateway.management_url
    with httpx.Client(base_url=url, timeout=60, verify=False) as http:
        assert http.get(f"{CALLBACK}?state=x&code=y").status_code == 404
        assert http.get(CALLBACK).status_code == 404
        assert http.post("/v0/management/login", json={}).status_code == 401
        assert http.get("/v0/management/login/x").status_code == 401
