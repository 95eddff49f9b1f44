"""
What a failed attempt means for the request: a pure function from an error to a decision.

| failure | again? | keep away from |
|---|---|---|
| executor address gone, draining or unreachable (Unavailable) | yes | the address |
| executor address silent past the edge's own deadline (DeadlineExceeded) | yes | the address |
| provider connection failed or broke before an answer head (UpstreamError) | yes | the credential |
| anything that the provider answered, and all else | no | – |

Nothing is tried again once the answer is committed; the caller of `decide` knows that. Not here: what a
failure changes for a credential (scheduler), how it looks to the client (edge/dialects).
"""

from __future__ import annotations

from dataclasses import dataclass

from patchbay import errors

CONNECTION_FAILED = "UPSTREAM_CONNECTION"
"""Reason of an UpstreamError whose connection failed or broke before an answer head."""

NO_SCHEDULER = "NO_SCHEDULER"
"""Reason of an Unavailable: no scheduler answered; whether it opened the attempt is not known."""
NO_EXECUTOR = "NO_EXECUTOR"
"""Reason of an Unavailable: no address of the plugin is left to try."""


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do after a failed attempt."""

    again: bool
    """Whether a new attempt may be made."""
    avoid_address: bool = False
    avoid_credential: bool = False


_GIVE_UP = Decision(again=False)
_OTHER_ADDRESS = Decision(again=True, avoid_address=True)
_OTHER_CREDENTIAL = Decision(again=True, avoid_credential=True)


def decide(error: errors.PatchbayError) -> Decision:
    """Return what *error*, the end of an attempt before the answer was committed, means."""
    if isinstance(error, errors.UpstreamError):
        if error.sent is errors.Sent.NO or error.reason == CONNECTION_FAILED:
            return _OTHER_CREDENTIAL
        return _GIVE_UP
    if error.reason == NO_EXECUTOR:
        return _GIVE_UP
    if isinstance(error, errors.Unavailable | errors.DeadlineExceeded):
        return _OTHER_ADDRESS
    return _GIVE_UP


def reached(error: errors.PatchbayError) -> errors.Sent:
    """Return how far the upstream call of a failed attempt came (the ledger's `reached`)."""
    if error.sent is not errors.Sent.UNSPECIFIED:
        return error.sent
    return errors.Sent.UNKNOWN
