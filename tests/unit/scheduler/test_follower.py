"""What changes in the durable records reaches the pool."""

from __future__ import annotations

from typing import Any, cast

from patchbay_gateway.plugins.distribution import SnapshotHolder
from patchbay_gateway.scheduler.durable.port import CredentialRecord
from patchbay_gateway.scheduler.leasing import _Follower


class FakeRecords:
    def on_change(self, listener: Any) -> None:
        self.tell = listener


class FakePool:
    def __init__(self) -> None:
        self.renewed: list[tuple[str, int, bool]] = []
        self.disabled: Any = None

    def want_renewed(self, credential_id: str, version: int, *, replaced: bool = False) -> None:
        self.renewed.append((credential_id, version, replaced))

    def want_switched(self, credential_id: str, *, off: bool) -> None:
        pass


def test_tokens_of_another_seed_are_other_material_refreshed_ones_are_not() -> None:
    """A quota of the former account says nothing of the new one."""
    records, pool = FakeRecords(), FakePool()
    _Follower(SnapshotHolder(), cast("Any", records), cast("Any", pool))
    for version, seed in ((1, "a"), (2, "a"), (3, "b"), (4, "b")):
        records.tell("c", CredentialRecord("c", version=version, seed_hash=seed))
    assert pool.renewed == [("c", 1, False), ("c", 2, False), ("c", 3, True), ("c", 4, False)]
