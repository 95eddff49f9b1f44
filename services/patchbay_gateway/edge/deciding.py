"""
What follows a failed attempt: judged, refreshed where that helps, decided.

Not here: what the failure is (judging.py), the tables (kernel/outcomes.py), what was tried (tries.py).
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from patchbay_gateway.kernel import outcomes

if TYPE_CHECKING:
    from patchbay import errors
    from patchbay_gateway.edge.attempts import Attempt
    from patchbay_gateway.edge.judging import Judge, Judgement
    from patchbay_gateway.edge.refreshes import Refreshes
    from patchbay_gateway.edge.request import Request
    from patchbay_gateway.edge.tries import Tries


class Decider:
    """Decides; one per edge."""

    def __init__(self, judge: Judge, refreshes: Refreshes) -> None:
        self.judge = judge
        self._refreshes = refreshes

    async def decide(
        self,
        request: Request,
        attempt: Attempt,
        tries: Tries,
        error: errors.PatchbayError,
        *,
        committed: bool,
    ) -> tuple[Judgement, outcomes.Next]:
        """
        Return what a failure is and what follows; a refresh that it asks for has been made.

        Raises:
            CancelledError: The client left meanwhile; the attempt is settled.
        """
        attempt.mark_end()
        judgement = self.judge.judge(request, error)
        attempt.limits = judgement.limits or attempt.limits
        if committed:
            return judgement, outcomes.Next.STOP
        decision = outcomes.decide(
            error,
            judgement.fault,
            refreshable=tries.may_refresh(attempt.lease),
            action=judgement.action,
        )
        if decision.next is not outcomes.Next.REFRESH:
            return judgement, decision.next
        try:
            refreshed = await self._refreshes.refresh(attempt.lease)
        except asyncio.CancelledError:
            attempt.fail(error, 0)
            raise
        if refreshed:
            # What was refused is no more: nothing is held against what there is now.
            return replace(judgement, held=None), decision.next
        return judgement, outcomes.decide(error, judgement.fault).next
