"""
One plugin as people see it: what is registered where, and why not elsewhere.

Plain JSON data. Not here: its state (members.py, registry.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from patchbay.plugin.v1 import plugin_pb2
from patchbay_gateway.plugins.capabilities import flags
from patchbay_gateway.plugins.policy import POLICIES, policy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patchbay_gateway.plugins.members import Member, Plugin


def describe(plugin: Plugin, reasons: Sequence[str]) -> dict[str, Any]:
    """Return all that is known of *plugin*; *reasons* why it is not ready."""
    entry = plugin.entry
    named = next((m.registration for m in plugin.ready), None)
    members = list(plugin.members.values())
    calls = sum(m.calls for m in members)
    return {
        "id": entry.id,
        "builtin": entry.builtin,
        "ready": bool(plugin.ready),
        "name": named.response.metadata.name if named else "",
        "version": named.response.metadata.version if named else "",
        "author": named.response.metadata.author if named else "",
        "repository": named.response.metadata.github_repository if named else "",
        "capabilities": sorted(plugin.able),
        "priority": entry.priority,
        "public": entry.public,
        "match": {key: list(globs) for key, globs in entry.match.items()},
        "host_access": dict(entry.host_access),
        "policy": _policies(plugin),
        "breaker": _breaker(plugin),
        "calls": calls,
        "errors": sum(m.errors for m in members),
        "latency_ms": _latency(sum(m.seconds for m in members), calls),
        "config_fields": [
            {
                "name": f.name,
                "type": plugin_pb2.ConfigFieldType.Name(f.type)
                .removeprefix("CONFIG_FIELD_TYPE_")
                .lower(),
                "enum_values": list(f.enum_values),
                "description": f.description,
            }
            for f in (named.response.metadata.config_fields if named else ())
        ],
        "reasons": [] if plugin.ready else list(reasons),
        "addresses": [_address(m) for m in members],
    }


def _address(member: Member) -> dict[str, Any]:
    return {
        "address": member.address,
        "revision": member.revision,
        "state": member.state,
        "capabilities": sorted(_flags(member)),
        "in_flight": member.peer.in_flight,
        "calls": member.calls,
        "errors": member.errors,
        "seconds": round(member.seconds, 6),
        "latency_ms": _latency(member.seconds, member.calls),
        "reasons": list(member.reasons) or ([member.peer.reason] if member.peer.reason else []),
    }


def _flags(member: Member) -> Sequence[str]:
    return list(flags(member.capabilities)) if member.registered else []


def _policies(plugin: Plugin) -> dict[str, dict[str, Any]]:
    entry = plugin.entry
    rows = {
        flag: policy(flag, entry.timeouts, entry.failure_policies)
        for flag in sorted(plugin.able)
        if flag in POLICIES
    }
    return {
        flag: {"deadline": row.deadline, "on_error": row.on_error.value}
        for flag, row in rows.items()
    }


def _breaker(plugin: Plugin) -> str:
    """`closed`, `open` when no address is left, `partly open` when some are."""
    allowed = [member.peer.allows() for member in plugin.ready]
    if not allowed or all(allowed):
        return "closed" if allowed else "open"
    return "partly open" if any(allowed) else "open"


def _latency(seconds: float, calls: int) -> float:
    return round(1000 * seconds / calls, 3) if calls else 0.0
