"""Documents that plugins save where there is no directory for them."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tests.unit.scheduler.test_keeping import OAUTH2, World

from patchbay.errors import FailedPrecondition, InvalidRequest
from patchbay.keys import return_key
from patchbay.secrets import seal
from patchbay_gateway.kernel.keys import plugin_key
from patchbay_gateway.plugins.callbacks.callers import Caller
from patchbay_gateway.plugins.grants import Grants
from patchbay_gateway.scheduler.auth_data import BroughtAuth
from patchbay_gateway.scheduler.host_auths import HostAuths
from patchbay_gateway.scheduler.parsed_files import Parsed

ROOT = b"p" * 32


class Saving(World):
    """A gateway without `auth_dir`, and a plugin that is granted its own credentials."""

    def __init__(self) -> None:
        super().__init__()
        self.parsed = Parsed()
        self.auths = HostAuths(
            credentials=cast("Any", None),
            records=self.records,
            files=cast("Any", SimpleNamespace(auth_dir=None, auth_file=lambda _: None)),
            plugins_roots=[ROOT],
            clock=self.clock,
            keeper=self.keeper,
            parsed=cast("Any", self),
            write_files=False,
        )

    async def parse(self, *_: object) -> tuple[Parsed, str]:
        return self.parsed, ""

    async def save(self, name: str, **document: Any) -> str:
        sealed = seal(
            return_key(plugin_key(ROOT, "mine")), "mine", name, 0, (), self.clock.now() + 60,
            {"document": json.dumps(document)},
        )  # fmt: skip
        caller = cast("Any", SimpleNamespace(plugin_id="mine", grants=Grants(auths="own")))
        caller.need = Caller.need.__get__(caller)
        return await self.auths.save(caller, self.snapshot, name, sealed)


@pytest.fixture
def saving() -> Saving:
    return Saving()


async def test_document_becomes_a_record_that_declares_its_credential(saving: Saving) -> None:
    where = await saving.save(
        "ann.json", type="fake", access_token="test-a", refresh_token="test-r", email="ann@x",
        priority=3, prefix="p",
    )  # fmt: skip
    assert where == "credential ann"
    record = saving.record("ann")
    assert record.material == {"access_token": "test-a", "refresh_token": "test-r"}
    assert (record.label, record.origin) == ("ann@x", "document")
    ((_, entry),) = saving.keeper.entries(saving.snapshot)
    assert (entry.priority, entry.prefix, entry.oauth2) == (3, "p", OAUTH2)


async def test_document_of_a_type_that_a_plugin_reads_may_hold_several(saving: Saving) -> None:
    material = {"access_token": "test-a"}
    saving.parsed = Parsed(
        "mine", "fake", tuple(BroughtAuth("", label=n, material=material) for n in ("ann", "bob"))
    )
    where = await saving.save("team.json", type="fake", users=["ann", "bob"])
    assert where == "credential team.ann, credential team.bob"


async def test_in_a_cluster_only_declared_credentials_take_documents(saving: Saving) -> None:
    saving.store.takes_all = False
    with pytest.raises(FailedPrecondition, match="declare a ProviderCredential named ann"):
        await saving.save("ann.json", type="fake", access_token="test-a")
    assert await saving.save("declared.json", type="fake", access_token="test-a")
    assert saving.record("declared").material == {"access_token": "test-a"}


async def test_document_without_material_is_refused(saving: Saving) -> None:
    with pytest.raises(InvalidRequest, match="has neither api_key") as caught:
        await saving.save("ann.json", type="fake")
    assert caught.value.reason == "INVALID_AUTH_DOCUMENT"
