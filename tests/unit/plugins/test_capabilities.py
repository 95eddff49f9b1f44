"""What several revisions of a plugin share (plugins/capabilities.py)."""

from __future__ import annotations

from patchbay.plugin.v1 import plugin_pb2
from patchbay_gateway.plugins.capabilities import common_executor, flags


def capability(**operations: list[str]) -> plugin_pb2.ExecutorCapability:
    return plugin_pb2.ExecutorCapability(
        input_formats=list(operations),
        output_formats=list(operations),
        operations=[
            plugin_pb2.FormatOperations(format=name, operations=names)
            for name, names in operations.items()
        ],
    )


def test_common_executor_of_equals_is_the_first() -> None:
    one = capability(openai=["chat"])
    assert common_executor([one, capability(openai=["chat"])]) is one


def test_common_executor_offers_only_what_all_declare() -> None:
    old = capability(openai=["chat"], claude=["chat"])
    new = capability(openai=["chat", "embeddings"])
    assert common_executor([old, new]) == capability(openai=["chat"])


def test_common_executor_without_operations_means_chat() -> None:
    silent = plugin_pb2.ExecutorCapability(input_formats=["openai"], output_formats=["openai"])
    assert common_executor([silent, capability(openai=["chat", "embeddings"])]) == capability(
        openai=["chat"]
    )


def test_exclusive_alone_means_nothing() -> None:
    declared = plugin_pb2.Capabilities(frontend_auth_provider_exclusive=True, usage_plugin=True)
    assert flags(declared) == ["usage_plugin"]
    declared.frontend_auth_provider = True
    assert "frontend_auth_provider_exclusive" in flags(declared)
