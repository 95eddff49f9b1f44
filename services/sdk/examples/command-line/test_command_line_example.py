"""Tests of the example: flags, output, exit status, the contract."""

import asyncio

from command_line_example import CommandLine

from patchbay.command_line import (
    CommandLineExecutionRequest,
    CommandLineFlagValue,
    CommandLineRegistrationRequest,
)
from patchbay.testing.harness import conformance_of, serving


def test_flags_and_greeting() -> None:
    async def scenario() -> None:
        async with serving(CommandLine()) as served:
            told = await served.call("RegisterCommandLine", CommandLineRegistrationRequest())
            assert [flag.name for flag in told.flags] == ["name", "times", "fail"]
            given = {
                "name": CommandLineFlagValue("name", value="you", set=True),
                "times": CommandLineFlagValue("times", value="2", set=True),
            }
            request = CommandLineExecutionRequest(flags=given, triggered_flags=given)
            done = await served.call("ExecuteCommandLine", request)
            assert (done.exit_code, done.stdout) == (0, b"Hello, you!\nHello, you!\n")

    asyncio.run(scenario())


def test_failure_has_its_status() -> None:
    given = {"fail": CommandLineFlagValue("fail", value="true", set=True)}
    request = CommandLineExecutionRequest(triggered_flags=given)
    done = asyncio.run(CommandLine().execute_command_line(request))
    assert (done.exit_code, done.stderr) == (3, b"as you wish\n")


def test_contract_is_kept() -> None:
    (report,) = asyncio.run(conformance_of(CommandLine()))
    assert report.passed, report.table()
