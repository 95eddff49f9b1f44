"""Sealed secrets: layout, refusals, redaction, cache."""

from __future__ import annotations

import copy
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from patchbay import errors, keys, secrets
from patchbay.type.v1 import secret_pb2

VECTORS = json.loads((Path(__file__).parents[2] / "golden" / "sealed.json").read_text())
KEY = bytes(range(32))
NOW = 1_700_000_000.0


def make_sealed(**overrides: Any) -> secret_pb2.SealedSecret:
    values: dict[str, Any] = {
        "key": KEY,
        "plugin_id": "echo",
        "credential_id": "main",
        "version": 3,
        "allowed_origins": ["https://api.example.com/v1"],
        "not_after": NOW + 900,
        "material": {"api_key": "test-key"},
    }
    return secrets.seal(**{**values, **overrides})


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v["why"])
def test_seal_golden_vector_same_bytes(vector: dict[str, Any]) -> None:
    assert keys.sealing_key(bytes.fromhex(vector["plugin_key"])).hex() == vector["sealing_key"]
    not_after = vector["not_after"]["seconds"] + vector["not_after"]["nanos"] / 1e9
    sealed = secrets.seal(
        bytes.fromhex(vector["sealing_key"]),
        vector["plugin_id"],
        vector["credential_id"],
        vector["version"],
        vector["allowed_origins"],
        not_after,
        vector["material"],
        nonce=bytes.fromhex(vector["nonce"]),
    )
    assert sealed.key_id == vector["key_id"]
    assert secrets.associated_data(sealed).hex() == vector["associated_data"]
    assert sealed.ciphertext.hex() == vector["ciphertext"]
    opened = secrets.SecretOpener([bytes.fromhex(vector["sealing_key"])]).open(sealed, not_after)
    assert {name: opened[name] for name in vector["material"]} == vector["material"]


def test_open_another_generation_finds_its_key() -> None:
    opener = secrets.SecretOpener([b"n" * 32, KEY])
    assert opener.open(make_sealed(), NOW)["api_key"] == "test-key"


def test_open_unknown_key_refused() -> None:
    with pytest.raises(errors.FailedPrecondition) as caught:
        secrets.SecretOpener([b"n" * 32]).open(make_sealed(), NOW)
    assert caught.value.reason == "SECRET_KEY_UNKNOWN"


def test_open_expired_refused_also_from_cache() -> None:
    opener, sealed = secrets.SecretOpener([KEY]), make_sealed()
    opener.open(sealed, NOW + 900)
    with pytest.raises(errors.FailedPrecondition) as caught:
        opener.open(sealed, NOW + 901)
    assert caught.value.reason == "SECRET_EXPIRED"


@pytest.mark.parametrize(
    "change",
    [
        {"plugin_id": "other"},
        {"credential_id": "other"},
        {"version": 4},
        {"allowed_origins": ["https://evil.example"]},
        {"not_after": {"seconds": int(NOW) + 99999}},
    ],
    ids=lambda c: next(iter(c)),
)
def test_open_changed_header_refused_although_ciphertext_is_cached(change: dict[str, Any]) -> None:
    opener, sealed = secrets.SecretOpener([KEY]), make_sealed()
    opener.open(sealed, NOW)
    for name in change:
        sealed.ClearField(name)  # type: ignore[arg-type]
    sealed.MergeFrom(secret_pb2.SealedSecret(**change))
    with pytest.raises(errors.FailedPrecondition) as caught:
        opener.open(sealed, NOW)
    assert caught.value.reason == "SECRET_INVALID"


def test_open_again_same_object_and_bounded() -> None:
    opener = secrets.SecretOpener([KEY], cache_size=2)
    first, second, third = (make_sealed(version=v) for v in (1, 2, 3))
    opened = opener.open(first, NOW)
    opener.open(second, NOW)
    assert opener.open(first, NOW) is opened
    opener.open(third, NOW)
    assert opener.open(first, NOW) is opened
    assert len(opener._opened) == 2


def test_opened_secret_never_shows_itself() -> None:
    opened = secrets.SecretOpener([KEY]).open(make_sealed(), NOW)
    for text in (repr(opened), str(opened), f"{opened}", f"{opened!r:>100}"):
        assert "test-key" not in text
        assert "redacted" in text
    with pytest.raises(TypeError):
        pickle.dumps(opened)
    with pytest.raises(TypeError):
        copy.copy(opened)


def test_opened_secret_missing_value_says_which() -> None:
    opened = secrets.SecretOpener([KEY]).open(make_sealed(), NOW)
    assert opened.get("refresh_token") == ""
    with pytest.raises(errors.FailedPrecondition, match="refresh_token"):
        opened["refresh_token"]


@pytest.mark.parametrize(
    "url",
    [
        "https://api.example.com/v1/chat/completions",
        "https://API.example.com:443/x",
    ],
)
def test_check_allowed_origin_passes(url: str) -> None:
    secrets.SecretOpener([KEY]).open(make_sealed(), NOW).check(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://api.example.com/v1",
        "https://api.example.com:444/v1",
        "https://api.example.com.evil.example/v1",
        "https://sub.api.example.com/v1",
        "https://evil.example/https://api.example.com",
    ],
)
def test_check_other_origin_refused(url: str) -> None:
    with pytest.raises(errors.PermissionDenied):
        secrets.SecretOpener([KEY]).open(make_sealed(), NOW).check(url)


@pytest.mark.parametrize(
    "url",
    ["/v1", "", "https://", "https://api.example.com@evil.example/", "https://a\\@b/", "http://[1"],
)
def test_check_ambiguous_url_refused(url: str) -> None:
    with pytest.raises(errors.InvalidRequest):
        secrets.SecretOpener([KEY]).open(make_sealed(), NOW).check(url)


def test_check_without_origins_refuses_every_url() -> None:
    opened = secrets.SecretOpener([KEY]).open(make_sealed(allowed_origins=[]), NOW)
    with pytest.raises(errors.PermissionDenied):
        opened.check("https://api.example.com/")


def test_origin_of_ipv6_keeps_brackets() -> None:
    assert secrets.origin_of("http://[2001:DB8::1]:80/x") == "http://[2001:db8::1]"
