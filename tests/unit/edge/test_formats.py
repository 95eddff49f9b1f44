"""Which of its formats an executor is asked in and answers in (edge/formats.py)."""

from __future__ import annotations

import pytest

from patchbay.plugin.v1 import plugin_pb2
from patchbay_gateway.edge.formats import input_format, output_format
from patchbay_gateway.translate.native import native_registry

NATIVE = native_registry()


def executor(given: list[str], answered: list[str]) -> plugin_pb2.ExecutorCapability:
    return plugin_pb2.ExecutorCapability(input_formats=given, output_formats=answered)


@pytest.mark.parametrize(
    ("declared", "client", "plugins", "chosen"),
    [
        (["openai"], "openai", False, "openai"),
        (["chat-completions"], "openai", False, "openai"),
        (["anthropic", "none", ""], "claude", False, "claude"),
        (["own", "claude", "openai"], "openai", False, "openai"),
        (["own", "claude"], "openai", False, "claude"),
        (["own"], "openai", False, ""),
        (["own"], "openai", True, "own"),
        (["own", "claude"], "openai", True, "claude"),
        ([], "openai", True, ""),
    ],
)
def test_input_is_the_clients_or_what_can_be_made_of_it(
    declared: list[str], client: str, plugins: bool, chosen: str
) -> None:
    found = input_format(
        executor(declared, ["openai"]), client, "chat", NATIVE, translators=plugins
    )
    assert found == chosen


def test_only_chats_are_translated() -> None:
    able = executor(["claude"], ["claude"])
    assert not input_format(able, "openai", "embeddings", NATIVE, translators=True)


@pytest.mark.parametrize(
    ("declared", "wanted", "given", "plugins", "chosen"),
    [
        (["openai", "claude"], "openai", "claude", False, "openai"),
        (["own", "claude"], "openai", "claude", False, "claude"),
        (["own", "claude"], "openai", "own", False, "claude"),
        (["own"], "openai", "own", False, ""),
        (["own"], "openai", "own", True, "own"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_output_is_the_clients_or_what_leads_back_to_it(
    declared: list[str], wanted: str, given: str, plugins: bool, chosen: str, stream: bool
) -> None:
    found = output_format(
        executor(["openai"], declared), wanted, given, NATIVE, stream=stream, translators=plugins
    )
    assert found == chosen
