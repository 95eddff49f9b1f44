"""Request ids."""

from patchbay_gateway.kernel.clock import ManualClock
from patchbay_gateway.kernel.uid import UidSource, attempt_uid

ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def test_mint_many_are_unique_and_well_formed() -> None:
    source = UidSource(ManualClock())
    minted = [source.mint() for _ in range(2000)]
    assert len(set(minted)) == 2000
    assert all(len(u) == 26 and set(u) <= set(ALPHABET) for u in minted)


async def test_mint_later_sorts_after_earlier() -> None:
    clock = ManualClock()
    source = UidSource(clock)
    earlier = source.mint()
    await clock.advance(0.002)
    assert earlier < source.mint()


def test_mint_carries_the_time() -> None:
    """The first ten characters are the Unix milliseconds, as the ULID specification has it."""
    minted = UidSource(ManualClock(1_700_000_000.123)).mint()
    value = 0
    for letter in minted[:10]:
        value = value * 32 + ALPHABET.index(letter)
    assert value == 1_700_000_000_123


def test_attempt_uid_names_request_and_number() -> None:
    assert attempt_uid("01ARZ3NDEKTSV4RRFFQ69G5FAV", 2) == "01ARZ3NDEKTSV4RRFFQ69G5FAV-2"
