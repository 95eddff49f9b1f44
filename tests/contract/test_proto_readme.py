"""proto/README.md says what is true: every element has a row, every vector can be computed."""

from __future__ import annotations

import hashlib
import hmac
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from patchbay import handshake, keys, secrets, tokens
from patchbay.plugin.v1 import executor_pb2, plugin_pb2
from patchbay.type.v1 import error_pb2, headers_pb2, secret_pb2, usage_pb2

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
README = (ROOT / "proto" / "README.md").read_text(encoding="utf-8")
FILES = (plugin_pb2, executor_pb2, usage_pb2)
OTHER_FILES = (error_pb2, headers_pb2, secret_pb2)


def elements(files: tuple[object, ...]) -> Iterator[str]:
    """Yield `Message.field` and `Service.Method` of *files*."""
    for file in files:
        descriptor = file.DESCRIPTOR  # type: ignore[attr-defined] # generated modules have one
        for message in descriptor.message_types_by_name.values():
            for field in message.fields:
                yield f"{message.name}.{field.name}"
        for service in descriptor.services_by_name.values():
            for method in service.methods:
                if service.name != "PluginService":  # the handshake has sections of its own
                    yield f"{service.name}.{method.name}"


def mapping() -> list[list[str]]:
    """Return the cells of the two mapping tables."""
    section = README.partition("## From pluginapi")[2].partition("## Errors")[0]
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if line.startswith("| ")
    ]


@pytest.mark.parametrize("element", sorted(elements(FILES)))
def test_element_has_a_row(element: str) -> None:
    assert any(f"`{element}`" in cell for row in mapping() for cell in row), element


def test_rows_name_only_what_exists() -> None:
    """The second column is the wire's; a row of a renamed field would stay behind."""
    known = {*elements(FILES), *elements(OTHER_FILES)}
    for row in mapping():
        if len(row) == 3 and (found := re.fullmatch(r"`(\w+\.\w+)`", row[1])):
            assert found[1] in known, row


@pytest.mark.parametrize(
    "reason",
    sorted(
        {
            reason
            for path in (
                ROOT / "services/sdk/patchbay/handshake.py",
                ROOT / "services/sdk/patchbay/tokens.py",
                ROOT / "services/sdk/patchbay/secrets.py",
            )
            for reason in re.findall(r'reason="([A-Z_]+)"', path.read_text(encoding="utf-8"))
        }
        - {"INVALID_URL", "SECRET_INCOMPLETE"}  # the author's own mistakes, never on the wire
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
    assert keys.channel_key(plugin_key).hex() == vector("channel key")
    assert keys.sealing_key(plugin_key).hex() == vector("sealing key")
    assert keys.key_id(keys.sealing_key(plugin_key)) == vector("key id of the sealing key")


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
