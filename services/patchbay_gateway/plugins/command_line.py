"""
command_line.register and command_line.execute: a plugin's own commands.

Flags are read here as the plugin declared them: `--name value`, `--name=value`, a `bool` also alone, one dash
as good as two. Values are checked by kind; what is no flag is an argument. `help` and `h` are the gateway's.

Not here: the verb (commands/plugin_exec.py), its route (edge/management).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from patchbay import errors
from patchbay.plugin.v1 import command_line_plugin_pb2 as pb
from patchbay_gateway.kernel.channels import methods
from patchbay_gateway.kernel.config.quantities import parse_duration

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from patchbay_gateway.plugins.calls import PluginCalls
    from patchbay_gateway.plugins.hooks import Hook, Hooks
    from patchbay_gateway.plugins.snapshot import Snapshot

CAPABILITY: Final = "command_line_plugin"
_REGISTER: Final = 10.0
_RESERVED: Final = frozenset({"help", "h"})
_KINDS: Final[dict[pb.CommandLineFlagType.ValueType, str]] = {
    pb.COMMAND_LINE_FLAG_TYPE_UNSPECIFIED: "bool",
    pb.COMMAND_LINE_FLAG_TYPE_BOOL: "bool",
    pb.COMMAND_LINE_FLAG_TYPE_STRING: "string",
    pb.COMMAND_LINE_FLAG_TYPE_INT: "int",
    pb.COMMAND_LINE_FLAG_TYPE_INT64: "int64",
    pb.COMMAND_LINE_FLAG_TYPE_FLOAT64: "float64",
    pb.COMMAND_LINE_FLAG_TYPE_DURATION: "duration",
}
_BOOLEANS: Final = frozenset({"true", "false", "1", "0", "t", "f"})


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag."""

    name: str
    kind: str
    usage: str = ""
    default: str = ""


class CommandLines:
    """
    Commands of the plugins of the current snapshot.

    Args:
        hooks: Who takes part.
        calls: Calls them.
        snapshot: The current one.
    """

    def __init__(
        self, hooks: Hooks, calls: PluginCalls, snapshot: Callable[[], Snapshot | None]
    ) -> None:
        self._hooks = hooks
        self._calls = calls
        self._snapshot = snapshot

    async def flags(self, plugin_id: str) -> list[Flag]:
        """
        Return the plugin's flags.

        Raises:
            NotFound: NO_COMMAND_LINE, it has no command line.
            PatchbayError: It does not answer.
        """
        answer = await self._calls.unary(
            self._hook(plugin_id),
            methods.REGISTER_COMMAND_LINE,
            pb.CommandLineRegistrationRequest(),
            deadline=_REGISTER,
        )
        return [flag for each in answer.flags if (flag := _flag(each)) is not None]

    async def execute(self, plugin_id: str, args: Sequence[str]) -> pb.CommandLineExecutionResponse:
        """
        Run it; no deadline.

        Raises:
            NotFound: NO_COMMAND_LINE.
            InvalidRequest: BAD_FLAG, the arguments do not fit the flags.
            PatchbayError: The plugin's.
        """
        flags = await self.flags(plugin_id)
        triggered, _ = parse(flags, args)
        request = pb.CommandLineExecutionRequest(program="patchbay", args=args)
        for flag in flags:
            given = flag.name in triggered
            value = pb.CommandLineFlagValue(
                name=flag.name,
                type=_type(flag.kind),
                value=triggered.get(flag.name, flag.default),
                set=given,
            )
            request.flags[flag.name].CopyFrom(value)
            if given:
                request.triggered_flags[flag.name].CopyFrom(value)
        return await self._calls.unary(self._hook(plugin_id), methods.EXECUTE_COMMAND_LINE, request)

    def _hook(self, plugin_id: str) -> Hook:
        snapshot = self._snapshot()
        hooks = self._hooks.of(snapshot, CAPABILITY) if snapshot is not None else ()
        found = next((hook for hook in hooks if hook.plugin_id == plugin_id), None)
        if found is None:
            raise errors.NotFound(
                f"no plugin {plugin_id!r} with a command line; `patchbay plugin list` shows which "
                "plugins are registered, and with what",
                reason="NO_COMMAND_LINE",
            )
        return found


def parse(flags: Sequence[Flag], args: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """
    Return the values of the flags given, by name, and what is no flag.

    Raises:
        InvalidRequest: BAD_FLAG, unknown, without a value, or a value of another kind.
    """
    known = {flag.name: flag for flag in flags}
    values: dict[str, str] = {}
    rest: list[str] = []
    waiting = list(args)
    while waiting:
        word = waiting.pop(0)
        if word == "--":
            return values, rest + waiting
        if not word.startswith("-") or word == "-":
            rest.append(word)
            continue
        name, equals, value = word.lstrip("-").partition("=")
        flag = known.get(name)
        if flag is None:
            names = ", ".join(f"--{n}" for n in known) or "none"
            raise _bad(f"there is no flag --{name}; there are: {names}")
        if not equals:
            if flag.kind == "bool":
                value = "true"
            elif not waiting:
                raise _bad(f"--{name} needs a value ({flag.kind})")
            else:
                value = waiting.pop(0)
        if not _fits(flag.kind, value):
            raise _bad(f"--{name}: {value!r} is no {flag.kind}")
        values[name] = value
    return values, rest


def _fits(kind: str, value: str) -> bool:
    try:
        if kind == "bool":
            return value.lower() in _BOOLEANS
        if kind in {"int", "int64"}:
            return -(1 << 63) <= int(value) < 1 << 63
        if kind == "float64":
            float(value)
        elif kind == "duration":
            parse_duration(value)
    except ValueError:
        return False
    return True


def _flag(declared: pb.CommandLineFlag) -> Flag | None:
    """Return the flag if it can be one: a sane name, a known kind, a default of that kind."""
    name, kind = declared.name, _KINDS.get(declared.type)
    bad = not name or name.startswith("-") or name in _RESERVED or re.search(r"[\s=]", name)
    if bad or kind is None:
        return None
    if declared.default_value and not _fits(kind, declared.default_value):
        return None
    return Flag(name, kind, declared.usage, declared.default_value)


def _type(kind: str) -> pb.CommandLineFlagType.ValueType:
    return next(number for number, name in _KINDS.items() if name == kind and number)


def _bad(text: str) -> errors.InvalidRequest:
    return errors.InvalidRequest(text, reason="BAD_FLAG")
