"""
The conformance suite: every rule on one plugin, in any language, at an address.

    report = await check(address, "my-filter", key)
    assert report.passed, report.table()

Rules run one after the other, so that what they see is theirs; the whole takes some seconds. Not here:
the rules (`patchbay.testing.rules_*`), the command line (`patchbay plugin check`).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import grpc

from patchbay import errors
from patchbay.testing import (
    rules_calls,
    rules_handshake,
    rules_process,
    rules_provider,
    rules_streams,
)
from patchbay.testing.connection import CallFailed, Refused
from patchbay.testing.rules import NOT_DECLARED, Broken, Skipped, Subject
from patchbay.testing.upstream import FakeUpstream

if TYPE_CHECKING:
    from collections.abc import Collection

    from patchbay.testing.rules import Rule, Running
    from patchbay.tls import Tls

RULES: Final[tuple[Rule, ...]] = (
    *rules_process.HEALTH,
    *rules_handshake.RULES,
    *rules_streams.RULES,
    *rules_provider.RULES,
    *rules_calls.RULES,
    *rules_process.LAST,
)
"""In the order in which they run."""

_MOST: Final = 30.0
"""Seconds for one rule."""

_REACH: Final = 20.0
"""Seconds to reach the plugin."""
_REFUSED: Final = 3.0
"""Seconds for which a refused connection is tried again."""
_READY: Final = grpc.ChannelConnectivity.READY

PASS: Final = "pass"  # noqa: S105 - a verdict
FAIL: Final = "fail"
SKIPPED: Final = "skipped"


@dataclass(frozen=True, slots=True)
class Result:
    """The verdict on one rule."""

    id: str
    sentence: str
    how: str
    result: str
    """`pass`, `fail` or `skipped`."""
    detail: str
    """What was wrong, or why it was skipped."""
    seconds: float


@dataclass(frozen=True, slots=True)
class Report:
    """The verdict on one plugin."""

    plugin_id: str
    address: str
    results: tuple[Result, ...]

    @property
    def passed(self) -> bool:
        """Whether no rule is broken."""
        return not self.failed

    @property
    def failed(self) -> tuple[Result, ...]:
        """Rules that are broken."""
        return tuple(result for result in self.results if result.result == FAIL)

    def as_json(self) -> dict[str, Any]:
        """Return what `patchbay plugin check --json` prints."""
        return {
            "plugin_id": self.plugin_id,
            "address": self.address,
            "passed": self.passed,
            "rules": [asdict(result) for result in self.results],
        }

    def table(self) -> str:
        """Return the verdicts for people, one line each, and a sum; what is not declared in one line."""
        width = max(len(result.id) for result in self.results)
        lines, elsewhere = [], []
        for result in self.results:
            if result.result == SKIPPED and result.detail == NOT_DECLARED:
                elsewhere.append(result.id.removeprefix("capability."))
                continue
            line = f"{result.result:<7}  {result.id:<{width}}  {result.sentence}"
            lines.append(line)
            if result.detail:
                lines.append(f"{'':<9}{'':<{width}}  {result.detail}")
        if elsewhere:
            lines.append(f"not declared: {', '.join(elsewhere)}")
        counted = [sum(r.result == kind for r in self.results) for kind in (PASS, FAIL, SKIPPED)]
        lines.append("{} passed, {} failed, {} skipped".format(*counted))
        return "\n".join(lines)


async def check(
    address: str,
    plugin_id: str,
    key: bytes,
    *,
    config: bytes = b"",
    running: Running | None = None,
    only: Collection[str] | None = None,
    tls: Tls | None = None,
) -> Report:
    """
    Try every rule on the plugin at *address*.

    Args:
        address: `host:port` or `unix:/path`.
        plugin_id: Who it should be.
        key: Its key.
        config: Its configuration, YAML.
        running: Where the caller runs the plugin itself; the suite ends it.
        only: Ids of rules; None: all.
        tls: Certificates to show; None: without TLS.

    Raises:
        Unavailable: Nobody answers there.
    """
    async with FakeUpstream() as upstream:
        subject = Subject(
            address, plugin_id, key, upstream=upstream, config=config, running=running, tls=tls
        )
        try:
            await _reach(subject)
            wanted = [rule for rule in RULES if only is None or rule.id in only]
            results = [await _try(rule, subject) for rule in wanted]
        finally:
            await subject.aclose()
    return Report(plugin_id, address, tuple(results))


async def _reach(subject: Subject) -> None:
    """Return when the plugin answers; a busy machine has longer for it than one that says no."""
    channel = subject.connect().channel
    began = time.monotonic()
    refused_at = 0.0
    while (state := channel.get_state(try_to_connect=True)) is not _READY:
        now = time.monotonic()
        if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE:
            refused_at = refused_at or now
        if now - began > _REACH or (refused_at and now - refused_at > _REFUSED):
            raise errors.Unavailable(
                f"nobody answers at {subject.address}; is the plugin running there?"
            )
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(channel.wait_for_state_change(state), 0.5)


async def _try(rule: Rule, subject: Subject) -> Result:
    began = time.monotonic()
    result, detail = PASS, ""
    try:
        async with asyncio.timeout(_MOST):
            await rule.check(subject)
    except Skipped as skipped:
        result, detail = SKIPPED, str(skipped)
    except Broken as broken:
        result, detail = FAIL, str(broken)
    except TimeoutError:
        result, detail = FAIL, f"no verdict after {_MOST:g} s"
    except (CallFailed, Refused) as error:
        result, detail = FAIL, str(error)
    except grpc.aio.AioRpcError as error:
        result, detail = FAIL, f"{error.code().name}: {error.details()}"
    took = round(time.monotonic() - began, 3)
    return Result(rule.id, rule.sentence, rule.how, result, detail, took)
