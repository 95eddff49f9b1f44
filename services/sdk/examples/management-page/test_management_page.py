"""Tests of the example: counts, page, clearing, the contract."""

import asyncio

from management_page import ManagementPage

from patchbay.interceptors import RequestInterceptRequest
from patchbay.management import ManagementRegistrationRequest, ManagementRequest
from patchbay.testing.harness import conformance_of, serving

BASE = "/v0/management/management-page/counts"
PAGE = "/v0/resource/plugins/management-page/status"


def test_counts_are_shown_and_cleared() -> None:
    async def scenario() -> None:
        async with serving(ManagementPage()) as served:
            told = await served.call("RegisterManagement", ManagementRegistrationRequest())
            assert [route.menu for route in told.resources] == ["Requests"]
            request = RequestInterceptRequest("r", "t", "openai", "m", "<b>m</b>")
            await served.call("InterceptRequestBeforeAuth", request)
            page = await served.call("HandleManagement", ManagementRequest("GET", PAGE))
            assert b"<td>&lt;b&gt;m&lt;/b&gt;</td><td>1</td>" in page.body
            cleared = await served.call("HandleManagement", ManagementRequest("DELETE", BASE))
            assert cleared.status_code == 204
            counts = await served.call("HandleManagement", ManagementRequest("GET", BASE))
            assert counts.body == b"{}"

    asyncio.run(scenario())


def test_contract_is_kept() -> None:
    (report,) = asyncio.run(conformance_of(ManagementPage()))
    assert report.passed, report.table()
