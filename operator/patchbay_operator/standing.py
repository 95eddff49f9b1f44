"""
How a ProviderCredential stands, for its status: pure, from what schedulers reported.

Not here: the report (plugins/reports.py of the gateway), writing (statuses.py).
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any, Final

from patchbay_operator.api.status import REFRESH_HEALTHY
from patchbay_operator.conditions import NEEDS_LOGIN, Said, disabled_aspect
from patchbay_operator.verdicts import Aspect

if TYPE_CHECKING:
    from patchbay_gateway.plugins.reports import Standing
    from patchbay_operator.api.provider_credential import ProviderCredentialSpec

_TEXT: Final = 1024


def details(standing: Standing | None) -> dict[str, Any]:
    """Return the fields of the status that are no conditions; None removes one."""
    if standing is None:
        return dict.fromkeys(("expiresAt", "coolingUntil", "coolingModels", "lastError"))
    error = standing.last_error or standing.refresh_error
    return {
        "expiresAt": _instant(standing.expires_at),
        "coolingUntil": _instant(standing.cooling_until),
        "coolingModels": list(standing.cooling_models) or None,
        "lastError": error[:_TEXT] or None,
    }


def _instant(at: float) -> str | None:
    if not at:
        return None
    return dt.datetime.fromtimestamp(at, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def refresh_said(name: str, spec: ProviderCredentialSpec, standing: Standing | None) -> Said | None:
    """Return the condition RefreshHealthy; None for what is not refreshed."""
    if spec.oauth2 is None:
        return None
    status, reason, message = _refresh(name, spec, standing)
    return Said(REFRESH_HEALTHY, status, reason, message)


def _refresh(
    name: str, spec: ProviderCredentialSpec, standing: Standing | None
) -> tuple[str, str, str]:
    if spec.disabled:
        return "Unknown", "Disabled", "it is not refreshed while it is disabled"
    if standing is None or not standing.refresh:
        return "Unknown", "NotYetKnown", "no scheduler has told yet how its refresh stands"
    why = f" ({standing.refresh_error})" if standing.refresh_error else ""
    serves = standing.state == "ready"
    if standing.refresh == "needs_login":
        return "False", NEEDS_LOGIN, _remedy(name, spec, why)
    if standing.refresh == "ambiguous":
        text = f"a refresh ended without an answer{why}; the next one tells whether the token is used up"
        return "Unknown", "Ambiguous", text
    if standing.refresh == "backoff":
        until = (
            "the present token serves until it ends" if serves else "meanwhile it serves nothing"
        )
        return "False", "Backoff", f"the last refresh failed{why}; it is tried again, {until}"
    if not serves:
        return "Unknown", "Pending", "an access token is being asked for"
    return "True", "Refreshed", "its access token is replaced before it ends"


def _remedy(name: str, spec: ProviderCredentialSpec, why: str) -> str:
    assert spec.oauth2 is not None
    ref = spec.oauth2.refresh_token_ref
    return (
        f"the refresh token is not accepted{why}; log in (patchbay login {spec.provider} "
        f"--credential {name}), or write a new token to the Secret {ref.name}, key {ref.key}"
    )


def serving_aspect(
    name: str, spec: ProviderCredentialSpec, standing: Standing | None, *, reported: bool = False
) -> Aspect | None:
    """
    Return whether the next request could get it, cooldowns aside; None when that is not known.

    Args:
        name: Of the resource.
        spec: The resource.
        standing: What schedulers reported of it.
        reported: Whether there are schedulers that will.
    """
    if spec.disabled:
        return disabled_aspect("spec.disabled keeps it out of use")
    if standing is None and reported and (spec.secret_ref or spec.oauth2):
        text = "schedulers are about to read its Secret"
        return Aspect(ok=False, reason="NotYetRead", message=text)
    if standing is None or standing.state == "ready":
        return None
    if standing.state == "disabled":
        text = f"management took it out of use; patchbay credentials enable {name} puts it back"
        return disabled_aspect(text)
    if standing.state == "needs_login" and spec.oauth2 is not None:
        why = f" ({standing.refresh_error})" if standing.refresh_error else ""
        return Aspect(ok=False, reason=NEEDS_LOGIN, message=_remedy(name, spec, why))
    if spec.oauth2 is not None:
        _, reason, message = _refresh(name, spec, standing)
        return Aspect(ok=False, reason=reason, message=message)
    ref = spec.secret_ref
    where = f"has the Secret {ref.name} the key {ref.key!r}?" if ref is not None else ""
    text = f"no scheduler has its key yet; {where}".rstrip("; ")
    return Aspect(ok=False, reason="NoMaterial", message=text)
