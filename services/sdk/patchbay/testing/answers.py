"""
What hosts insist on in answers: one sentence of complaint, or none.

Only what is wrong for every plugin of a capability. Not here: errors (`patchbay.testing.rules_calls`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from patchbay.plugin.v1 import model_router_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

_STATE: Final = re.compile(r"(?!.*\.\.)[A-Za-z0-9_.-]{1,128}")
_FLAG: Final = re.compile(r"[^\s=]+")
_CONNECTION: Final = frozenset(
    {
        "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection",
        "te", "trailer", "transfer-encoding", "upgrade", "content-length", "content-encoding",
    }
)  # fmt: skip
"""Headers that spoke of the connection to the provider."""


def complaints(method: str, request: Any, answer: Any) -> str:
    """Return what is wrong with *answer*, empty if nothing."""
    check = _CHECKS.get(method)
    return check(request, answer) if check is not None else ""


def _identifier(_: Any, answer: Any) -> str:
    return "" if answer.identifier.strip() else "the identifier is empty"


def _models(_: Any, answer: Any) -> str:
    return "" if all(model.id.strip() for model in answer.models) else "a model has no id"


def _registered_models(request: Any, answer: Any) -> str:
    return _models(request, answer) if answer.provider else "the models have no provider"


def _authenticated(_: Any, answer: Any) -> str:
    if answer.authenticated and not answer.principal.strip():
        return "the client is authenticated and has no principal"
    return ""


def _picked(request: Any, answer: Any) -> str:
    if answer.handled and answer.auth_id:
        if answer.auth_id not in {candidate.id for candidate in request.candidates}:
            return f"{answer.auth_id!r} is no candidate"
    elif answer.handled and not answer.delegate_builtin:
        return "handled, and neither a candidate nor a strategy is named"
    return ""


def _routed(_: Any, answer: Any) -> str:
    if not answer.handled:
        return ""
    if not answer.target_kind:
        return "handled, and there is no kind of target"
    own = model_router_pb2.MODEL_ROUTE_TARGET_KIND_SELF
    if answer.target_kind != own and not answer.target:
        return "handled, and there is no target"
    return ""


def _login(_: Any, answer: Any) -> str:
    if not _STATE.fullmatch(answer.state):
        return f"the state {answer.state!r} is not 1 to 128 of A-Z a-z 0-9 - _ . without '..'"
    return "" if answer.url else "there is no URL to open"


def _flags(_: Any, answer: Any) -> str:
    for flag in answer.flags:
        if not _FLAG.fullmatch(flag.name) or flag.name.startswith("-"):
            return f"the flag {flag.name!r} has dashes, spaces or `=`"
        if flag.name in {"help", "h"}:
            return "the flags help and h are the gateway's"
    return ""


def _routes(_: Any, answer: Any) -> str:
    for route in (*answer.routes, *answer.resources):
        if not route.path.strip("/ "):
            return "a route has no path"
    return ""


def _managed(_: Any, answer: Any) -> str:
    if not 100 <= answer.status_code <= 599:
        return f"the status is {answer.status_code}"
    return ""


def _executed(_: Any, answer: Any) -> str:
    if answer.status and not 200 <= answer.status <= 299:
        return f"an answer of status {answer.status}: failures are errors with UpstreamError"
    return header_complaint(answer.headers)


def header_complaint(headers: Iterable[str]) -> str:
    """Return what is wrong with the names of an executor's answer headers, empty if nothing."""
    for name in headers:
        if name != name.lower():
            return f"the header {name!r} is not in lower case"
        if name in _CONNECTION:
            return f"the header {name!r} spoke of the connection to the provider"
    return ""


_CHECKS: Final[Mapping[str, Callable[[Any, Any], str]]] = {
    "Identifier": _identifier,
    "RegisterModels": _registered_models,
    "StaticModels": _models,
    "ModelsForAuth": _models,
    "Authenticate": _authenticated,
    "Pick": _picked,
    "RouteModel": _routed,
    "StartLogin": _login,
    "RegisterCommandLine": _flags,
    "RegisterManagement": _routes,
    "HandleManagement": _managed,
    "Execute": _executed,
    "CountTokens": _executed,
}
