"""Who a client is: places of a key, allow-lists, open access."""

import pytest

from patchbay import errors
from patchbay_gateway.edge.auth import Authenticator, candidates
from patchbay_gateway.edge.exchange import Head
from patchbay_gateway.edge.models import cards
from patchbay_gateway.plugins.snapshot import (
    ClientKeyEntry,
    CredentialEntry,
    ModelEntry,
    ProviderEntry,
    SettingsEntry,
    Snapshot,
)

SNAPSHOT = Snapshot(
    version=1,
    client_keys=(
        ClientKeyEntry("all", "d:test-all"),
        ClientKeyEntry("some", "d:test-some", models=("gpt-*", "team/[ab]"), tenant="t2"),
        ClientKeyEntry("none", "d:test-none", models=()),
        ClientKeyEntry("old", "old:test-old"),
    ),
    providers=(
        ProviderEntry(
            "p",
            "echo",
            models=(ModelEntry("gpt-1"), ModelEntry("raw", alias="claude-x")),
            credentials=(
                CredentialEntry("c", "x", "none", 1, excluded_models=("claude-*",)),
                CredentialEntry("off", "x", "none", 1, disabled=True),
            ),
        ),
        ProviderEntry("free", "echo", models=(ModelEntry("gpt-free"),)),
    ),
)
OPEN = Snapshot(version=1, settings=SettingsEntry(open_access=True))


def head(*headers: tuple[str, str], query: str = "", method: str = "GET") -> Head:
    return Head(
        method,
        "/",
        query.encode(),
        [(n.encode(), v.encode()) for n, v in headers],
        "127.0.0.1",
    )


@pytest.fixture
def auth() -> Authenticator:
    return Authenticator(lambda key: (f"d:{key}", f"old:{key}"), allow_open=True)


@pytest.mark.parametrize(
    ("asked", "source"),
    [
        (head(("authorization", "Bearer test-all")), "authorization"),
        (head(("authorization", "bearer  test-all ")), "authorization"),
        (head(("authorization", "test-all")), "authorization"),
        (head(("x-goog-api-key", "test-all")), "x-goog-api-key"),
        (head(("x-api-key", "test-all")), "x-api-key"),
        (head(query="alt=sse&key=test%2Dall"), "query-key"),
        (head(("authorization", "Bearer other"), ("x-api-key", "test-all")), "x-api-key"),
        (head(("authorization", "Bearer "), query="key=test-all"), "query-key"),
    ],
)
def test_key_is_found_in_four_places(auth: Authenticator, asked: Head, source: str) -> None:
    client = auth.authenticate(asked, SNAPSHOT)
    assert (client.name, client.source) == ("all", source)


def test_candidates_are_in_order() -> None:
    asked = head(
        ("x-api-key", "3"), ("x-goog-api-key", "2"), ("authorization", "Bearer 1"), query="key=4"
    )
    assert [key for _, key in candidates(asked)] == ["1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (head(), "MISSING_KEY"),
        (head(("authorization", "Bearer ")), "MISSING_KEY"),
        (head(query="auth_token=test-all&monkey=test-all"), "MISSING_KEY"),
        (head(("authorization", "Bearer wrong")), "UNKNOWN_KEY"),
        (head(("authorization", "Bearer " + "x" * 5000)), "UNKNOWN_KEY"),
        (head(("authorization", "Bearer tést")), "UNKNOWN_KEY"),
    ],
)
def test_no_or_unknown_key_is_refused(auth: Authenticator, asked: Head, reason: str) -> None:
    with pytest.raises(errors.Unauthenticated) as caught:
        auth.authenticate(asked, SNAPSHOT)
    assert caught.value.reason == reason


def test_no_keys_configured_means_nobody(auth: Authenticator) -> None:
    with pytest.raises(errors.Unauthenticated):
        auth.authenticate(head(("x-api-key", "test-all")), Snapshot(version=1))


def test_key_of_the_previous_root_still_works(auth: Authenticator) -> None:
    assert auth.authenticate(head(("x-api-key", "test-old")), SNAPSHOT).name == "old"


