"""Tests of the example: who is known, and the contract."""

import asyncio

from frontend_auth_example import FrontendAuth

from patchbay.frontend_auth import FrontendAuthRequest
from patchbay.testing.harness import called_directly, conformance_of

CONFIG = b"teams: {blue: test-token-blue}"


def test_team_is_known_by_its_token() -> None:
    request = FrontendAuthRequest("POST", "/v1/x", headers=[(b"x-team-token", b"test-token-blue")])
    answer = asyncio.run(called_directly(FrontendAuth(), "Authenticate", request, config=CONFIG))
    assert (answer.authenticated, answer.principal) == (True, "blue")
    assert answer.metadata["tenant"] == "blue"


def test_others_are_not() -> None:
    request = FrontendAuthRequest("POST", "/v1/x", headers=[(b"x-team-token", b"guess")])
    answer = asyncio.run(called_directly(FrontendAuth(), "Authenticate", request, config=CONFIG))
    assert not answer.authenticated


def test_contract_is_kept() -> None:
    (report,) = asyncio.run(conformance_of(FrontendAuth(), configs={FrontendAuth.id: CONFIG}))
    assert report.passed, report.table()
