"""
Thinking appliers: plugins that write a reasoning setting into payloads of a format of their own.

One plugin a provider key, the first by priority; native formats are never asked for. Source: pluginapi,
ThinkingApplier. Not here: where the setting comes from and the native formats (translate/).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from patchbay import errors
from patchbay.plugin.v1 import identifier_pb2, thinking_applier_pb2
from patchbay_gateway.kernel.channels import methods
from patchbay_gateway.plugins.calls import warn

if TYPE_CHECKING:
    from patchbay_gateway.plugins.calls import PluginCalls
    from patchbay_gateway.plugins.execution import PluginExecution
    from patchbay_gateway.plugins.hooks import Hook, Hooks

_FLAG: Final = "thinking_applier"
_MODES: Final = {
    "none": thinking_applier_pb2.THINKING_MODE_NONE,
    "auto": thinking_applier_pb2.THINKING_MODE_AUTO,
}


class ThinkingAppliers:
    """
    Asks appliers.

    Args:
        hooks: Who is asked.
        calls: How.
    """

    def __init__(self, hooks: Hooks, calls: PluginCalls) -> None:
        self._hooks = hooks
        self._calls = calls
        # Plugin id and configuration → provider key: asked once for each, and again when a plugin may have
        # been replaced by another version of itself.
        self._keys: dict[tuple[str, str], str] = {}
        self._generation = -1

    async def apply(
        self,
        execution: PluginExecution,
        provider: str,
        model: str,
        *,
        level: str,
        budget: int | None,
        body: bytes,
    ) -> bytes:
        """
        Return *body* with the setting; as it is when nobody knows *provider*'s payloads or the plugin
        failed.

        Args:
            execution: Which one.
            provider: Provider key, which is also the payload's format.
            model: Upstream model.
            level: Name of a level, or empty.
            budget: Tokens, or None.
            body: The payload.
        """
        for hook in self._hooks.matching(execution.snapshot, _FLAG, execution.facts):
            if await self._key(hook) != provider:
                continue
            message = thinking_applier_pb2.ThinkingApplyRequest(provider=provider, body=body)
            message.model.id = model
            config = message.config
            if budget is not None:
                config.mode = thinking_applier_pb2.THINKING_MODE_BUDGET
                config.budget = budget
            else:
                config.mode = _MODES.get(level, thinking_applier_pb2.THINKING_MODE_LEVEL)
                config.level = level
            answer = await self._calls.ask(hook, methods.APPLY_THINKING, message, execution)
            return (answer.body if answer is not None else b"") or body
        return body

    async def _key(self, hook: Hook) -> str:
        known = (hook.plugin_id, hook.entry.config_hash)
        if self._generation != self._hooks.generation:
            self._generation = self._hooks.generation
            self._keys.clear()
        if known not in self._keys:
            asked = self._generation
            try:
                answer = await self._calls.unary(
                    hook, methods.THINKING_IDENTIFIER, identifier_pb2.IdentifierRequest()
                )
            except errors.PatchbayError as error:
                warn(hook, error)
                return ""
            key = answer.identifier.strip().lower()
            if asked != self._hooks.generation:
                return key  # perhaps of the version that is being replaced: the next one asks
            if len(self._keys) > 1024:
                self._keys.clear()
            self._keys[known] = key
        return self._keys[known]
