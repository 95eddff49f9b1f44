"""Tests of the example: the flag, who is admitted, the contract."""

import asyncio

from frontend_auth_exclusive import FrontendAuthExclusive

from patchbay.frontend_auth import FrontendAuthRequest
from patchbay.testing.harness import conformance_of


def test_exclusiveness_is_declared() -> None:
    assert FrontendAuthExclusive().capabilities().frontend_auth_provider_exclusive


def test_header_decides() -> None:
    async def known(*headers: tuple[bytes, bytes]) -> bool:
        request = FrontendAuthRequest("POST", "/v1/x", headers=list(headers))
        return await FrontendAuthExclusive().authenticate(request) is not None

    assert asyncio.run(known((b"x-example-frontend-auth", b"exclusive")))
    assert not asyncio.run(known((b"authorization", b"Bearer test-key")))


def test_contract_is_kept() -> None:
    (report,) = asyncio.run(conformance_of(FrontendAuthExclusive()))
    assert report.passed, report.table()
