"""
An auth provider as a process of its own: it reads files with several accounts in them, and has a command that
brings one more.
"""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, ClassVar

from patchbay.auth_provider import AuthData, AuthParseRequest, AuthParseResponse, AuthProvider
from patchbay.command_line import (
    CommandLineExecutionRequest,
    CommandLineExecutionResponse,
    CommandLineFlag,
    CommandLineFlagType,
    CommandLinePlugin,
)
from patchbay.serve import serve

if TYPE_CHECKING:
    from collections.abc import Sequence


class Accounts(AuthProvider, CommandLinePlugin):
    """Knows the provider `team`."""

    id: ClassVar = "accounts"
    name: ClassVar = "Accounts"
    version: ClassVar = "1.0.0"
    author: ClassVar = "tests"
    flags: ClassVar[Sequence[CommandLineFlag]] = (
        CommandLineFlag("user", "Whom to add", CommandLineFlagType.STRING),
        CommandLineFlag("provider", "Where", CommandLineFlagType.STRING, "team"),
    )

    @property
    def identifier(self) -> str:
        """The provider key."""
        return "team"

    async def parse_auth(self, request: AuthParseRequest) -> AuthParseResponse:
        """Read the accounts of a file."""
        document = json.loads(request.raw_json)
        if "users" not in document:
            return AuthParseResponse(handled=False)
        return AuthParseResponse(handled=True, auths=[_account(u) for u in document["users"]])

    async def execute_command_line(
        self, request: CommandLineExecutionRequest
    ) -> CommandLineExecutionResponse:
        """Bring one account."""
        user, provider = request.flags["user"].value, request.flags["provider"].value
        return CommandLineExecutionResponse(b"hello\n", auths=[_account(user, provider)])


def _account(user: str, provider: str = "") -> AuthData:
    return AuthData(provider=provider, label=user, storage={"access_token": f"test-of-{user}"})


if __name__ == "__main__":
    serve(Accounts(), address=os.environ["SAMPLE_ADDRESS"])
