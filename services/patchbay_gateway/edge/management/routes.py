"""
The routes of the management API, in FastAPI.

Imported by the first request that needs it (app.py). Not here: who may ask, probes and metrics (app.py),
what the plugins' own routes answer.
"""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.routing import Route

from patchbay import errors
from patchbay_gateway.edge.management import page, plugin_routes, views
from patchbay_gateway.edge.management.failures import STATUS, error_body
from patchbay_gateway.edge.management.logins import CALLBACK
from patchbay_gateway.edge.management.port import Grouping
from patchbay_gateway.kernel.config.quantities import parse_duration

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from patchbay_gateway.edge.management.logins import Logins
    from patchbay_gateway.edge.management.port import ManagementPorts
    from patchbay_gateway.kernel.clock import Clock
    from patchbay_gateway.plugins.command_line import CommandLines
    from patchbay_gateway.plugins.snapshot import Snapshot


def build_api(ports: ManagementPorts, clock: Clock) -> FastAPI:
    """Return the FastAPI application behind the gate."""
    api = FastAPI(
        title="Patchbay management",
        description="What a gateway runs on, what it has done, and what is wrong with it.",
        version="v0",
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json",
    )
    api.add_exception_handler(errors.PatchbayError, _on_error)
    api.add_exception_handler(RequestValidationError, _on_invalid)
    api.add_exception_handler(HTTPException, _on_status)
    api.include_router(_management(ports, clock), prefix="/v0/management")

    @api.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(page.render(api.openapi()))

    @api.get("/", include_in_schema=False)
    async def root() -> RedirectResponse:
        return RedirectResponse("/docs")

    own = tuple(api.routes)

    async def others(request: Request) -> Response:
        return await plugin_routes.serve(request, ports, own)

    # Last, so that nothing of the above can be taken over; by every method, whatever its name.
    api.router.routes.append(AnyMethod(others))
    return api


class AnyMethod(Route):
    """A route for every path and method."""

    def __init__(self, endpoint: Callable[[Request], Awaitable[Response]]) -> None:
        super().__init__("/{path:path}", endpoint, include_in_schema=False)
        self.methods = None


def _management(ports: ManagementPorts, clock: Clock) -> APIRouter:
    router = APIRouter()

    def snapshot() -> Snapshot:
        if (current := ports.snapshot()) is None:
            raise errors.NotFound("no snapshot has been published yet", reason="NO_SNAPSHOT")
        return current

    @router.get("/usage", tags=["usage"])
    async def usage(
        since: Annotated[
            str, Query(description="`24h`, an RFC 3339 instant, or Unix seconds; empty means all.")
        ] = "",
        by: Annotated[Grouping, Query(description="What to sum by.")] = Grouping.MODEL,
    ) -> list[dict[str, Any]]:
        """
        Sums of the ledger, one object per value of the grouping key.

        The key has the name of the grouping with underscores; `cost_nano` is in nano-units of currency.
        """
        rows = await ports.usage(instant(since, clock.now()), str(by.value))
        return [dict(row) for row in rows]

    @router.get("/models", tags=["credentials"])
    async def models() -> list[dict[str, Any]]:
        """Every model that a client can name, who can serve it now, and what stands in the way."""
        known = await ports.pool.models()
        unknown: dict[str, Any] = {"available": None, "providers": [], "obstacles": []}
        return [{**m, **known.get(m["id"], unknown)} for m in views.models_view(snapshot())]

    @router.get("/credentials", tags=["credentials"])
    async def credentials(
        provider: Annotated[str, Query(description="Only of this provider.")] = "",
    ) -> list[dict[str, Any]]:
        """Every credential: per model ready, or why not and until when; the state of its refresh."""
        return await ports.pool.credentials(provider=provider)

    @router.get("/credentials/{credential_id}", tags=["credentials"])
    async def credential(credential_id: str) -> dict[str, Any]:
        """One credential."""
        found = await ports.pool.credentials((credential_id,))
        if not found:
            raise errors.NotFound(
                f"no credential {credential_id!r} in the configuration",
                reason="CREDENTIAL_NOT_FOUND",
            )
        return found[0]

    @router.post("/credentials/{credential_id}/reset", tags=["credentials"])
    async def reset(
        credential_id: str,
        model: Annotated[
            str, Query(description="Only this model, as the provider names it; empty means all.")
        ] = "",
    ) -> dict[str, Any]:
        """Forget cooldowns, backoff and last errors, everywhere at once."""
        return await ports.pool.reset(credential_id, model)

    @router.post("/credentials/{credential_id}/disable", tags=["credentials"])
    async def disable(credential_id: str) -> dict[str, Any]:
        """
        Take a credential out of use, durably.

        Credentials of one file go together, by the file's id; `switched` then names them.
        """
        return await ports.pool.switch(credential_id, disabled=True)

    @router.post("/credentials/{credential_id}/enable", tags=["credentials"])
    async def enable(credential_id: str) -> dict[str, Any]:
        """Take a credential back into use, unless the configuration disables it."""
        return await ports.pool.switch(credential_id, disabled=False)

    _brought(router, ports)
    _configuration(router, snapshot)
    _plugins(router, ports)
    _logins(router, ports)
    return router


