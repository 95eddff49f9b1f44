"""
An identity server that rotates refresh tokens, revokes a family on reuse, and misbehaves on demand.

Run it as a process (`python tests/fakes/identity.py --port N --log FILE --family a`; port 0 prints the one
it got) or embed it (`async with running_identity() as fake`). For providers:

    POST /token           grants refresh_token, authorization_code (PKCE S256), device_code
    GET  /authorize       logs in without asking and redirects with code and state
    POST /device/code     RFC 8628; the login succeeds after /__approve
    POST /introspect      RFC 7662: {"active": …, "sub": family}; GET with ?token= too

For tests, also from another process: `GET /__log` all presentations, `POST /__family?name=a` a new family,
`POST /__behave` a `Behaviour` as JSON, `POST /__release` ends holds, `POST /__revoke?name=a` a family,
`POST /__expire?name=a` its access tokens only, `POST /__approve?user_code=…` a login.

Not here: tokens and who presented them (identity_families.py).
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import dataclasses
import hashlib
import secrets
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, unquote_plus, urlencode

from aiohttp import web

if __name__ == "__main__":
    # Run as a file, the folder on the path is this one and not the repository.
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from tests.fakes.identity_families import Books, Family, Presentation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# Never in the log.
_SECRET = {"refresh_token", "code", "client_secret", "device_code", "code_verifier"}


@dataclass(frozen=True)
class Behaviour:
    """What the token endpoint does instead of answering at once and well."""

    times: int = 0
    """For how many presentations; 0: until the next behaviour."""
    consume: bool = False
    """True: the token is used up first, so what follows loses the answer. False: it is left alone."""
    delay: float = 0.0
    """Seconds before anything else."""
    hold: bool = False
    """Wait for `release`."""
    status: int = 0
    """An error status instead of the answer, with `error` in its body."""
    error: str = ""
    retry_after: str = ""
    """Value of the header, as it is."""
    garbage: str = ""
    """A 200 with this body."""
    cut: bool = False
    """Close the connection without an answer."""
    rotate: bool = True
    """False: the answer has no refresh token and the old one stays good."""
    expires_in: float = 3600.0
    """Life of access tokens, seconds."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Members added to the answer; None takes one away."""


@dataclass(frozen=True)
class Client:
    """A registered client."""

    secret: str = ""
    auth: str = ""
    """How it must authenticate: `body`, `basic`, `none`; empty: any way."""