def test_revoked_key_stops_with_the_next_snapshot(auth: Authenticator) -> None:
    asked = head(("x-api-key", "test-all"))
    auth.authenticate(asked, SNAPSHOT)
    with pytest.raises(errors.Unauthenticated):
        auth.authenticate(asked, Snapshot(version=2, client_keys=SNAPSHOT.client_keys[1:]))


def test_allow_list_is_globs(auth: Authenticator) -> None:
    some = auth.authenticate(head(("x-api-key", "test-some")), SNAPSHOT)
    assert some.tenant == "t2"
    allowed = [m for m in ("gpt-5", "team/a", "team/c", "xgpt-5", "claude") if some.allows(m)]
    assert allowed == ["gpt-5", "team/a"]
    nothing = auth.authenticate(head(("x-api-key", "test-none")), SNAPSHOT)
    assert not nothing.allows("gpt-5")
    assert "test-some" not in repr(some)


def test_cards_are_what_key_and_credentials_leave(auth: Authenticator) -> None:
    everything = auth.authenticate(head(("x-api-key", "test-all")), SNAPSHOT)
    found = [(card.id, card.owned_by) for card in cards(SNAPSHOT, everything)]
    assert found == [("gpt-1", "p"), ("gpt-free", "free")]
    nothing = auth.authenticate(head(("x-api-key", "test-none")), SNAPSHOT)
    assert cards(SNAPSHOT, nothing) == []


JSON = ("content-type", "application/json; charset=utf-8")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8080", "127.0.0.1:8080", "[::1]:8080"])
def test_open_access_loopback_is_answered(auth: Authenticator, host: str) -> None:
    assert auth.authenticate(head(("host", host)), OPEN).name == "open"
    assert auth.authenticate(head(("host", host), JSON, method="POST"), OPEN).allows("x")
    origin = ("origin", f"http://{host}")
    assert auth.authenticate(head(("host", host), origin), OPEN).name == "open"


@pytest.mark.parametrize(
    ("asked", "reason"),
    [
        (head(), "FOREIGN_HOST"),
        (head(("host", "evil.example")), "FOREIGN_HOST"),
        (head(("host", "localhost.evil.example:8080")), "FOREIGN_HOST"),
        (head(("host", "127.0.0.1.nip.io")), "FOREIGN_HOST"),
        (head(("host", "localhost:80:80")), "FOREIGN_HOST"),
        (head(("host", "evil.example"), ("host", "localhost")), "FOREIGN_HOST"),
        (head(("host", "localhost"), ("host", "evil.example")), "FOREIGN_HOST"),
        (head(("host", "localhost"), ("origin", "http://evil.example")), "FOREIGN_ORIGIN"),
        (head(("host", "localhost:1"), ("origin", "http://localhost:2")), "FOREIGN_ORIGIN"),
        (head(("host", "localhost"), ("origin", "null")), "FOREIGN_ORIGIN"),
        (head(("host", "localhost"), method="POST"), "UNSUPPORTED_MEDIA"),
        (
            head(("host", "localhost"), ("content-type", "text/plain"), method="POST"),
            "UNSUPPORTED_MEDIA",
        ),
    ],
)
def test_open_access_refuses_what_a_web_page_could_send(
    auth: Authenticator, asked: Head, reason: str
) -> None:
    with pytest.raises(errors.PatchbayError) as caught:
        auth.authenticate(asked, OPEN)
    assert caught.value.reason == reason


def test_open_access_of_another_process_opens_nothing_here() -> None:
    """The snapshot is shared: its publisher listens on loopback, this process need not."""
    auth = Authenticator(lambda key: (f"d:{key}",), allow_open=False)
    with pytest.raises(errors.Unauthenticated) as caught:
        auth.authenticate(head(("host", "localhost")), OPEN)
    assert caught.value.reason == "MISSING_KEY"
    client_keys = (ClientKeyEntry("all", "d:test-all"),)
    keyed = Snapshot(version=1, settings=SettingsEntry(open_access=True), client_keys=client_keys)
    assert auth.authenticate(head(("x-api-key", "test-all")), keyed).name == "all"
