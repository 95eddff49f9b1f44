"""
Which plugins are asked at a step of the pipeline, and in which order.

A plugin takes part in a step if it is enabled, its allow-list has the capability, it declared it when it was
last registered, and its `match` accepts the request. One that is to `Fail` a request takes part even where it
was never seen: a filter that cannot be asked must not be passed by. So does a frontend auth plugin whose
allow-list says that it is one, and an exclusive one. Order: priority descending, id ascending,
as the snapshot lists them.

Cheap where nothing is declared: one look-up per step and request. Not here: calling (calls.py), what each
step makes of the answers (one module a capability).
"""

from __future__ import annotations

import fnmatch
import functools
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol

from patchbay.plugin.v1 import plugin_pb2
from patchbay_gateway.plugins.policy import POLICIES, Policy, policy

if TYPE_CHECKING:
    from collections.abc import Mapping

    from patchbay_gateway.plugins.execution import PluginExecution
    from patchbay_gateway.plugins.snapshot import PluginEntry, Snapshot

# As many snapshots as requests may be pinned to (distribution.py).
_SNAPSHOTS: Final = 3


class Declarations(Protocol):
    """What is known of plugins: the registry's part of it."""

    generation: int
    """Grows when a declaration may have changed."""

    def declared(self, plugin_id: str) -> frozenset[str]:
        """Return the flags that the plugin declared when it last was registered."""
        ...

    def needs(self, plugin_id: str) -> plugin_pb2.InterceptorNeeds:
        """Return what all addresses of the plugin do without."""
        ...


@dataclass(frozen=True, slots=True)
class Facts:
    """What `match` looks at."""

    format: str
    model: str
    """As the client named it."""
    route: str = ""
    """Name of the ModelRoute; empty when the model is a provider's own."""
    client_key: str = ""


@dataclass(frozen=True, slots=True)
class Hook:
    """One plugin at one step."""

    plugin_id: str
    capability: str
    entry: PluginEntry
    policy: Policy
    needs: plugin_pb2.InterceptorNeeds = field(default_factory=plugin_pb2.InterceptorNeeds)
    """What an interceptor does without."""

    def accepts(self, facts: Facts) -> bool:
        """Whether `match` lets the request through: globs, AND between keys, empty means any."""
        match = self.entry.match
        if not match:
            return True
        return (
            _any(match, "formats", facts.format)
            and _any(match, "models", facts.model)
            and _any(match, "routes", facts.route)
            and _any(match, "client_keys", facts.client_key)
        )


def _any(match: Mapping[str, tuple[str, ...]], key: str, value: str) -> bool:
    patterns = match.get(key)
    return not patterns or any(_glob(pattern).match(value) is not None for pattern in patterns)


@functools.lru_cache(maxsize=4096)
def _glob(pattern: str) -> re.Pattern[str]:
    return re.compile(fnmatch.translate(pattern))


class Hooks:
    """
    The plugins of each step.

    Args:
        declarations: Who declared what.
    """

    def __init__(self, declarations: Declarations) -> None:
        self._declarations = declarations
        self._generation = -1
        self._known: dict[int, dict[str, tuple[Hook, ...]]] = {}
        # What was asked for last: one request asks several times.
        self._last: Snapshot | None = None
        self._last_known: dict[str, tuple[Hook, ...]] = {}

    @property
    def generation(self) -> int:
        """Grows when a declaration may have changed."""
        return self._declarations.generation

    def of(self, snapshot: Snapshot, capability: str) -> tuple[Hook, ...]:
        """Return the plugins of *capability* in order, whatever they match."""
        return self._of(snapshot).get(capability, ())

    def wanted(self, snapshot: Snapshot, capabilities: frozenset[str]) -> bool:
        """Whether any plugin has one of *capabilities*: one look-up for requests that nobody wants."""
        return not capabilities.isdisjoint(self._of(snapshot))

    def asked(self, execution: PluginExecution, capability: str) -> tuple[Hook, ...]:
        """
        Return the plugins that are asked about *execution*.

        The plugin that started it is left out (pluginapi, model calls of plugins).
        """
        hooks = self.matching(execution.snapshot, capability, execution.facts)
        if execution.skip:
            hooks = tuple(hook for hook in hooks if hook.plugin_id != execution.skip)
        return hooks

    def matching(self, snapshot: Snapshot, capability: str, facts: Facts) -> tuple[Hook, ...]:
        """Return the plugins that are to be asked about a request."""
        hooks = self.of(snapshot, capability)
        if not hooks:
            return ()
        return tuple(hook for hook in hooks if hook.accepts(facts))

    def _of(self, snapshot: Snapshot) -> dict[str, tuple[Hook, ...]]:
        if self._generation != self._declarations.generation:
            self._generation = self._declarations.generation
            self._known.clear()
        elif snapshot is self._last:
            return self._last_known
        known = self._known.get(snapshot.version)
        if known is None:
            known = self._known[snapshot.version] = self._work_out(snapshot)
            while len(self._known) > _SNAPSHOTS:
                # Not the one just asked for: a request may be pinned to one older than all others.
                del self._known[min(v for v in self._known if v != snapshot.version)]
        self._last, self._last_known = snapshot, known
        return known

    def _work_out(self, snapshot: Snapshot) -> dict[str, tuple[Hook, ...]]:
        found: dict[str, tuple[Hook, ...]] = {}
        for entry in snapshot.plugins:
            if not entry.enabled:
                continue
            for capability in sorted(self._flags(entry)):
                if capability not in POLICIES and capability != _EXCLUSIVE:
                    continue
                row = policy(
                    _FRONTEND if capability == _EXCLUSIVE else capability,
                    entry.timeouts,
                    entry.failure_policies,
                )
                hook = Hook(entry.id, capability, entry, row, self._declarations.needs(entry.id))
                found[capability] = (*found.get(capability, ()), hook)
        return found

    def _flags(self, entry: PluginEntry) -> set[str]:
        flags = set(self._declarations.declared(entry.id))
        if not flags and _FRONTEND in entry.capabilities:
            # Never seen, but meant to say who enters: until it comes, its word is missing.
            flags = {_FRONTEND, _EXCLUSIVE}
        flags |= {flag for flag, chosen in entry.failure_policies.items() if chosen == "Fail"}
        return flags & set(entry.capabilities) if entry.capabilities else flags


_FRONTEND: Final = "frontend_auth_provider"
_EXCLUSIVE: Final = "frontend_auth_provider_exclusive"
