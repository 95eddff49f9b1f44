"""Commands of one's own: a command line plugin, run by `patchbay plugin exec command-line -- --name You`."""

from __future__ import annotations

from patchbay.command_line import (
    CommandLineExecutionRequest,
    CommandLineExecutionResponse,
    CommandLineFlag,
    CommandLineFlagType,
    CommandLinePlugin,
)


class CommandLine(CommandLinePlugin):
    """Greets."""

    id = "command-line"
    name = "Command line"
    version = "1.0.0"
    author = "Patchbay"
    flags = (
        CommandLineFlag("name", "Whom to greet.", CommandLineFlagType.STRING, "World"),
        CommandLineFlag("times", "How often.", CommandLineFlagType.INT, "1"),
        CommandLineFlag("fail", "Ends with status 3."),
    )

    async def execute_command_line(
        self, request: CommandLineExecutionRequest
    ) -> CommandLineExecutionResponse:
        """Greet."""
        values = {name: flag.value for name, flag in request.flags.items()}
        if "fail" in request.triggered_flags:
            return CommandLineExecutionResponse(stderr=b"as you wish\n", exit_code=3)
        line = f"Hello, {values.get('name') or 'World'}!\n"
        return CommandLineExecutionResponse(stdout=(line * int(values.get("times") or 1)).encode())