def _brought(router: APIRouter, ports: ManagementPorts) -> None:
    """Add what concerns credentials that stand in no configuration."""

    @router.delete("/credentials/{credential_id}", tags=["credentials"])
    async def remove(credential_id: str) -> dict[str, Any]:
        """Forget a credential that a login, a command or a plugin brought."""
        await ports.pool.remove(credential_id)
        return {"removed": credential_id}

    @router.get("/auth-files", tags=["credentials"])
    async def auth_files() -> list[dict[str, Any]]:
        """Auth files, and kept credentials, of which not everything is used, and why."""
        return await ports.pool.auth_files()


def _configuration(router: APIRouter, snapshot: Callable[[], Snapshot]) -> None:
    @router.get("/snapshot", tags=["configuration"])
    async def current_snapshot() -> dict[str, Any]:
        """The configuration that this process runs on, without keys and without plugins' own."""
        return views.snapshot_view(snapshot())

    @router.get("/keys", tags=["configuration"])
    async def client_keys() -> list[dict[str, Any]]:
        """The client keys that this process accepts, without what they are."""
        return views.keys_view(snapshot())


class LoginStart(BaseModel):
    """What to log in."""

    provider: str = Field(default="", description="As in providers[].name.")
    credential: str = Field(default="", description="Which, where several log in.")
    flow: str = Field(default="", description="`code` or `device`; empty: as it can.")


def _logins(router: APIRouter, ports: ManagementPorts) -> None:
    """Add what concerns logins."""

    def logins() -> Logins:
        if ports.logins is None:
            raise errors.Unavailable("this process knows no schedulers", reason="NO_LOGINS")
        return ports.logins

    @router.post("/login", tags=["credentials"])
    async def start(wanted: LoginStart, request: Request) -> dict[str, Any]:
        """Begin a login: the answer has the address to open, and the state to ask by."""
        callback = str(request.base_url).rstrip("/") + CALLBACK
        return await logins().start(wanted.provider, wanted.credential, wanted.flow, callback)

    @router.get("/login/{state}", tags=["credentials"])
    async def poll(state: str) -> dict[str, Any]:
        """How a login stands: `wait`, `ok` or `error`."""
        return await logins().poll(state)

    @router.get("/oauth-callback", tags=["credentials"])
    async def callback(
        state: str = "", code: str = "", error: str = "", error_description: str = ""
    ) -> HTMLResponse:
        """Where providers redirect to. Needs no key: its state is one, and good for once."""
        try:
            await logins().complete(state, code, error, error_description)
        except errors.NotFound:
            text = "No such login, or it is over. Begin anew."
            return HTMLResponse(f"<!doctype html><p>{text}</p>", 404)
        return HTMLResponse("<!doctype html><p>You can close this page.</p>")


