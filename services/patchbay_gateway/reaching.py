"""
Whether a server can be reached from here: its name, a connection, and over https its certificate.

All at once and within a time, because checks of a machine must end. Nothing is sent but a TLS handshake. Not
here: which servers, and what to do about them (provider_checks.py).
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterable

PATIENCE: Final = 3.0
"""Seconds for one server."""
MOST: Final = 64
"""Servers looked at; more are left out."""

_PORTS: Final = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}


def unreachable(urls: Iterable[str], patience: float = PATIENCE) -> dict[str, str]:
    """
    Return URL → why it cannot be reached, of those that cannot; at most *patience* seconds for all.

    The first `MOST` different ones are tried; blocking.
    """
    found: dict[str, str] = {}
    wanted = list(dict.fromkeys(urls))[:MOST]
    deadline = time.monotonic() + patience

    def try_one(url: str) -> None:
        found[url] = _why_not(url, patience)

    # Threads and not a pool: a resolver that hangs must not keep the program from ending.
    threads = {url: threading.Thread(target=try_one, args=(url,), daemon=True) for url in wanted}
    for thread in threads.values():
        thread.start()
    for thread in threads.values():
        thread.join(max(deadline - time.monotonic(), 0.01))
    return {
        url: why
        for url in wanted
        if (why := found.get(url, f"no answer within {patience:g} s")) != ""
    }


def _why_not(url: str, patience: float) -> str:
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port or _PORTS.get(parts.scheme, 443)
    try:
        with contextlib.closing(socket.create_connection((host, port), patience)) as connection:
            if parts.scheme == "https":
                _handshake(connection, host)
    except socket.gaierror as error:
        return f"the name {host} cannot be resolved ({error.strerror})"
    except ssl.SSLCertVerificationError as error:
        return f"the certificate of {host} is not accepted ({error.verify_message})"
    except TimeoutError:
        return f"no answer within {patience:g} s"
    except OSError as error:
        return f"{host}:{port}: {error.strerror or error}"
    return ""


def _handshake(connection: socket.socket, host: str) -> None:
    """
    Shake hands as TLS has it, and no more; OSError when the peer will not.

    By hand, because `wrap_socket` leaves its own socket open when the peer has just reset the connection.
    """
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = ssl.create_default_context().wrap_bio(incoming, outgoing, server_hostname=host)
    while True:
        try:
            tls.do_handshake()
        except ssl.SSLWantReadError:
            connection.sendall(outgoing.read())
            if not (data := connection.recv(1 << 16)):
                raise ConnectionResetError("the connection was closed") from None
            incoming.write(data)
        else:
            return
