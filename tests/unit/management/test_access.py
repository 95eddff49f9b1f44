"""Who may use the management API."""

from __future__ import annotations

import pytest

from patchbay.errors import FailedPrecondition, PermissionDenied, Unauthenticated
from patchbay_gateway.edge.management.access import (
    ANONYMOUS,
    TOKEN_PRINCIPAL,
    Access,
    make_access,
)
from patchbay_gateway.kernel import config
from patchbay_gateway.kernel.keys import client_key_digest
from patchbay_gateway.kernel.management_token import TOKEN_FILE, ensure_token, read_token

ROOT, OLD_ROOT = b"r" * 32, b"o" * 32
LOCAL = (b"host", b"127.0.0.1:8081")


def bearer(key: str) -> tuple[bytes, bytes]:
    return (b"authorization", f"Bearer {key}".encode())


def keyed(text: str, *, local_only: bool = False, token: str = "") -> Access:
    loaded = config.parse(f"management_keys: [{text}]", env={})
    return make_access(
        loaded, {"OPS": "test-key-ops"}, roots=(ROOT, OLD_ROOT), token=token, local_only=local_only
    )


@pytest.mark.parametrize(
    "text",
    [
        "{name: ops, key_env: OPS}",
        "{name: ops, key: test-key-ops}",
        f"{{name: ops, hash: '{client_key_digest(ROOT, 'test-key-ops')}'}}",
        f"{{name: ops, hash: '{client_key_digest(OLD_ROOT, 'test-key-ops')}'}}",
    ],
)
def test_key_of_the_configuration_opens_under_its_name(text):
    access = keyed(text)

    assert access.admit("GET", [LOCAL, bearer("test-key-ops")]) == "ops"
    assert access.admit("POST", [LOCAL, bearer("test-key-ops")]) == "ops"


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [bearer("test-key-wrong")],
        [bearer("")],
        [(b"authorization", b"Basic dGVzdA==")],
        [(b"authorization", b"test-key-ops")],
    ],
)
def test_no_or_a_wrong_key_is_refused(headers):
    with pytest.raises(Unauthenticated):
        keyed("{name: ops, key_env: OPS}").admit("GET", [LOCAL, *headers])


def test_configured_key_closes_reading_on_loopback():
    access = keyed("{name: ops, key_env: OPS}", local_only=True)

    with pytest.raises(Unauthenticated):
        access.admit("GET", [LOCAL])


def test_token_opens_beside_keys():
    access = keyed("{name: ops, key_env: OPS}", token="test-token")

    assert access.admit("POST", [LOCAL, bearer("test-token")]) == TOKEN_PRINCIPAL


def test_without_keys_and_token_nobody_enters():
    access = make_access(config.Config(), {}, roots=(ROOT,), token="", local_only=False)

    with pytest.raises(Unauthenticated):
        access.admit("GET", [LOCAL])
    with pytest.raises(Unauthenticated):
        access.admit("GET", [LOCAL, bearer("")])


def test_keys_without_a_root_are_a_mistake_at_start():
    loaded = config.parse("management_keys: [{name: ops, key: test-key-ops}]", env={})

    with pytest.raises(FailedPrecondition, match="PATCHBAY_CLUSTER_KEY"):
        make_access(loaded, {}, roots=(), token="", local_only=False)


def test_missing_key_is_a_mistake_at_start():
    loaded = config.parse("management_keys: [{name: ops, key_env: GONE}]", env={})

    with pytest.raises(config.ConfigError, match="GONE is not set"):
        make_access(loaded, {}, roots=(ROOT,), token="", local_only=False)


def up(token: str = "test-token") -> Access:
    return make_access(config.Config(), {}, roots=(ROOT,), token=token, local_only=True)


@pytest.mark.parametrize(
    "host", [b"localhost", b"localhost:8081", b"127.0.0.1:9", b"[::1]:8081", b"LOCALHOST:1"]
)
def test_up_lets_this_machine_read(host):
    assert up().admit("GET", [(b"host", host)]) == ANONYMOUS


@pytest.mark.parametrize(
    "host", [b"", b"evil.example", b"127.0.0.1.evil.example", b"10.0.0.1", b"["]
)
def test_up_refuses_a_foreign_host_name(host):
    with pytest.raises(PermissionDenied) as caught:
        up().admit("GET", [(b"host", host), bearer("test-token")])

    assert caught.value.reason == "FOREIGN_HOST"


@pytest.mark.parametrize("origin", [b"https://evil.example", b"null", b"http://127.0.0.1:3000"])
def test_foreign_origin_is_refused_with_and_without_a_key(origin):
    for access, key in ((up(), "test-token"), (keyed("{name: ops, key_env: OPS}"), "test-key-ops")):
        with pytest.raises(PermissionDenied) as caught:
            access.admit("GET", [LOCAL, (b"origin", origin), bearer(key)])
        assert caught.value.reason == "FOREIGN_ORIGIN"


def test_own_origin_is_served():
    headers = [LOCAL, (b"origin", b"http://127.0.0.1:8081")]

    assert up().admit("GET", headers) == ANONYMOUS


def test_write_without_a_key_must_be_json_and_bear_the_token():
    form = (b"content-type", b"application/x-www-form-urlencoded")
    json = (b"content-type", b"application/json; charset=utf-8")

    with pytest.raises(PermissionDenied):
        up().admit("POST", [LOCAL, form])
    with pytest.raises(Unauthenticated, match="management-token"):
        up().admit("POST", [LOCAL, json])
    assert up().admit("DELETE", [LOCAL, bearer("test-token")]) == TOKEN_PRINCIPAL


def test_access_shows_no_secret():
    assert "test" not in repr(up())


def test_token_file_is_made_once_and_only_for_its_owner(tmp_path):
    token = ensure_token(tmp_path / "data")

    assert ensure_token(tmp_path / "data") == token == read_token(tmp_path / "data")
    assert (tmp_path / "data" / TOKEN_FILE).stat().st_mode & 0o777 == 0o600
    assert len(token) > 40


def test_token_that_others_could_read_is_replaced(tmp_path):
    token = ensure_token(tmp_path)
    (tmp_path / TOKEN_FILE).chmod(0o644)

    assert ensure_token(tmp_path) != token
    assert (tmp_path / TOKEN_FILE).stat().st_mode & 0o777 == 0o600


def test_token_that_cannot_be_written_says_what_to_do(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(FailedPrecondition, match="PATCHBAY_DATA_DIR"):
        ensure_token(tmp_path / "file")


def test_token_of_another_directory_is_none(tmp_path):
    assert read_token(tmp_path) is None
