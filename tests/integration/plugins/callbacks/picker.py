"""A scheduler plugin that looks around in the gateway while it is asked for a choice."""

from __future__ import annotations

import asyncio
import json
import os
from typing import ClassVar

from patchbay import errors
from patchbay.host_types import HostModelExecutionRequest
from patchbay.scheduler_plugin import SchedulerPickRequest, SchedulerPickResponse, SchedulerPlugin
from patchbay.serve import serve


class Picker(SchedulerPlugin):
    """Leaves every choice to the gateway."""

    id: ClassVar = "picker"
    name: ClassVar = "Picker"
    version: ClassVar = "1.0.0"
    author: ClassVar = "tests"

    async def pick(self, request: SchedulerPickRequest) -> SchedulerPickResponse | None:
        """Note what the gateway gives and what it refuses."""
        host = request.callbacks
        found = sorted(auth.id for auth in await host.list_auths())
        reason = ""
        try:
            await host.execute_model(HostModelExecutionRequest("echo", b"{}"))
        except errors.PatchbayError as error:
            reason = error.reason
        line = json.dumps({"auths": found, "models": reason}) + "\n"
        await asyncio.to_thread(self._write, line)
        return None

    @staticmethod
    def _write(line: str) -> None:
        with open(os.environ["CALLER_LOG"], "a", encoding="utf-8") as log:  # noqa: PTH123 - a line
            log.write(line)


if __name__ == "__main__":
    serve(Picker(), address=os.environ["SAMPLE_ADDRESS"])
