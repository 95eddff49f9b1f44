"""What only a gateway can fail with, in each official SDK: its own classes and hints that it obeys."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import anthropic
import openai
import pytest
from google.genai import errors, types
from tests.harness.observing import until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.harness.upstream import Upstream
    from tests.integration.sdk.conftest import Gateway, Place

HELLO: Any = [{"role": "user", "content": "hello"}]
WORDS = "".join(f"word{i} " for i in range(16))
SDKS = ["openai", "anthropic", "google"]
MODELS = {"openai": "fake-model", "anthropic": "claude-fake", "google": "gemini-fake"}
TIRED = {"openai": "tired-openai", "anthropic": "tired-claude", "google": "tired-gemini"}


@pytest.fixture(params=["up", "services"])
def gate(request: pytest.FixtureRequest, places: Callable[[str], Place]) -> Place:
    """One gateway after the other."""
    return places(request.param)


class Client:
    """One SDK, asked for text."""

    def __init__(self, place: Place, name: str, key: str = "") -> None:
        if key:
            place = type(place)(place.kind, place.host, key)
        self._name = name
        self._sdk: Any = getattr(place, name)()

    def say(self, model: str = "", fake: Any = None, *, stream: bool = False) -> str:
        """Return the text of an answer."""
        model = model or MODELS[self._name]
        told: Any = {"extra_body": {"fake": fake or {}}}
        if self._name == "openai":
            if stream:
                chunks = self._sdk.chat.completions.create(
                    model=model, messages=HELLO, stream=True, **told
                )
                return "".join(c.choices[0].delta.content or "" for c in chunks)
            answer = self._sdk.chat.completions.create(model=model, messages=HELLO, **told)
            return str(answer.choices[0].message.content)
        if self._name == "anthropic":
            more = {"model": model, "max_tokens": 9, "messages": HELLO}
            if stream:
                with self._sdk.messages.stream(**more, **told) as events:
                    return "".join(events.text_stream)
            return str(self._sdk.messages.create(**more, **told).content[0].text)
        config = types.GenerateContentConfig(http_options=types.HttpOptions(**told))
        call: Any = {"model": model, "contents": "hello", "config": config}
        if stream:
            return "".join(c.text or "" for c in self._sdk.models.generate_content_stream(**call))
        return str(self._sdk.models.generate_content(**call).text)

    def close(self) -> None:
        """Close its connections."""
        self._sdk.close()


@pytest.fixture(params=SDKS)
def client(gate: Place, request: pytest.FixtureRequest) -> Iterator[Client]:
    """One SDK after the other."""
    made = Client(gate, request.param)
    yield made
    made.close()


NOT_FOUND = (openai.NotFoundError, anthropic.NotFoundError, errors.ClientError)
UNAUTHENTICATED = (openai.AuthenticationError, anthropic.AuthenticationError, errors.ClientError)
SERVER = (openai.InternalServerError, anthropic.InternalServerError, errors.ServerError)
LIMITED = (openai.RateLimitError, anthropic.RateLimitError, errors.ClientError)


def status(error: BaseException) -> int:
    """Return the HTTP status that an SDK's error names."""
    return int(getattr(error, "status_code", 0) or getattr(error, "code", 0))


@pytest.mark.parametrize("stream", [False, True])
def test_unknown_model(client: Client, *, stream: bool) -> None:
    with pytest.raises(NOT_FOUND) as caught:
        client.say("nope", stream=stream)
    assert status(caught.value) == 404


@pytest.mark.parametrize("name", SDKS)
def test_unknown_client_key(gate: Place, name: str) -> None:
    stranger = Client(gate, name, key="test-unknown-key")
    with pytest.raises(UNAUTHENTICATED) as caught:
        stranger.say()
    assert status(caught.value) == 401
    stranger.close()


@pytest.mark.parametrize("refused", [401, 403])
def test_refused_credential_is_none_of_the_clients(client: Client, refused: int) -> None:
    """Nobody shall throw away a good client key because the gateway's own was refused."""
    with pytest.raises(SERVER) as caught:
        client.say(fake={"status": refused, "error": "bad key test-upstream-key-1"})
    assert status(caught.value) in {502, 503}
    assert "test-upstream-key" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "fake"),
    [
        ("anthropic", {"error": "Your credit balance is too low to access the API"}),
        ("google", {"error": "API key not valid.", "reason": "API_KEY_INVALID"}),
    ],
)
def test_refused_credential_told_by_a_400_is_none_of_the_clients(
    gate: Place, name: str, fake: dict[str, str]
) -> None:
    client = Client(gate, name)
    with pytest.raises(SERVER) as caught:
        client.say(fake={"status": 400, **fake})
    client.close()
    assert status(caught.value) in {502, 503}
    assert fake["error"] not in str(caught.value)


def rests(gateway: Gateway, model: str) -> bool:
    """Whether the one credential for *model* rests."""
    found = gateway.managed(f"credentials/{model}")
    return [each["state"] for each in found["models"]] == ["cooling"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("name", SDKS)
def test_resting_credentials_are_a_rate_limit_with_a_hint(
    gate: Place,
    gateways: Callable[[str], Gateway],
    upstream: Upstream,
    name: str,
    *,
    stream: bool,
) -> None:
    client = Client(gate, name)
    model = TIRED[name]
    with pytest.raises(LIMITED):
        # The hour of one run is enough for all of its tests: they ask again and are told the rest.
        client.say(model, {"status": 429, "retry_after": "600"}, stream=stream)
    # The answer does not wait until every scheduler has heard of the failure.
    until(lambda: rests(gateways(gate.kind), model), 60, f"{model} does not rest")
    asked = len([r for r in upstream.records() if r["model"] == model])
    with pytest.raises(LIMITED) as caught:
        client.say(model, stream=stream)
    client.close()
    error: Any = caught.value
    assert status(error) == 429
    assert len([r for r in upstream.records() if r["model"] == model]) == asked
    headers = error.response.headers
    assert 1 <= int(headers["retry-after"]) <= 600
    if isinstance(error, errors.ClientError):
        assert error.status == "RESOURCE_EXHAUSTED"
        assert error.details["error"]["details"][-1]["retryDelay"].endswith("s")
    else:
        assert headers["x-should-retry"] == "true"


@pytest.mark.parametrize("name", SDKS)
def test_keepalives_before_the_first_word_disturb_nobody(
    places: Callable[[str], Place], name: str
) -> None:
    client = Client(places("open"), name)
    assert client.say(fake={"stall": "body", "stall_s": 0.8}, stream=True) == WORDS
    assert client.say(fake={"stall": "4", "stall_s": 0.5}, stream=True) == WORDS
    client.close()


@pytest.mark.parametrize("name", SDKS)
def test_failure_after_keepalives_is_the_sdks_error(
    places: Callable[[str], Place], name: str
) -> None:
    """The status has gone when the provider fails; what follows must not look like an answer."""
    client = Client(places("open"), name)
    fake = {"stall": "head", "stall_s": 0.6, "status": 500, "error": "late"}
    with pytest.raises((openai.APIError, anthropic.APIStatusError, errors.APIError), match="late"):
        client.say(fake=fake, stream=True)
    client.close()


def test_second_credential_answers_where_the_first_failed(gate: Place, upstream: Upstream) -> None:
    """Without a retry of the SDK: this is what the gateway is for."""
    client = Client(gate, "openai")
    mark = uuid.uuid4().hex
    assert client.say(fake={"status": 503, "fails": 1, "mark": mark}) == WORDS
    assert len([r for r in upstream.records() if mark in r["body"]]) == 2
    client.close()
