"""
Marks against a credential: what a failure leaves, how it grows, and what lifts it. Pure.

A mark stands against one upstream model of a credential, or against the credential as a whole (scope ""). It
opens a window in which the credential is not leased. When the window is over, and for exhausted quotas from a
tenth of it on, one attempt at a time may probe: success lifts the mark, failure opens the next window.

The same rules run in Redis (mark_rules.py) for all schedulers at once; these here serve a scheduler that is
cut off from Redis, and a test compares the two. Not here: which failure means how long (kernel/outcomes.py).
"""

from __future__ import annotations

from typing import Final

import msgspec

WHOLE: Final = ""
"""Scope of a mark against the whole credential."""

PROBE_SHARE: Final = 0.1
"""Share of a quota's window after which a probe may find that it was reset early."""
PROBE_AFTER_MS: Final = 10_000
"""No probe earlier than this within a window."""
QUOTA: Final = frozenset({"QUOTA", "RATE_LIMIT"})
"""Reasons that a success of another model does not lift from the whole credential."""
_MAX_LEVEL: Final = 30


class MarkError(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the provider said, without secrets."""

    http_status: int = msgspec.field(default=0, name="s")
    code: str = msgspec.field(default="", name="c")
    message: str = msgspec.field(default="", name="m")
    at: int = msgspec.field(default=0, name="a")
    """Unix milliseconds."""


class Mark(msgspec.Struct, frozen=True, omit_defaults=True):
    """One mark. All instants are Unix milliseconds; the short names are its form in Redis."""

    until: int = msgspec.field(default=0, name="u")
    """End of the window."""
    since: int = msgspec.field(default=0, name="b")
    """Its beginning."""
    reason: str = msgspec.field(default="", name="r")
    """Name of the kind of failure, RATE_LIMIT for limits that an answer announced."""
    level: int = msgspec.field(default=0, name="l")
    """Growing windows since the last success."""
    probe_from: int = msgspec.field(default=0, name="n")
    """From when a probe may come before the end; 0: only after it."""
    error: MarkError | None = msgspec.field(default=None, name="e")
    version: int = msgspec.field(default=0, name="v")
    """Version of the credential that failed; 0: unknown."""
    lifted: int = msgspec.field(default=0, name="x")
    """1: a newer version of the credential lifts it."""
    needs_login: int = msgspec.field(default=0, name="g")
    probe: str = msgspec.field(default="", name="p")
    """attempt_uid of the probe under way."""
    probe_until: int = msgspec.field(default=0, name="q")
    """When that one counts as lost."""

    def probing(self, now: int) -> bool:
        """Whether a probe is under way at *now*."""
        return bool(self.probe) and self.probe_until > now

    def closed(self, now: int) -> bool:
        """Whether not even a probe may come at *now*."""
        return now < self.until and not (self.probe_from and now >= self.probe_from)


class End(msgspec.Struct, omit_defaults=True):
    """The end of one attempt, as it concerns marks; the short names are its form in scripts."""

    uid: str = msgspec.field(name="u")
    credential_id: str = msgspec.field(name="i")
    model: str = msgspec.field(default="", name="m")
    """As the provider names it."""
    kind: str = msgspec.field(default="free", name="t")
    """`ok`: it succeeded. `cool`: it failed and marks. `free`: it says nothing."""
    opened: int = msgspec.field(default=0, name="o")
    """When it was leased, Unix milliseconds."""
    scope: str = msgspec.field(default=WHOLE, name="s")
    reason: str = msgspec.field(default="", name="r")
    fixed: int = msgspec.field(default=0, name="w")
    """Milliseconds of the window; 0: it grows from *first* to *cap*."""
    first: int = msgspec.field(default=0, name="f")
    cap: int = msgspec.field(default=0, name="c")
    asked: int = msgspec.field(default=0, name="a")
    """1: the provider asked for this window, so it may lengthen an open one."""
    at_least: int = msgspec.field(default=0, name="q")
    """Milliseconds that a rule of the configuration demands."""
    early: int = msgspec.field(default=0, name="h")
    """1: a probe may come before the end of the window."""
    lifted: int = msgspec.field(default=0, name="x")
    needs_login: int = msgspec.field(default=0, name="g")
    version: int = msgspec.field(default=0, name="v")
    error: MarkError | None = msgspec.field(default=None, name="e")
    capped: int = msgspec.field(default=0, name="y")
    """1: it holds a place of a credential with `max_in_flight`."""
    old: int = msgspec.field(default=0, name="d")
    """1: a renewal may still be on its way, which must not bring the lease back."""
    known: int = msgspec.field(default=0, name="z")
    """1: the lease lived in this scheduler alone, so that Redis does not have it."""

    @property
    def cools(self) -> bool:
        """Whether it opens a window, be it after a success that announced an exhausted limit."""
        return self.fixed > 0 or self.first > 0 or self.at_least > 0


def cooled(mark: Mark | None, end: End, now: int) -> Mark:
    """Return what *mark* becomes by a failure, at *now* in Unix milliseconds."""
    mark = mark or Mark()
    mine = mark.probe == end.uid and bool(mark.probe)
    is_open = mark.until > now
    same = is_open and mark.reason == end.reason
    until, level = mark.until, mark.level
    if end.fixed > 0:
        if not same or end.asked:
            until = max(until, now + end.fixed)
    elif end.first > 0 and not same:
        if mark.since and end.opened <= mark.since and level > 0:
            # Leased before the former window began: one more of the same burst.
            level -= 1
        until = max(until, now + min(end.first << min(level, _MAX_LEVEL), end.cap))
        level += 1
    if end.at_least:
        until = max(until, now + end.at_least)
    longer = until > mark.until
    if not longer and not mine:
        # The window stays as it is; nothing needs to be written or told.
        return mark
    since = mark.since if is_open else now
    probe_from = mark.probe_from
    if longer or mine:
        probe_from = 0
        if end.early:
            probe_from = now + max(PROBE_AFTER_MS, int((until - since) * PROBE_SHARE))
            probe_from = probe_from if probe_from < until else 0
    return Mark(
        until=until,
        since=since,
        reason=end.reason if longer else mark.reason,
        level=level,
        probe_from=probe_from,
        error=end.error or mark.error,
        version=end.version,
        lifted=end.lifted if longer else mark.lifted,
        needs_login=end.needs_login if longer else mark.needs_login,
        probe="" if mine else mark.probe,
        probe_until=0 if mine else mark.probe_until,
    )


def survives(mark: Mark, end: End, now: int, *, whole: bool) -> bool:
    """
    Whether *mark* stands after a success.

    A success counts if it is the probe's or was leased after the window began: one from before says nothing
    about what came since. An exhausted quota of the whole credential is lifted by its probe alone while it
    lasts.
    """
    if mark.probe and mark.probe == end.uid:
        return False
    if end.opened <= mark.since:
        return True
    return whole and mark.until > now and mark.reason in QUOTA


def freed(mark: Mark, end: End) -> Mark:
    """Return *mark* after an end that says nothing; a probe that says nothing lets the next one come."""
    if not mark.probe or mark.probe != end.uid:
        return mark
    return msgspec.structs.replace(mark, probe="", probe_until=0)


def probed(mark: Mark, uid: str, until: int) -> Mark:
    """Return *mark* with the probe *uid*, which counts as lost at *until*."""
    return msgspec.structs.replace(mark, probe=uid, probe_until=until)


_DECODER: Final = msgspec.json.Decoder(Mark, strict=False)


def decode(data: bytes | str) -> Mark:
    """Return the mark that Redis keeps as *data*; msgspec.MsgspecError when it is none."""
    return _DECODER.decode(data)


def encode(mark: Mark) -> bytes:
    """Return what Redis keeps of *mark*."""
    return msgspec.json.encode(mark)
