"""
Which of its formats an executor is asked in, and answers in.

Source: pluginapi, executor input and output formats. An exact match wins; else the first declared format
that a translator, native or a plugin's, can bring the request to and the answer back from.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from patchbay_gateway.translate.formats import canonical, canonical_list

if TYPE_CHECKING:
    from patchbay.plugin.v1 import plugin_pb2
    from patchbay_gateway.translate.registry import Registry


def input_format(
    capability: plugin_pb2.ExecutorCapability,
    source: str,
    operation: str,
    native: Registry,
    *,
    translators: bool,
) -> str:
    """
    Return the format that the executor gets; empty when it can take none.

    Args:
        capability: What it declares.
        source: The client's format.
        operation: What is asked.
        native: What the gateway translates itself.
        translators: Whether a plugin translates requests, which may be from anything to anything.
    """
    declared = canonical_list(capability.input_formats)
    if source in declared and takes(capability, source, operation):
        return source
    if operation != "chat":
        # Only chat has translations (translate/native.py).
        return ""
    able = [name for name in declared if takes(capability, name, operation)]
    for name in able:
        if native.pair(source, name).request is not None:
            return name
    return able[0] if able and translators else ""


def output_format(
    capability: plugin_pb2.ExecutorCapability,
    wanted: str,
    given: str,
    native: Registry,
    *,
    stream: bool,
    translators: bool,
) -> str:
    """
    Return the format that the executor is to answer in; empty when none can be brought to the client's.

    Args:
        capability: What it declares.
        wanted: The client's format.
        given: The format that the executor gets.
        native: What the gateway translates itself.
        stream: Whether the answer is streamed.
        translators: Whether a plugin translates answers.
    """
    declared = canonical_list(capability.output_formats)
    if wanted in declared:
        return wanted
    for name in (given, *declared):
        pair = native.pair(wanted, name)
        if name in declared and (pair.stream if stream else pair.whole) is not None:
            return name
    return declared[0] if declared and translators else ""


def takes(capability: plugin_pb2.ExecutorCapability, name: str, operation: str) -> bool:
    """Whether the executor serves *operation* in format *name*; none said means chat everywhere."""
    for entry in capability.operations:
        if canonical(entry.format) == name:
            return operation in entry.operations
    return not capability.operations and operation == "chat"
