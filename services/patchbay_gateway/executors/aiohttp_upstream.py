"""
`Upstream` over aiohttp: one pooled session per process.

aiohttp's own timeouts, cookies, redirects, retries, decompression and environment proxies are off: limits are
kept with one timer per call (silence.py), proxies are chosen once per origin (proxies.py; aiohttp's way costs
a thread hop per call), half of a compressed answer is none (content_coding.py; aiohttp takes it for whole),
and one call must be one request on the wire. Not here: what the bytes mean.
"""

from __future__ import annotations

import asyncio
import io
from typing import TYPE_CHECKING

import aiohttp
from yarl import URL

from patchbay import errors, upstream_headers
from patchbay.alarms import Alarms
from patchbay_gateway.executors import content_coding
from patchbay_gateway.executors.silence import SilenceLimit
from patchbay_gateway.executors.upstream import CONNECTION, TIMEOUT, TRUNCATED

if TYPE_CHECKING:
    from patchbay.errors import Headers
    from patchbay_gateway.executors.proxies import Proxies
    from patchbay_gateway.executors.upstream import Call

# aiohttp copies larger bodies piece by piece from a file object, and warns about bytes.
_LARGE_BODY = 1 << 20
_MAX_HEADER = 64 << 10
_URLS = 1024

# Raised before a byte of the request was written.
_NOT_SENT = (
    aiohttp.ClientConnectorError,
    aiohttp.ConnectionTimeoutError,
    aiohttp.ClientHttpProxyError,
    aiohttp.ServerFingerprintMismatch,
)


class AiohttpUpstream:
    """
    The adapter. Make it inside a running loop.

    Args:
        proxies: Chooses the proxy of a call.
        connect_timeout: Seconds for DNS, TCP and TLS of a new connection.
        keepalive: Seconds that an idle connection is kept.
    """

    def __init__(
        self, proxies: Proxies, *, connect_timeout: float = 15.0, keepalive: float = 55.0
    ) -> None:
        self._proxies = proxies
        self._loop = asyncio.get_running_loop()
        self._alarms = Alarms(self._loop)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ttl_dns_cache=30, keepalive_timeout=keepalive),
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(total=None, connect=None, sock_connect=connect_timeout),
            skip_auto_headers=("User-Agent", "Accept-Encoding"),
            trust_env=False,
            auto_decompress=False,
            max_line_size=_MAX_HEADER,
            max_field_size=_MAX_HEADER,
        )
        # It would send a GET again when a pooled connection turns out closed; no public switch.
        self._session._retry_connection = False  # noqa: SLF001 - see above
        self._urls: dict[str, URL] = {}

    async def send(self, call: Call) -> AiohttpReply:
        """Send and wait for the head (port)."""
        proxy = self._proxies.choose(call.url, call.proxy_url)
        task = asyncio.current_task()
        assert task is not None
        cancelling = task.cancelling()
        limit = SilenceLimit(self._loop, self._alarms, call.first_byte_timeout, task.cancel)
        body = call.body
        try:
            response = await self._session.request(
                call.method,
                self._urls.get(call.url) or self._url(call.url),
                data=(body if len(body) < _LARGE_BODY else io.BytesIO(body)) if body else None,
                headers=[(k.decode("latin-1"), v.decode("latin-1")) for k, v in call.headers],
                allow_redirects=False,
                proxy=proxy,
            )
        except asyncio.CancelledError:
            limit.stop()
            # As asyncio.timeout does: a cancel of the caller's that came as well is not swallowed.
            if limit.expired and task.uncancel() <= cancelling:
                raise errors.UpstreamError(
                    504,
                    f"the provider did not answer within {call.first_byte_timeout:g} s",
                    reason=TIMEOUT,
                    sent=errors.Sent.UNKNOWN,
                ) from None
            raise
        except (aiohttp.ClientError, OSError) as e:
            limit.stop()
            raise _unreachable(e) from e
        return AiohttpReply(response, limit, call)

    async def aclose(self) -> None:
        """Cut every connection."""
        await self._session.close()
        # Transports say farewell in the next turns of the loop.
        await asyncio.sleep(0)

    def _url(self, url: str) -> URL:
        if len(self._urls) >= _URLS:
            self._urls.clear()
        try:
            parsed = self._urls[url] = URL(url, encoded=True)
        except ValueError as e:
            raise errors.InvalidRequest(
                "the provider's URL cannot be parsed", reason="INVALID_URL", sent=errors.Sent.NO
            ) from e
        return parsed


class AiohttpReply:
    """One answer."""

    __slots__ = ("_decoder", "_heard", "_idle", "_limit", "_response", "headers", "status")

    def __init__(self, response: aiohttp.ClientResponse, limit: SilenceLimit, call: Call) -> None:
        self._response = response
        self._limit = limit
        self._idle = call.idle_timeout
        self._heard = False
        limit.on_silence = response.close
        self.status = response.status
        self.headers: Headers = upstream_headers.answer_headers(response.raw_headers)
        coding = ",".join(response.headers.getall("Content-Encoding", ()))
        self._decoder = content_coding.decoder(coding.encode("latin-1", "replace"))

    async def read(self) -> bytes:
        """Return the next bytes (port)."""
        decoder = self._decoder
        data = await self._raw()
        if decoder is None:
            return data
        try:
            while data and not (plain := decoder.decode(data)):
                data = await self._raw()
            if data:
                return plain
            decoder.end()
        except errors.UpstreamError:
            self.close()
            raise
        return b""

    async def _raw(self) -> bytes:
        limit = self._limit
        if self._heard:
            limit.wait()
        content = self._response.content
        try:
            data = await content.readany()
        except (aiohttp.ClientError, OSError) as e:
            # aiohttp forgets what came before the connection broke unless it is taken out.
            if not limit.expired and (left := content._read_nowait(-1)):  # noqa: SLF001 - see above
                return left
            limit.stop()
            raise self._broken() from e
        if not self._heard:
            self._heard = True
            limit.change(self._idle)
        if not data:
            limit.stop()
        limit.heard()
        return data

    def close(self) -> None:
        """Release or cut the connection."""
        self._limit.stop()
        # After the regular end aiohttp has put the connection back already.
        self._response.close()

    def _broken(self) -> errors.UpstreamError:
        if self._limit.expired:
            return errors.UpstreamError(
                504,
                "the provider fell silent in the middle of its answer"
                if self._heard
                else "the provider began an answer and sent nothing of it",
                reason=TIMEOUT,
                sent=errors.Sent.YES,
            )
        return errors.UpstreamError(
            502,
            "the connection broke in the middle of the provider's answer",
            reason=TRUNCATED,
            sent=errors.Sent.YES,
        )


def _unreachable(error: Exception) -> errors.PatchbayError:
    if isinstance(error, aiohttp.InvalidURL):
        return errors.InvalidRequest(
            "the provider's URL cannot be used", reason="INVALID_URL", sent=errors.Sent.NO
        )
    # No addresses in texts that may reach a client.
    if isinstance(error, _NOT_SENT):
        return errors.UpstreamError(
            502,
            f"no connection to the provider ({type(error).__name__})",
            reason=CONNECTION,
            sent=errors.Sent.NO,
        )
    return errors.UpstreamError(
        502,
        f"the connection broke before the provider answered ({type(error).__name__})",
        reason=CONNECTION,
        sent=errors.Sent.UNKNOWN,
    )
