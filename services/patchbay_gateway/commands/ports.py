"""
Whether a port can be listened on, asked before a start so that the answer is a sentence.

Another process may still take it in between; the service then fails by itself. Not here: listening.
"""

from __future__ import annotations

import socket


def why_not(host: str, port: int) -> str | None:
    """Return why *port* of *host* cannot be listened on; None when it can, or is any free one (0)."""
    if port == 0:
        return None
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        return f"{host} is no address of this machine ({error.strerror})"
    family, kind, protocol, _, address = found[0]
    with socket.socket(family, kind, protocol) as probe:
        # As servers do: a connection that lingers in TIME_WAIT does not hold the port.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            probe.listen(1)
        except OSError as error:
            return f"port {port} of {host} cannot be had ({error.strerror})"
    return None
