"""
What several addresses of one plugin can all do.

During a rollout two revisions declare different things, and a capability may be used only where it was
declared; so what is offered is what all of them share. Pure. Not here: checking one answer (handshake.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from patchbay.plugin.v1 import plugin_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence


def common_executor(
    declared: Sequence[plugin_pb2.ExecutorCapability],
) -> plugin_pb2.ExecutorCapability:
    """Return the formats and operations that all of *declared* (at least one) have."""
    first, *others = declared
    if all(other == first for other in others):
        return first
    common = plugin_pb2.ExecutorCapability(
        model_scope=first.model_scope,
        input_formats=_shared(first.input_formats, [o.input_formats for o in others]),
        output_formats=_shared(first.output_formats, [o.output_formats for o in others]),
    )
    for name in common.input_formats:
        operations = _shared(
            _operations(first, name), [_operations(other, name) for other in others]
        )
        common.operations.add(format=name, operations=operations)
    return common


def common_needs(
    declared: Sequence[plugin_pb2.InterceptorNeeds],
) -> plugin_pb2.InterceptorNeeds:
    """Return what all of *declared* do without; nothing when there are none."""
    names = ("no_request_before_auth", "no_request_after_auth", "no_request_body")
    return plugin_pb2.InterceptorNeeds(
        **{name: bool(declared) and all(getattr(d, name) for d in declared) for name in names}
    )


def flags(declared: plugin_pb2.Capabilities) -> list[str]:
    """Return the flags that are set, `executor` included."""
    found = [
        field.name
        for field, value in declared.ListFields()
        if value is True or field.name == "executor"
    ]
    if "frontend_auth_provider" not in found and "frontend_auth_provider_exclusive" in found:
        # It means nothing by itself (pluginapi).
        found.remove("frontend_auth_provider_exclusive")
    return found


def _operations(capability: plugin_pb2.ExecutorCapability, name: str) -> Sequence[str]:
    """Return the operations in format *name*; none said at all means `chat` everywhere."""
    for entry in capability.operations:
        if entry.format == name:
            return entry.operations
    return () if capability.operations else ("chat",)


def _shared(first: Sequence[str], others: Sequence[Sequence[str]]) -> list[str]:
    return [name for name in first if all(name in other for other in others)]
