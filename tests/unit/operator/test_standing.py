"""What a ProviderCredential's status says of what schedulers reported."""

from __future__ import annotations

from typing import Any

import pytest

from patchbay_gateway.plugins.reports import Standing
from patchbay_operator.api.provider_credential import ProviderCredentialSpec
from patchbay_operator.conditions import Said, summarise
from patchbay_operator.standing import details, refresh_said, serving_aspect
from patchbay_operator.verdicts import Aspect, Verdict

FINE = Aspect(ok=True, reason="Fine", message="fine")
KEY = {
    "provider": "openai",
    "plugin": "openai-compatible",
    "baseUrl": "https://api.example/v1",
    "secretRef": {"name": "openai"},
}
OAUTH: dict[str, Any] = {
    **{k: v for k, v in KEY.items() if k != "secretRef"},
    "oauth2": {
        "tokenUrl": "https://id.example/token",
        "clientId": "test-client",
        "refreshTokenRef": {"name": "seed"},
    },
}


def spec(document: dict[str, Any], **more: Any) -> ProviderCredentialSpec:
    return ProviderCredentialSpec.model_validate({**document, **more})


def all_said(found: ProviderCredentialSpec, standing: Standing | None) -> dict[str, Said]:
    verdict = Verdict(FINE, FINE, included=True)
    said = summarise(
        verdict,
        programmed=FINE,
        health=refresh_said("team", found, standing),
        serving=serving_aspect("team", found, standing),
    )
    return {s.type: s for s in said}


@pytest.mark.parametrize(
    ("standing", "status", "reason", "ready"),
    [
        (None, "Unknown", "NotYetKnown", "True"),
        (Standing(refresh="ok"), "True", "Refreshed", "True"),
        (Standing(refresh="due"), "True", "Refreshed", "True"),
        (Standing("expired", "refreshing"), "Unknown", "Pending", "False"),
        (Standing(refresh="backoff", refresh_error="500 no"), "False", "Backoff", "True"),
        (Standing("expired", "backoff", refresh_error="500 no"), "False", "Backoff", "False"),
        (Standing(refresh="ambiguous"), "Unknown", "Ambiguous", "True"),
        (Standing("needs_login", "needs_login"), "False", "NeedsLogin", "False"),
    ],
)
def test_refresh_is_told_and_ready_only_where_requests_can_get_it(
    standing: Standing | None, status: str, reason: str, ready: str
) -> None:
    said = all_said(spec(OAUTH), standing)
    assert (said["RefreshHealthy"].status, said["RefreshHealthy"].reason) == (status, reason)
    assert said["Ready"].status == ready
    assert said["Stalled"].status == ("True" if reason == "NeedsLogin" else "False")


def test_lost_login_says_how_to_get_another() -> None:
    standing = Standing("needs_login", "needs_login", refresh_error="400 INVALID_GRANT: revoked")
    told = all_said(spec(OAUTH), standing)["Ready"].message
    assert "400 INVALID_GRANT: revoked" in told
    assert "patchbay login openai --credential team" in told
    assert "Secret seed, key refresh-token" in told


def test_key_has_no_refresh_and_one_that_is_not_there_is_told() -> None:
    assert "RefreshHealthy" not in all_said(spec(KEY), Standing())
    assert all_said(spec(KEY), Standing())["Ready"].status == "True"
    told = all_said(spec(KEY), Standing("no_material"))["Ready"]
    assert (told.status, told.reason) == ("False", "NoMaterial")
    assert "has the Secret openai the key 'api-key'?" in told.message


def test_credential_that_somebody_took_out_is_settled_and_not_ready() -> None:
    by_resource = all_said(spec(KEY, disabled=True), Standing("disabled"))
    by_management = all_said(spec(KEY), Standing("disabled"))
    for said in (by_resource, by_management):
        assert (said["Ready"].status, said["Ready"].reason) == ("False", "Disabled")
        assert (said["Reconciling"].status, said["Stalled"].status) == ("False", "False")
    assert "patchbay credentials enable team" in by_management["Ready"].message


def test_instants_are_rfc_3339_and_what_is_over_is_removed() -> None:
    standing = Standing(
        expires_at=3600.0, cooling_until=60.5, cooling_models=("big",), last_error="429 no"
    )
    assert details(standing) == {
        "expiresAt": "1970-01-01T01:00:00Z",
        "coolingUntil": "1970-01-01T00:01:00Z",
        "coolingModels": ["big"],
        "lastError": "429 no",
    }
    assert set(details(Standing()).values()) == {None}
    assert set(details(None)) == set(details(standing))


@pytest.mark.parametrize("document", [KEY, OAUTH])
def test_credential_waits_for_schedulers_that_have_not_read_it(document: dict[str, Any]) -> None:
    waiting = serving_aspect("team", spec(document), None, reported=True)
    assert waiting is not None
    assert (waiting.ok, waiting.reason) == (False, "NotYetRead")
    assert serving_aspect("team", spec(document), None) is None
    assert serving_aspect("team", spec(document), Standing(), reported=True) is None


def test_credential_without_a_secret_waits_for_nobody() -> None:
    found = spec({"provider": "p", "plugin": "echo"})
    assert serving_aspect("team", found, None, reported=True) is None
