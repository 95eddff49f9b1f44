"""
proto/README.md says what is true: every name of pluginapi and every element of the wire has a row, every
vector can be computed.

`pluginapi_names.txt` lists the types, fields, methods, constants and callbacks of pluginapi, one a line.
"""

from __future__ import annotations

import hashlib
import hmac
import importlib
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from patchbay import handshake, keys, secrets, tokens
from patchbay.stream_history import History

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
README = (ROOT / "proto" / "README.md").read_text(encoding="utf-8")
NAMES = (Path(__file__).parent / "pluginapi_names.txt").read_text(encoding="utf-8").split()

PUBLIC = ("type/v1", "plugin/v1", "host/v1")
UNMAPPED = ("annotations", "error", "headers", "secret")
"""Files of `type/v1` that stand for no type of pluginapi; their fields may be named but need not be."""


def files() -> Iterator[tuple[str, Any]]:
    """Yield stem and descriptor of each public file."""
    for package in PUBLIC:
        for path in sorted((ROOT / "proto" / "patchbay" / package).glob("*.proto")):
            module = f"patchbay.{package.replace('/', '.')}.{path.stem}_pb2"
            yield path.stem, importlib.import_module(module).DESCRIPTOR


def elements(*, mapped: bool) -> Iterator[str]:
    """Yield `Message.field`, `Service.Method`; those that need a row only, or all and also types."""
    for stem, file in files():
        if mapped and stem in UNMAPPED:
            continue
        for message in file.message_types_by_name.values():
            if not mapped:
                yield message.name
            for field in message.fields:
                yield f"{message.name}.{field.name}"
        for service in file.services_by_name.values():
            if not mapped:
                yield service.name
            for method in service.methods:
                # The handshake has sections of its own.
                if service.name != "PluginService" or not mapped:
                    yield f"{service.name}.{method.name}"
        if not mapped:
            for enum in file.enum_types_by_name.values():
                yield enum.name
                yield from (value.name for value in enum.values)


KNOWN = frozenset(elements(mapped=False))


def mapping() -> list[list[str]]:
    """Return the cells of the mapping tables."""
    section = README.partition("## From pluginapi")[2]
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if line.startswith("| ")
    ]


def rows() -> list[list[str]]:
    """Return the rows of the table of pluginapi's names: name, wire, remark."""
    found = [row for row in mapping() if len(row) == 3]
    assert found[0] == ["pluginapi", "wire", "remarks"]
    return found[1:]


def test_every_name_of_pluginapi_has_exactly_one_row() -> None:
    assert [row[0].strip("*`") for row in rows()] == NAMES


def test_every_element_of_the_wire_is_in_a_row() -> None:
    named = {name for row in mapping() for cell in row for name in re.findall(r"`([\w.]+)`", cell)}
    assert sorted(set(elements(mapped=True)) - named) == []


def test_rows_name_only_what_exists() -> None:
    """A row of a renamed field or method would stay behind."""
    spoken_of = [cell for row in rows() for cell in row[1:]]
    spoken_of += [row[0] for row in mapping() if len(row) == 2]
    for cell in spoken_of:
        for name in re.findall(r"`([A-Z]\w*\.\w+|[A-Z][A-Z_]{8,})`", cell):
            assert name in KNOWN, cell


def test_a_row_names_one_element_or_says_why_there_is_none() -> None:
    for name, wire, remark in rows():
        if wire == "–":
            assert remark, name
        else:
            found = re.fullmatch(r"`([\w.]+)`", wire)
            assert found is not None, name
            assert found[1] in KNOWN, name


def test_every_service_has_an_error_table() -> None:
    tables = README.partition("## Errors")[2].partition("## Without our SDK")[0]
    for _, file in files():
        for service in file.services_by_name.values():
            assert service.name in tables


@pytest.mark.parametrize(
    "reason",
    sorted(
        {
            reason
            for path in (ROOT / "services/sdk/patchbay").glob("*.py")
            for reason in re.findall(r'reason="([A-Z_]+)"', path.read_text(encoding="utf-8"))
        }
        # The author's or operator's own mistakes, never on the wire.
        - {
            "SECRET_INCOMPLETE",
            "ADDRESS_IN_USE",
            "PLUGIN_KEY_INVALID",
            "HOST_NOT_REACHABLE",
            "PORT_INVALID",
            "TLS_INCOMPLETE",
            "DRAIN_INVALID",
        }
    ),
)
def test_reason_of_the_sdk_is_in_the_error_tables(reason: str) -> None:
    assert f"`{reason}`" in README


def vector(name: str) -> str:
    vectors = README.partition("### Test vectors")[2]
    found = re.search(rf"^\| {re.escape(name)} \| `([^`]+)`", vectors, re.MULTILINE)
    assert found is not None, name
    return found[1]