class FakeIdentity:
    """The server's memory and settings; `running_identity` gives it a socket."""

    def __init__(self, books: Books | None = None) -> None:
        self.books = books or Books()
        self.clients: dict[str, Client] = {}
        """Registered clients; while empty, any client may come, with any secret or none."""
        self.port = 0
        self.released = asyncio.Event()
        self._usual = Behaviour()
        self._next: list[Behaviour] = []
        self._codes: dict[str, dict[str, str]] = {}
        self._devices: dict[str, dict[str, str]] = {}

    @property
    def url(self) -> str:
        """Origin of the server."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def token_url(self) -> str:
        """Token endpoint."""
        return f"{self.url}/token"

    @property
    def log(self) -> list[Presentation]:
        """All presentations so far."""
        return self.books.presentations

    def behave(self, behaviour: Behaviour | None = None, **changes: Any) -> None:
        """Misbehave: the next `times` presentations, one after the other, or all from now on."""
        behaviour = dataclasses.replace(behaviour or Behaviour(), **changes)
        self.released.clear()
        if behaviour.times:
            one = dataclasses.replace(behaviour, times=1)
            self._next.extend([one] * behaviour.times)
        else:
            self._next.clear()
            self._usual = behaviour

    def release(self) -> None:
        """Let those who wait go on."""
        self.released.set()

    def app(self) -> web.Application:
        """Return the HTTP application."""
        app = web.Application()
        app.router.add_post("/token", self._token)
        app.router.add_get("/authorize", self._authorize)
        app.router.add_post("/device/code", self._device_code)
        app.router.add_route("*", "/introspect", self._introspect)
        app.router.add_get("/__log", self._own_log)
        for name in ("family", "behave", "release", "revoke", "expire", "approve"):
            app.router.add_post(f"/__{name}", getattr(self, f"_own_{name}"))
        return app

    # The token endpoint

    async def _token(self, request: web.Request) -> web.StreamResponse:
        form = dict(parse_qsl((await request.read()).decode(), keep_blank_values=True))
        behaviour = self._next.pop(0) if self._next else self._usual
        client, secret, how = _client_of(request, form)
        grant = form.get("grant_type", "").rpartition(":")[2]
        presentation = Presentation(
            n=len(self.log) + 1,
            at=self.books.now(),
            grant=grant,
            token=self.books.name_of(form["refresh_token"]) if "refresh_token" in form else "",
            client=client,
            client_auth=how,
            form={k: v for k, v in form.items() if k not in _SECRET},
        )
        self.books.present(presentation)
        answered = False
        try:
            response = await self._answer(behaviour, presentation, form, secret)
            if response is None:
                assert request.transport is not None
                request.transport.abort()
                return web.Response(status=500)
            await response.prepare(request)
            await response.write_eof()
            answered = True
            return response
        finally:
            self.books.end(presentation, answered=answered)

    async def _answer(
        self, behaviour: Behaviour, presentation: Presentation, form: dict[str, str], secret: str
    ) -> web.Response | None:
        """Return the answer; None cuts the connection."""
        if behaviour.delay and not behaviour.consume:
            await asyncio.sleep(behaviour.delay)
        if behaviour.hold and not behaviour.consume:
            await self.released.wait()
        troubled = bool(behaviour.status or behaviour.garbage or behaviour.cut)
        answer: web.Response | None = None
        if behaviour.consume or not troubled:
            answer = self._grant(behaviour, presentation, form, secret)
        if behaviour.consume and behaviour.delay:
            await asyncio.sleep(behaviour.delay)
        if behaviour.consume and behaviour.hold:
            await self.released.wait()
        if not troubled:
            return answer
        if behaviour.cut:
            self.books.decide(presentation, "cut")
            return None
        if behaviour.garbage:
            self.books.decide(presentation, "garbage")
            return web.Response(text=behaviour.garbage, content_type="text/html")
        self.books.decide(presentation, f"status {behaviour.status}")
        return _refusal(
            behaviour.status, behaviour.error or "server_error", retry_after=behaviour.retry_after
        )

    def _grant(
        self, behaviour: Behaviour, presentation: Presentation, form: dict[str, str], secret: str
    ) -> web.Response:
        known = self.clients.get(presentation.client)
        if self.clients and (
            known is None
            or (known.secret and not secrets.compare_digest(known.secret, secret))
            or (known.auth and known.auth != presentation.client_auth)
        ):
            self.books.decide(presentation, "client")
            return _refusal(401, "invalid_client")
        if presentation.grant == "refresh_token":
            token = form.get("refresh_token", "")
            outcome, family = self.books.take(token, presentation.client, rotate=behaviour.rotate)
        elif presentation.grant == "authorization_code":
            outcome, family = self._redeem_code(form)
        elif presentation.grant == "device_code":
            outcome, family = self._redeem_device(form)
        else:
            self.books.decide(presentation, "refused")
            return _refusal(400, "unsupported_grant_type")
        if family is None:
            self.books.decide(presentation, outcome)
            waiting = outcome == "pending"
            return _refusal(400, "authorization_pending" if waiting else "invalid_grant")
        first = presentation.grant != "refresh_token"
        presentation.consumed = first or behaviour.rotate
        answer: dict[str, Any] = {
            "token_type": "Bearer",
            "expires_in": int(behaviour.expires_in),
            "scope": " ".join(family.scopes) or form.get("scope", ""),
        }
        if presentation.consumed:
            answer["refresh_token"] = self.books.next_refresh(family)
            presentation.issued = self.books.name_of(answer["refresh_token"])
        answer["access_token"] = self.books.next_access(family, behaviour.expires_in)
        answer |= behaviour.extra
        self.books.decide(presentation, "issued")
        return web.json_response({k: v for k, v in answer.items() if v is not None})

    # Logins

    async def _authorize(self, request: web.Request) -> web.Response:
        query = dict(request.query)
        if query.get("response_type") != "code" or "redirect_uri" not in query:
            return _refusal(400, "invalid_request")
        code = f"test-code-{secrets.token_hex(8)}"
        self._codes[code] = query
        told = {"code": code, "state": query.get("state", "")}
        joint = "&" if "?" in query["redirect_uri"] else "?"
        raise web.HTTPFound(f"{query['redirect_uri']}{joint}{urlencode(told)}")

    def _redeem_code(self, form: dict[str, str]) -> tuple[str, Family | None]:
        asked = self._codes.pop(form.get("code", ""), None)
        if asked is None or asked["redirect_uri"] != form.get("redirect_uri"):
            return "unknown", None
        if "code_challenge" in asked:
            digest = hashlib.sha256(form.get("code_verifier", "").encode()).digest()
            if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != asked["code_challenge"]:
                return "refused", None
        return "issued", self._new_family(asked.get("scope", ""))

    async def _device_code(self, request: web.Request) -> web.Response:
        form = dict(parse_qsl((await request.read()).decode()))
        code, user_code = f"test-device-{secrets.token_hex(8)}", secrets.token_hex(3).upper()
        self._devices[code] = {"user_code": user_code, "scope": form.get("scope", "")}
        return web.json_response(
            {
                "device_code": code,
                "user_code": user_code,
                "verification_uri": f"{self.url}/device",
                "verification_uri_complete": f"{self.url}/device?user_code={user_code}",
                "expires_in": 600,
                "interval": 1,
            }
        )

    def _redeem_device(self, form: dict[str, str]) -> tuple[str, Family | None]:
        device = self._devices.get(form.get("device_code", ""))
        if device is None:
            return "unknown", None
        if "approved" not in device:
            return "pending", None
        del self._devices[form["device_code"]]
        return "issued", self._new_family(device["scope"])

    def _new_family(self, scope: str) -> Family:
        name = f"login{len(self.books.families) + 1}"
        self.books.open_family(name, scopes=tuple(scope.split()))
        return self.books.families[name]

    # What upstreams ask

    async def _introspect(self, request: web.Request) -> web.Response:
        token = request.query.get("token") or dict(await request.post()).get("token", "")
        if not self.books.valid(str(token)):
            return web.json_response({"active": False})
        return web.json_response({"active": True, "sub": self.books.subject(str(token))})

    # What tests in other processes ask

    async def _own_log(self, _: web.Request) -> web.Response:
        return web.json_response(self.books.dump())

    async def _own_family(self, request: web.Request) -> web.Response:
        token = self.books.open_family(request.query["name"], request.query.get("client", ""))
        return web.json_response({"refresh_token": token})

    async def _own_behave(self, request: web.Request) -> web.Response:
        self.behave(Behaviour(**await request.json()))
        return web.json_response({})

    async def _own_release(self, _: web.Request) -> web.Response:
        self.release()
        return web.json_response({})

    async def _own_revoke(self, request: web.Request) -> web.Response:
        self.books.revoke(request.query["name"])
        return web.json_response({})

    async def _own_expire(self, request: web.Request) -> web.Response:
        self.books.expire(request.query["name"])
        return web.json_response({})

    async def _own_approve(self, request: web.Request) -> web.Response:
        found = [
            device
            for device in self._devices.values()
            if device["user_code"] == request.query["user_code"]
        ]
        for device in found:
            device["approved"] = "yes"
        return web.json_response({"approved": len(found)})


def _client_of(request: web.Request, form: dict[str, str]) -> tuple[str, str, str]:
    """Return client id, secret and how they came (RFC 6749 §2.3.1)."""
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        name, _, secret = base64.b64decode(value).decode().partition(":")
        return unquote_plus(name), unquote_plus(secret), "basic"
    if "client_secret" in form:
        return form.get("client_id", ""), form["client_secret"], "body"
    return form.get("client_id", ""), "", "none"


def _refusal(status: int, error: str, *, retry_after: str = "") -> web.Response:
    headers = {"retry-after": retry_after} if retry_after else {}
    body = {"error": error, "error_description": f"the fake says {error}"}
    return web.json_response(body, status=status, headers=headers)


@contextlib.asynccontextmanager
async def running_identity(
    *families: str, port: int = 0, host: str = "127.0.0.1", log: Path | None = None
) -> AsyncIterator[FakeIdentity]:
    """Serve until the block ends; the first refresh token of a family is `test-refresh-NAME-0`."""
    fake = FakeIdentity(Books(log))
    for name in families:
        fake.books.open_family(name)
    # A hold must not outlive the test, and a caller that leaves must be seen.
    runner = web.AppRunner(
        fake.app(), access_log=None, handler_cancellation=True, shutdown_timeout=0.1
    )
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        fake.port = runner.addresses[0][1]
        yield fake
    finally:
        fake.release()
        await runner.cleanup()
        fake.books.close()


async def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--log", type=Path)
    parser.add_argument("--family", action="append", default=[])
    parser.add_argument("--client", action="append", default=[], help="id[:secret[:body|basic]]")
    options = parser.parse_args()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with running_identity(
        *options.family, port=options.port, host=options.host, log=options.log
    ) as fake:
        for text in options.client:
            name, secret, auth = [*text.split(":"), "", ""][:3]
            fake.clients[name] = Client(secret, auth)
        print(f"listening on {fake.url}", flush=True)  # noqa: T201 - the caller waits for this line
        await stop.wait()


if __name__ == "__main__":
    asyncio.run(_main())
