"""
How a request that failed ends for its client: an error, or the terminal event of a stream that has begun.

Not here: how errors look (dialects), which one is told (failures.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from patchbay_gateway.edge import attempts
from patchbay_gateway.edge.dialects import blotting

if TYPE_CHECKING:
    from patchbay import errors
    from patchbay_gateway.edge.request import Request
    from patchbay_gateway.edge.routes.request import RoutedRequest
    from patchbay_gateway.edge.stream import Answer
    from patchbay_gateway.plugins.request_interceptors import Terminated

# Such answers have no content, whatever their headers say (RFC 9110, sections 15.3.5, 15.3.6, 15.4.5).
_WITHOUT_CONTENT: Final = frozenset({204, 205, 304})


def status_of(request: Request, error: errors.PatchbayError) -> int:
    """Return the status by which *error* is known to the client and the ledger, and keep it."""
    request.status = request.routed.dialect.error(error, "").status
    request.error = blotting.brief(error.message)
    if request.routed.on_error is not None:
        request.routed.on_error(error)
    return request.status


async def send_error(
    routed: RoutedRequest, error: errors.PatchbayError, head: errors.Headers
) -> None:
    """Answer with *error* and the further headers *head*."""
    if routed.on_error is not None:
        routed.on_error(error)
    answer = routed.dialect.error(error, routed.request_id)
    length = (b"content-length", b"%d" % len(answer.body))
    await routed.exchange.send_head(answer.status, [*answer.headers, length, *head])
    await routed.exchange.send(answer.body)
    await routed.exchange.finish()


async def terminate(request: Request, answer: Terminated) -> None:
    """Answer as the plugin that ended the request wants it."""
    request.status = answer.status
    request.terminated = True
    if request.routed.exchange.committed:
        # Keep-alives have gone out under another head; the plugin's answer has no place any more.
        await request.routed.exchange.abort()
        return
    head = list(answer.headers)
    content = answer.body if answer.status not in _WITHOUT_CONTENT else b""
    if answer.status not in _WITHOUT_CONTENT:
        if not any(name == b"content-type" for name, _ in head):
            head.append((b"content-type", b"application/json"))
        head.append((b"content-length", b"%d" % len(content)))
    exchange = request.routed.exchange
    await exchange.send_head(answer.status, request.answer_headers(head))
    await exchange.send(content)
    await exchange.finish()


async def terminated_late(request: Request, answer: Answer, terminated: Terminated) -> bool:
    """
    End a request that a plugin ends after its headers have gone out: as an error that clients can read.

    Returns:
        Whether they have; if not, nothing has been said, and the plugin's own answer is still to come.
    """
    if not answer.headers_committed:
        # Set before any await: the answer's timer must not commit headers now.
        answer.headers_committed = True
        return False
    answer.pause()
    await give_up(request, answer, attempts.terminated(terminated))
    request.terminated, request.status = True, terminated.status
    return True


async def give_up(request: Request, answer: Answer, error: errors.PatchbayError) -> None:
    """Tell the client the last failure in the form that fits what is committed."""
    routed = request.routed
    status_of(request, error)
    if not answer.headers_committed:
        # Set before any await: the answer's timer must not commit headers in between.
        answer.headers_committed = True
        await send_error(routed, error, request.answer_headers([]))
    elif not request.stream:
        await answer.write(routed.dialect.error(error, routed.request_id).body)
        await routed.exchange.finish()
    else:
        event = routed.dialect.stream_error(error, request.state, routed.request_id)
        if event:
            await answer.write(event)
            await routed.exchange.finish()
        else:
            await routed.exchange.abort()