def hkdf(key: bytes, info: bytes) -> bytes:
    """RFC 5869 written out for one block, so that the vectors do not prove themselves."""
    extracted = hmac.digest(bytes(32), key, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")


def test_vectors_of_keys() -> None:
    plugin_key = bytes.fromhex(vector("plugin key"))
    assert hkdf(plugin_key, b"patchbay channel v1").hex() == vector("channel key")
    assert hkdf(plugin_key, b"patchbay sealing v1").hex() == vector("sealing key")
    assert hkdf(plugin_key, b"patchbay return v1").hex() == vector("return key")
    assert keys.channel_key(plugin_key).hex() == vector("channel key")
    assert keys.sealing_key(plugin_key).hex() == vector("sealing key")
    assert keys.return_key(plugin_key).hex() == vector("return key")
    assert keys.key_id(keys.sealing_key(plugin_key)) == vector("key id of the sealing key")
    assert keys.key_id(keys.return_key(plugin_key)) == vector("key id of the return key")


def test_vectors_of_proofs() -> None:
    key = bytes.fromhex(vector("channel key"))
    host_nonce = bytes.fromhex(vector("host nonce"))
    plugin_nonce = bytes.fromhex(vector("plugin nonce"))
    config_hash = hashlib.sha256(b"limit: 3\n").hexdigest()
    assert config_hash == handshake.config_hash(b"limit: 3\n") == vector("config hash")
    layout = b"challenge-plugin\0my-plugin\0host-1\0" + host_nonce + plugin_nonce
    assert hmac.digest(key, layout, "sha256").hex() == vector("challenge-plugin")
    layout = b"challenge-host\0my-plugin\0host-1\0" + config_hash.encode() + b"\0" + plugin_nonce
    assert hmac.digest(key, layout, "sha256").hex() == vector("challenge-host")
    proof = handshake.plugin_proof(key, "my-plugin", "host-1", host_nonce, plugin_nonce)
    assert proof.hex() == vector("challenge-plugin")
    proof = handshake.host_proof(key, "my-plugin", "host-1", plugin_nonce, config_hash)
    assert proof.hex() == vector("challenge-host")


def test_vector_of_the_token() -> None:
    key = bytes.fromhex(vector("channel key"))
    mac = hmac.digest(key, b"call\0my-plugin\0host-1\0" + b"1700000300", "sha256").hex()
    expected = vector("token, expiry 1700000300")
    assert expected == f"v1.host-1.1700000300.{mac}"
    assert tokens.mint(key, "my-plugin", "host-1", 1_700_000_300) == expected


def test_vector_of_the_token_for_the_host() -> None:
    key = bytes.fromhex(vector("channel key"))
    layout = b"call\0patchbay.host.v1.HostService/my-plugin\0replica-1\0" + b"1700000300"
    expected = vector("token of caller `replica-1` for the host, expiry 1700000300")
    assert expected == f"v1.replica-1.1700000300.{hmac.digest(key, layout, 'sha256').hex()}"
    assert (
        tokens.mint(key, tokens.host_audience("my-plugin"), "replica-1", 1_700_000_300) == expected
    )


def test_vector_of_the_returned_secret() -> None:
    sealed = secrets.seal(
        bytes.fromhex(vector("return key")),
        "my-plugin",
        "team",
        7,
        [],
        1_800_000_000,
        {"access_token": "test-access", "refresh_token": "test-refresh"},
        nonce=bytes(range(12)),
    )
    found = re.search(r"^\| returned secret .*\| `([0-9a-f]+)` \|$", README, re.MULTILINE)
    assert found is not None
    assert sealed.ciphertext.hex() == found[1]


def test_history_keeps_what_the_rule_says() -> None:
    history = History()
    for number in range(74):
        history.add(b"%d" % number)
    assert (len(history), history[0], history[-1]) == (64, b"10", b"73")
    history.add(bytes(1 << 20))
    assert len(history) == 1
    history.add(bytes((1 << 20) + 1))
    assert list(history) == []


def test_vector_of_the_sealed_secret() -> None:
    sealed = secrets.seal(
        bytes.fromhex(vector("sealing key")),
        "openai-compatible",
        "main",
        1,
        ["https://api.openai.com"],
        1_800_000_000,
        {"api_key": "test-key"},
        nonce=bytes(range(12)),
    )
    found = re.search(r"ciphertext \| `([0-9a-f]+)`", README)
    assert found is not None
    assert sealed.ciphertext.hex() == found[1]
    assert secrets.associated_data(sealed).hex() == vector("associated data of that secret")
