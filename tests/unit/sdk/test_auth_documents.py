"""Auth documents of CLIProxyAPI: samples against what is read of them, and the corners between."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchbay.auth_documents import AuthDocument, Refused, instant, parse

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "auth_files"
SAMPLES = sorted((GOLDEN / "documents").glob("*.json"))
EXPECTED: dict[str, Any] = json.loads((GOLDEN / "expected.json").read_text())


def told(document: AuthDocument) -> dict[str, Any]:
    """Return what differs from the defaults, as JSON has it."""
    usual = AuthDocument(type="", kind="", material={})
    found = dataclasses.asdict(document)
    differing = {k: v for k, v in found.items() if v != getattr(usual, k)}
    result: dict[str, Any] = json.loads(json.dumps(differing))
    return result


def read(path: Path) -> dict[str, Any]:
    try:
        return told(parse(path.read_bytes()))
    except Refused as error:
        return {"refused": str(error)}


@pytest.mark.parametrize("path", SAMPLES, ids=lambda path: path.stem)
def test_sample_is_read_as_written_down(path: Path) -> None:
    """After a deliberate change: `python -m tests.golden.auth_files.write`."""
    assert read(path) == EXPECTED[path.name]


def test_every_expectation_has_its_sample() -> None:
    assert sorted(EXPECTED) == [path.name for path in SAMPLES]


def test_secrets_do_not_show() -> None:
    document = parse(
        b'{"type": "x", "access_token": "test-a", "client_secret": "test-s", "headers": {"k": "test-h"}}'
    )

    assert document.client_secret == "test-s"
    assert "test-" not in repr(document)


def test_refusal_never_quotes_the_document() -> None:
    with pytest.raises(Refused) as caught:
        parse(b'{"type": "x", "access_token": "test-secret"')

    assert "test-secret" not in str(caught.value)


def test_seed_hash_follows_the_token_alone() -> None:
    """An edited priority must not bring a used-up refresh token back."""
    before = parse(b'{"type": "x", "refresh_token": "test-r", "access_token": "test-a"}')
    edited = parse(
        b'{"type": "x", "refresh_token": "test-r", "access_token": "test-b", "priority": 9}'
    )
    another = parse(b'{"type": "x", "refresh_token": "test-r2", "access_token": "test-a"}')

    assert before.seed_hash == edited.seed_hash
    assert before.seed_hash != another.seed_hash


def test_half_a_surrogate_pair_is_refused() -> None:
    with pytest.raises(Refused):
        parse(b'{"type": "x", "api_key": "test-\\ud800"}')


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (1772359200, 1772359200.0),
        (1772359200000, 1772359200.0),
        ("1772359200000", 1772359200.0),
        ("2026-03-01T10:00:00Z", 1772359200.0),
        ("2026-03-01T10:00:00", 1772359200.0),
        ("2026-03-01 18:00:00+08:00", 1772359200.0),
        ("2026-03-01T10:00:00.999999999Z", 1772359200.999999),
        ("", None),
        ("soon", None),
        (0, None),
        (-5, None),
        (True, None),
        (None, None),
        (float("inf"), None),
        ("nan", None),
        ([1], None),
    ],
)
def test_instant_in_each_form(value: object, seconds: float | None) -> None:
    assert instant(value) == seconds


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
_KEYS = [
    "type", "access_token", "token", "api-key", "expired", "expires_in", "timestamp", "weight",
    "priority", "headers", "model_aliases", "excluded_models", "scopes", "disabled", "proxy-url",
]  # fmt: skip


@given(st.dictionaries(st.sampled_from(_KEYS), _JSON))
def test_any_object_is_read_or_refused(document: dict[str, Any]) -> None:
    data = json.dumps({"type": "x", "api_key": "test-key"} | document).encode()
    try:
        found = parse(data)
    except Refused:
        return
    assert found.material
    assert 0 <= found.weight <= 1_000_000


@given(st.binary(max_size=64))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    with pytest.raises(Refused):
        parse(data)
