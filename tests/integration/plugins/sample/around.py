"""
A plugin beside the path of requests, as a process of its own: it chooses credentials, hears of usage, has
pages, routes and commands.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, ClassVar

from patchbay import errors
from patchbay.command_line import (
    CommandLineExecutionRequest,
    CommandLineExecutionResponse,
    CommandLineFlag,
    CommandLineFlagType,
    CommandLinePlugin,
)
from patchbay.management import (
    ManagementAPI,
    ManagementRequest,
    ManagementResponse,
    ManagementRoute,
    ResourceRoute,
)
from patchbay.scheduler_plugin import (
    SchedulerPickRequest,
    SchedulerPickResponse,
    SchedulerPlugin,
)
from patchbay.serve import serve
from patchbay.usage_plugin import UsagePlugin, UsageRecord

if TYPE_CHECKING:
    from collections.abc import Sequence


class Around(SchedulerPlugin, UsagePlugin, ManagementAPI, CommandLinePlugin):
    """All of it."""

    id: ClassVar = "around"
    name: ClassVar = "Around"
    version: ClassVar = "1.0.0"
    author: ClassVar = "tests"
    routes: ClassVar[Sequence[ManagementRoute]] = (ManagementRoute("around/echo", "POST"),)
    resources: ClassVar[Sequence[ResourceRoute]] = (ResourceRoute("status", "Around"),)
    flags: ClassVar[Sequence[CommandLineFlag]] = (
        CommandLineFlag("status", "Exit status", CommandLineFlagType.INT, "0"),
    )

    async def pick(self, request: SchedulerPickRequest) -> SchedulerPickResponse | None:
        """Always the last by id; fails for a client that asks for it by its model."""
        if request.model == "text-embedding-fake":
            raise errors.Internal("no choice")
        return SchedulerPickResponse(auth_id=request.candidates[-1].id)

    async def handle_usage(self, record: UsageRecord) -> None:
        """Keep it as a line."""
        with open(os.environ["SAMPLE_LOG"], "a") as log:  # noqa: ASYNC230, PTH123 - a line
            line = {
                "uid": record.attempt_uid,
                "request": record.request_id,
                "auth": record.auth_id,
                "outcome": record.outcome,
            }
            log.write(json.dumps(line) + "\n")

    async def handle_management(self, request: ManagementRequest) -> ManagementResponse:
        """Say what came."""
        if request.body == b"please die":
            os._exit(1)
        text = f"{request.method} {request.path} ".encode() + request.body
        return ManagementResponse(text, headers=[(b"content-type", b"text/plain")])

    async def execute_command_line(
        self, request: CommandLineExecutionRequest
    ) -> CommandLineExecutionResponse:
        """Print the arguments; end with the status asked for."""
        status = int(request.flags["status"].value)
        return CommandLineExecutionResponse(
            " ".join(request.args).encode() + b"\n", b"to stderr\n", exit_code=status
        )


if __name__ == "__main__":
    serve(Around(), address=os.environ["SAMPLE_ADDRESS"])
