"""Keys of an installation: made once, never over somebody's, and never in the place of a misspelt one."""

from __future__ import annotations

import base64

import pytest
from tests.fakes.kube_api import FakeKube

from patchbay.errors import FailedPrecondition
from patchbay_operator.making import Names, make_secrets

NAMES = Names("roots", "client", "management", "executors", "redis", "redis.example")
MADE = {"roots", "client", "management", "executors", "redis"}


def _data(kube: FakeKube) -> dict[str, object]:
    return {name: document["data"] for (_, name), document in kube.objects.items()}


async def test_second_run_changes_nothing() -> None:
    kube = FakeKube()
    await make_secrets(kube, NAMES)
    first = _data(kube)
    await make_secrets(kube, NAMES)
    assert first.keys() == MADE
    assert _data(kube) == first


async def test_secret_of_ones_own_that_is_missing_is_told_and_nothing_is_made() -> None:
    """New roots under a misspelt name would open nothing that was stored."""
    kube = FakeKube()
    names = Names("rots", "client", "management", "executors", yours=frozenset({"rots"}))
    with pytest.raises(FailedPrecondition, match="there is no Secret rots"):
        await make_secrets(kube, names)
    assert not kube.objects


async def test_executors_get_keys_of_roots_that_are_ones_own() -> None:
    kube = FakeKube()
    kube.secret("roots", store="11" * 32, plugins="22" * 32, cluster="33" * 32)
    kube.secret("client", key="test-key-client")
    kube.secret("management", key="test-key-management")
    before = _data(kube)
    await make_secrets(
        kube,
        Names(
            *("roots", "client", "management", "executors"),
            yours=frozenset({"roots", "client", "management"}),
        ),
    )
    after = _data(kube)
    assert {name: after[name] for name in before} == before
    lines = base64.b64decode(kube.objects["Secret", "executors"]["data"]["keys"]).decode()
    assert "echo=" in lines
