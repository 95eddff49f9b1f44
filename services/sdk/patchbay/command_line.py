"""
Command line plugins: the base class of a plugin with commands of its own (pluginapi: CommandLinePlugin),
run by `patchbay plugin exec ID -- ARGS`.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from patchbay.capability import Plugin
from patchbay.host_client import UNREACHABLE, HostClient
from patchbay.host_config import HostConfigSummary
from patchbay.wire import APART, of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from patchbay.auth_provider import AuthData


class CommandLineFlagType(enum.StrEnum):
    """Kinds of flag values."""

    UNSPECIFIED = ""
    """The same as `bool`."""
    BOOL = "bool"
    STRING = "string"
    INT = "int"
    INT64 = "int64"
    FLOAT64 = "float64"
    DURATION = "duration"


@dataclass(frozen=True, slots=True)
class CommandLineFlag:
    """One flag."""

    name: str
    """Without dashes; not `help` or `h`, without spaces and `=`."""
    usage: str = ""
    """Line of the help."""
    type: CommandLineFlagType = field(
        default=CommandLineFlagType.BOOL, metadata=of(CommandLineFlagType)
    )
    """Kind of value."""
    default_value: str = ""
    """In words of the kind."""


@dataclass(frozen=True, slots=True)
class CommandLineFlagValue:
    """The value of one flag."""

    name: str
    """Without dashes."""
    type: CommandLineFlagType = field(
        default=CommandLineFlagType.UNSPECIFIED, metadata=of(CommandLineFlagType)
    )
    """Kind of value; empty for flags of the host."""
    value: str = ""
    """In words."""
    set: bool = False
    """Whether it was given."""


@dataclass(frozen=True, slots=True)
class CommandLineRegistrationRequest:
    """Asks for flags."""


@dataclass(frozen=True, slots=True)
class CommandLineRegistrationResponse:
    """The flags."""

    flags: Sequence[CommandLineFlag] = field(default=(), metadata=of(CommandLineFlag))
    """All of them."""


@dataclass(frozen=True, slots=True)
class CommandLineExecutionRequest:
    """One run."""

    program: str = ""
    """Name that the program was started by."""
    args: Sequence[str] = ()
    """All arguments after it, flags included."""
    config_path: str = ""
    """Path of the host's configuration."""
    host: HostConfigSummary = field(default_factory=HostConfigSummary, metadata=APART)
    """Host configuration."""
    flags: Mapping[str, CommandLineFlagValue] = field(
        default_factory=dict, metadata=of(CommandLineFlagValue)
    )
    """Every flag that the host knows, by name."""
    triggered_flags: Mapping[str, CommandLineFlagValue] = field(
        default_factory=dict, metadata=of(CommandLineFlagValue)
    )
    """This plugin's flags that were given, by name."""
    callbacks: HostClient = field(default=UNREACHABLE, repr=False, compare=False, metadata=APART)
    """What the plugin may ask of the gateway meanwhile."""


@dataclass(frozen=True, slots=True)
class CommandLineExecutionResponse:
    """What came of it."""

    stdout: bytes = b""
    """For standard output."""
    stderr: bytes = b""
    """For standard error."""
    auths: Sequence[AuthData] = field(default=(), metadata=APART)
    """Credentials to keep, if `exit_code` is 0."""
    exit_code: int = 0
    """Exit status."""


class CommandLinePlugin(Plugin):
    """A plugin with commands of its own."""

    capability_flag: ClassVar = "command_line_plugin"
    flags: ClassVar[Sequence[CommandLineFlag]] = ()
    """Its flags; or override `register_command_line`."""

    async def register_command_line(
        self, request: CommandLineRegistrationRequest
    ) -> CommandLineRegistrationResponse:
        """Return the flags."""
        return CommandLineRegistrationResponse(self.flags)

    async def execute_command_line(
        self, request: CommandLineExecutionRequest
    ) -> CommandLineExecutionResponse:
        """Run. An error is printed and is exit status 1."""
        raise NotImplementedError
