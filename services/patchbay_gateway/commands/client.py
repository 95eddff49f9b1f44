"""
The command line's client of the management API.

Standard library only, so that asking a gateway needs none of its extras. Not here: what the answers mean.
"""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlencode, urlsplit

from patchbay import errors
from patchbay_gateway.kernel.config import environment_secret, is_loopback
from patchbay_gateway.kernel.config.settings import default_data_dir
from patchbay_gateway.kernel.management_token import read_token

if TYPE_CHECKING:
    from collections.abc import Mapping

TIMEOUT: Final = 10.0
"""Seconds for one question."""
_MAX_ANSWER: Final = 64 << 20


@dataclass(frozen=True, slots=True)
class ManagementClient:
    """Asks one gateway."""

    url: str
    key: str = field(default="", repr=False)

    def get(self, path: str, query: Mapping[str, str] | None = None) -> Any:
        """
        Return the JSON answer of *path*.

        Raises:
            Unavailable: Nobody answers at the URL.
            Unauthenticated: No or a wrong key; the text says where one comes from.
            PatchbayError: What the gateway says.
        """
        return self._understood(*self.fetch(path, query))

    def post(
        self,
        path: str,
        query: Mapping[str, str] | None = None,
        body: Any = None,
        *,
        patience: float | None = TIMEOUT,
    ) -> Any:
        """
        Return the JSON answer of a POST of *body* to *path*, within *patience* seconds, None for no end.

        Raises:
            FailedPrecondition: The state of the gateway forbids it.
            PatchbayError: As `get`.
        """
        sent = json.dumps(body or {}).encode()
        return self._understood(*self.fetch(path, query, sent, patience=patience))

    def delete(self, path: str) -> Any:
        """
        Return the JSON answer of a DELETE of *path*.

        Raises:
            FailedPrecondition: The state of the gateway forbids it.
            PatchbayError: As `get`.
        """
        return self._understood(*self.fetch(path, method="DELETE"))

    def _understood(self, status: int, body: bytes) -> Any:
        if status == 200:
            try:
                return json.loads(body)
            except ValueError as error:
                raise errors.FailedPrecondition(
                    f"{self.url} answers, but not like a Patchbay management API; check --url"
                ) from error
        message = _message(body) or f"status {status}"
        if status == 401:
            raise errors.Unauthenticated(
                f"{self.url} wants a management key: set PATCHBAY_MANAGEMENT_KEY, or run this where "
                "the gateway's data directory is (--data-dir or PATCHBAY_DATA_DIR)"
            )
        if status in {400, 422}:
            raise errors.InvalidRequest(message)
        if status == 404:
            raise errors.NotFound(f"{self.url}: {message}")
        if status == 409:
            raise errors.FailedPrecondition(message)
        raise errors.Unavailable(f"{self.url}: {message}")

    def fetch(
        self,
        path: str,
        query: Mapping[str, str] | None = None,
        sent: bytes | None = None,
        *,
        patience: float | None = TIMEOUT,
        method: str | None = None,
    ) -> tuple[int, bytes]:
        """
        Return status and body of *path*, whatever the status; by default a POST where something is *sent*.

        Raises:
            Unavailable: Nobody answers at the URL.
            InvalidRequest: The URL is none.
        """
        if urlsplit(self.url).scheme not in {"http", "https"}:
            raise errors.InvalidRequest(
                f"{self.url!r} is no http URL; write --url http://host:8081"
            )
        address = self.url.rstrip("/") + path + (f"?{urlencode(query)}" if query else "")
        headers = {"accept": "application/json"}
        if sent is not None:
            headers["content-type"] = "application/json"
        request = urllib.request.Request(  # noqa: S310 - checked above
            address, data=sent, headers=headers, method=method
        )
        if self.key:
            request.add_header("authorization", f"Bearer {self.key}")
        try:
            with direct_opener(self.url).open(request, timeout=patience) as answer:
                return answer.status, answer.read(_MAX_ANSWER)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read(_MAX_ANSWER)
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise errors.Unavailable(
                f"nobody answers at {self.url} ({reason}); start Patchbay with `patchbay up`, or "
                "name a running one with --url or PATCHBAY_MANAGEMENT_URL"
            ) from error


def connect(url: str, env: Mapping[str, str], data_dir: Path | None = None) -> ManagementClient:
    """
    Return a client with the key of the environment or, for this machine, of the token file.

    Args:
        url: Base URL of the management API.
        env: The environment: PATCHBAY_MANAGEMENT_KEY[_FILE], PATCHBAY_DATA_DIR.
        data_dir: Where the token file is; None: the environment's or the default.
    """
    key = environment_secret("PATCHBAY_MANAGEMENT_KEY", env)
    # The file's token opens this machine's gateway; no other host is told it.
    if key is None and is_loopback(urlsplit(url).hostname or ""):
        directory = data_dir or env.get("PATCHBAY_DATA_DIR") or default_data_dir(env)
        key = read_token(Path(directory))
    return ManagementClient(url, key or "")


def direct_opener(url: str) -> urllib.request.OpenerDirector:
    """Return an opener that uses no proxy for this machine and follows no redirect with our key."""
    handlers: list[urllib.request.BaseHandler] = [_NoRedirect()]
    if is_loopback(urlsplit(url).hostname or ""):
        handlers.append(urllib.request.ProxyHandler({}))
    return urllib.request.build_opener(*handlers)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        """A management API does not redirect; something else stands there."""
        return


def _message(body: bytes) -> str:
    try:
        return str(json.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return ""
