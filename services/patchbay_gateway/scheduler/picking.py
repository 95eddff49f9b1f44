"""
Attempts whose credential a scheduler plugin chooses: what it may choose from, and taking what it chose.

A plugin is asked about each attempt that has a choice: not about one with a pinned credential, nor one that
goes on with the credential it has (`prefer`), nor where nobody is ready. What it chose is taken like any
other choice; if another attempt was quicker, the plugin is asked again, at last the built-in chooses.
The session's credential counts only where the plugin leaves the choice to the built-in.

Not here: the call and its failure (plugins/scheduler_plugin.py), taking (placing.py).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import orjson

from patchbay.errors import PatchbayError
from patchbay.plugin.v1 import scheduler_plugin_pb2
from patchbay_gateway.plugins.hooks import Facts
from patchbay_gateway.plugins.scheduler_plugin import scrubbed
from patchbay_gateway.scheduler.selection import CHOICE_GONE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patchbay.scheduler.v1 import scheduler_pb2
    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.plugins.hooks import Hook
    from patchbay_gateway.plugins.scheduler_plugin import SchedulerPlugins
    from patchbay_gateway.plugins.snapshot import Snapshot
    from patchbay_gateway.scheduler.credentials import Credentials
    from patchbay_gateway.scheduler.health import HealthView
    from patchbay_gateway.scheduler.placing import Placed, Placing, Standing, Wish
    from patchbay_gateway.scheduler.selection import Candidate, Selector

# Questions per attempt: each one after the first means that somebody else was quicker.
_TURNS: Final = 3


class Picking:
    """
    Places attempts by the choice of plugins.

    Args:
        plugins: Asks them.
        placing: Takes.
        selector: Knows who is ready.
        credentials: Attributes.
        view: What is known of the pool.
        clock: Time.
    """

    def __init__(
        self,
        plugins: SchedulerPlugins,
        placing: Placing,
        *,
        selector: Selector,
        credentials: Credentials,
        view: HealthView,
        clock: Clock,
    ) -> None:
        self._plugins = plugins
        self._placing = placing
        self._selector = selector
        self._credentials = credentials
        self._view = view
        self._clock = clock

    def who(self, snapshot: Snapshot, item: scheduler_pb2.AcquireItem) -> Hook | None:
        """Return the plugin that is to choose for *item*; None where none is."""
        if not self._plugins.any(snapshot):
            return None
        if item.pinned_credential_id or item.prefer_credential_id:
            return None
        attempt = item.attempt
        route = attempt.model if attempt.model in snapshot.route_names else ""
        facts = Facts(attempt.format, attempt.model, route, attempt.client_key)
        return self._plugins.first(snapshot, facts)

    async def place(
        self, wishes: Sequence[Wish], asked: Sequence[tuple[Hook, scheduler_pb2.AcquireItem]]
    ) -> list[Placed | Standing | PatchbayError]:
        """
        Return for each wish its lease or why it gets none.

        Args:
            wishes: The attempts.
            asked: For each, whom to ask, and the item that it was made from.

        Raises:
            PatchbayError: As `Placing.place`.
        """
        results: dict[int, Placed | Standing | PatchbayError] = {}
        left = list(range(len(wishes)))
        for turn in range(_TURNS + 1):
            if turn < _TURNS:
                refused = await asyncio.gather(*(self._choose(wishes[i], *asked[i]) for i in left))
                results.update({i: e for i, e in zip(left, refused, strict=True) if e is not None})
            else:
                for i in left:
                    wishes[i].chosen = wishes[i].strategy = ""
            left = [i for i in left if i not in results]
            if not left:
                break
            answers = await self._placing.place([wishes[i] for i in left])
            again: list[int] = []
            for i, answer in zip(left, answers, strict=True):
                if isinstance(answer, PatchbayError) and answer.reason == CHOICE_GONE:
                    again.append(i)
                else:
                    results[i] = answer
            left = again
            if not left:
                break
        return [results[i] for i in range(len(wishes))]

    async def _choose(
        self, wish: Wish, hook: Hook, item: scheduler_pb2.AcquireItem
    ) -> PatchbayError | None:
        """Have *wish* say what the plugin chose; return why the attempt fails, None if it does not."""
        wish.chosen = wish.strategy = ""
        try:
            candidates = self._selector.ready(
                wish.snapshot,
                wish.model,
                wish.providers,
                exclude=wish.exclude,
                tried=wish.tried,
                round=wish.round,
                now=self._clock.now(),
            )
            if not candidates:
                return None
            choice = await self._plugins.pick(hook, self._request(item, candidates))
        except PatchbayError as error:
            return error
        if choice is not None:
            wish.chosen, wish.strategy = choice.auth_id, choice.strategy
        return None

    def _request(
        self, item: scheduler_pb2.AcquireItem, candidates: Sequence[Candidate]
    ) -> scheduler_plugin_pb2.SchedulerPickRequest:
        attempt = item.attempt
        providers = sorted({candidate.provider.name for candidate in candidates})
        return scheduler_plugin_pb2.SchedulerPickRequest(
            provider=providers[0] if len(providers) == 1 else "",
            providers=providers,
            model=attempt.model,
            stream=attempt.stream,
            options=scheduler_plugin_pb2.SchedulerOptions(
                headers=item.headers,
                metadata=orjson.dumps(
                    {
                        "request_id": attempt.request_uid,
                        "attempt": attempt.number,
                        "format": attempt.format,
                        "operation": attempt.operation,
                        "tenant": attempt.tenant,
                        "client_key": attempt.client_key,
                    }
                ),
            ),
            candidates=[self._candidate(candidate) for candidate in candidates],
        )

    def _candidate(self, candidate: Candidate) -> scheduler_plugin_pb2.SchedulerAuthCandidate:
        credential = candidate.credential
        blocked = self._view.blocked(credential.id, candidate.upstream_model)
        return scheduler_plugin_pb2.SchedulerAuthCandidate(
            id=credential.id,
            provider=candidate.provider.name,
            priority=credential.priority,
            status="ready" if blocked is None else "probing",
            attributes=scrubbed(self._credentials.attributes(credential)),
            weight=credential.weight,
            in_flight=self._view.in_flight(credential.id),
        )