class Run(BaseModel):
    """One run of a plugin's command line."""

    args: list[str] = Field(default=[], description="Arguments, flags included.", max_length=1024)


def _plugins(router: APIRouter, ports: ManagementPorts) -> None:
    """Add what concerns plugins."""

    def commands() -> CommandLines:
        if ports.command_lines is None:
            raise errors.Unavailable("this process does not speak to plugins", reason="NO_PLUGINS")
        return ports.command_lines

    @router.get("/plugins", tags=["plugins"])
    async def plugins() -> list[dict[str, Any]]:
        """
        Every plugin with its addresses: what is registered, and why the others are not.

        With its policies, breaker, calls, errors and mean latency, as this process sees them.
        """
        menus = await ports.plugin_pages.menus() if ports.plugin_pages is not None else {}
        return [
            {**plugin, "menus": [dataclasses.asdict(m) for m in menus.get(plugin["id"], ())]}
            for plugin in ports.plugins()
        ]

    @router.get("/plugins/{plugin_id}/command-line", tags=["plugins"])
    async def flags(plugin_id: str) -> list[dict[str, Any]]:
        """The flags of a plugin's command line."""
        return [dataclasses.asdict(flag) for flag in await commands().flags(plugin_id)]

    @router.post("/plugins/{plugin_id}/exec", tags=["plugins"])
    async def execute(plugin_id: str, run: Run) -> dict[str, Any]:
        """
        Run a plugin's command line; bytes of its output that are no UTF-8 are replaced.

        Credentials that it brings are kept if its exit status is 0; `credentials` names them. What cannot be
        kept makes the exit status 1.
        """
        answer = await commands().execute(plugin_id, run.args)
        done: dict[str, Any] = {
            "exit_code": answer.exit_code,
            "stdout": answer.stdout.decode(errors="replace"),
            "stderr": answer.stderr.decode(errors="replace"),
            "credentials": [],
        }
        if answer.auths and not answer.exit_code:
            try:
                done["credentials"] = await ports.pool.keep(plugin_id, answer.auths)
            except errors.PatchbayError as error:
                # The output stays: it may say what the person has to do again.
                done["exit_code"] = 1
                done["stderr"] += f"patchbay: the credentials are not kept: {error.message}\n"
        return done


def instant(text: str, now: float) -> float | None:
    """
    Return Unix seconds; None for an empty *text*.

    Args:
        text: A duration back from *now*, an RFC 3339 instant, or Unix seconds.
        now: Unix seconds.

    Raises:
        InvalidRequest: It is none of these.
    """
    if not text:
        return None
    try:
        return now - parse_duration(text)
    except ValueError:
        pass
    try:
        # A `+` that nobody escaped arrives as a blank.
        found = datetime.fromisoformat(text.replace(" ", "+") if "T" in text else text)
    except ValueError:
        pass
    else:
        return found.replace(tzinfo=found.tzinfo or UTC).timestamp()
    try:
        return float(text)
    except ValueError:
        raise errors.InvalidRequest(
            f"{text!r} is no time; write 24h, 2026-01-31T00:00:00Z or Unix seconds"
        ) from None


async def _on_error(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, errors.PatchbayError)
    status = next((s for kind, s in STATUS.items() if isinstance(error, kind)), 500)
    headers = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(max(1, round(error.retry_after)))
    if status == 500:
        error = errors.Internal("internal error; the log has it")
    return JSONResponse(error_body(error), status, headers)


async def _on_status(_: Request, error: Exception) -> JSONResponse:
    """What the router itself refuses: an unknown path, a wrong method."""
    assert isinstance(error, HTTPException)
    reason = {404: "NOT_FOUND", 405: "METHOD_NOT_ALLOWED"}.get(error.status_code, "REFUSED")
    body = error_body(errors.InvalidRequest(str(error.detail), reason=reason))
    return JSONResponse(body, error.status_code, error.headers)


async def _on_invalid(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    message = f"{first['loc'][-1]}: {first['msg']}"
    return JSONResponse(error_body(errors.InvalidRequest(message)), 400)
