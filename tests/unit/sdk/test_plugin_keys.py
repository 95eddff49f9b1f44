"""Keys of a plugin process (patchbay/serve.py)."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import pytest

from patchbay import errors
from patchbay.serve import load_plugin_keys, parse_key

if TYPE_CHECKING:
    from pathlib import Path

ONE = bytes(range(32))
TWO = bytes(range(200, 232))


@pytest.mark.parametrize(
    "text",
    [
        ONE.hex(),
        ONE.hex().upper(),
        base64.urlsafe_b64encode(TWO).decode(),
        base64.urlsafe_b64encode(TWO).decode().rstrip("="),
        base64.b64encode(TWO).decode(),
    ],
)
def test_key_in_hex_and_base64_is_read(text: str) -> None:
    assert parse_key(text, "here") in (ONE, TWO)


@pytest.mark.parametrize("text", ["", "abc", ONE.hex()[:-2], "!" * 43, "zz" * 32])
def test_key_malformed_is_refused_without_showing_it(text: str) -> None:
    with pytest.raises(errors.FailedPrecondition) as caught:
        parse_key(text, "PATCHBAY_PLUGIN_KEY")
    assert "PATCHBAY_PLUGIN_KEY" in caught.value.message
    assert not text or text not in caught.value.message


def test_keys_one_line_is_for_every_plugin() -> None:
    assert load_plugin_keys({"PATCHBAY_PLUGIN_KEY": ONE.hex()}, ["a", "b"]) == {
        "a": [ONE],
        "b": [ONE],
    }


def test_keys_lines_name_their_plugin_and_a_second_is_the_previous_generation() -> None:
    text = f"a={ONE.hex()}\n\nb = {base64.urlsafe_b64encode(TWO).decode()}\na={TWO.hex()}\n"
    assert load_plugin_keys({"PATCHBAY_PLUGIN_KEY": text}, ["a", "b"]) == {
        "a": [ONE, TWO],
        "b": [TWO],
    }


def test_keys_of_one_base64_line_with_padding_name_nobody() -> None:
    text = base64.urlsafe_b64encode(ONE).decode()
    assert text.endswith("=")
    assert load_plugin_keys({"PATCHBAY_PLUGIN_KEY": text}, ["a"]) == {"a": [ONE]}


def test_keys_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(ONE.hex() + "\n")
    environ = {"PATCHBAY_PLUGIN_KEY_FILE": str(tmp_path / "key")}
    assert load_plugin_keys(environ, ["a"]) == {"a": [ONE]}


@pytest.mark.parametrize(
    "environ",
    [{}, {"PATCHBAY_PLUGIN_KEY_FILE": "/none"}, {"PATCHBAY_PLUGIN_KEY": f"b={ONE.hex()}"}],
)
def test_keys_missing_say_what_to_set(environ: dict[str, str]) -> None:
    with pytest.raises(errors.FailedPrecondition, match="PATCHBAY_PLUGIN_KEY"):
        load_plugin_keys(environ, ["a"])
