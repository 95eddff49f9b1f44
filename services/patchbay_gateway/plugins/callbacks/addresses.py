"""
Where a plugin's HTTP may go: the host by the grant's globs, the address by what kind it is.

A granted name says nothing of the address behind it, which its owner chooses: one that leads to this machine,
to a private network, or to a cloud's metadata is refused, unless the grant spells that very host. One address
of several that must not be reached refuses them all. Resolved once: the caller connects to what is returned
here. Not here: connecting (connection.py).
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import TYPE_CHECKING, Final, Protocol

from patchbay import errors

if TYPE_CHECKING:
    from collections.abc import Sequence

    from patchbay_gateway.plugins.grants import Grants

    Address = ipaddress.IPv4Address | ipaddress.IPv6Address

REFUSED: Final = "HTTP_ADDRESS_REFUSED"
CONNECTION: Final = "HTTP_CONNECTION"

# Clouds tell a machine its secrets at addresses that count as public: Azure's is one, and Oracle's is in a
# block that older Pythons take for global.
_METADATA: Final = (
    ipaddress.IPv4Network("168.63.129.16/32"),
    ipaddress.IPv4Network("192.0.0.0/24"),
)
# Private networks of old; the library takes them for global (RFC 3879).
_SITE_LOCAL: Final = ipaddress.IPv6Network("fec0::/10")
# IPv4 addresses as an IPv6-only network writes them, and turns them back (RFC 6052).
_NAT64: Final = ipaddress.IPv6Network("64:ff9b::/96")


class Resolver(Protocol):
    """Finds the addresses of a host."""

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        """
        Return IP addresses, the preferred first.

        Raises:
            OSError: There are none.
        """
        ...


async def system_resolver(host: str, port: int) -> Sequence[str]:
    """Return what the system says (Resolver)."""
    found = await asyncio.get_running_loop().getaddrinfo(
        host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP
    )
    return tuple(dict.fromkeys(str(entry[4][0]) for entry in found))


def reachable(text: str) -> bool:
    """Whether an address is one of the open Internet, however it is written."""
    try:
        address: Address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    return all(
        a.is_global
        and not (a.is_multicast or a.is_reserved or a in _SITE_LOCAL)
        and not any(a in network for network in _METADATA)
        for a in _meanings(address)
    )


def _meanings(address: Address) -> list[Address]:
    """Return what *address* leads to: itself, or the IPv4 addresses that it is another form of."""
    if isinstance(address, ipaddress.IPv4Address):
        return [address]
    if address.ipv4_mapped is not None:
        return [address.ipv4_mapped]
    if address in _NAT64:
        return [ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)]
    if address.sixtofour is not None:
        return [address, address.sixtofour]
    return [address, *(address.teredo or ())]


async def allowed_addresses(
    grants: Grants, host: str, port: int, resolve: Resolver
) -> Sequence[str]:
    """
    Return the addresses at which a plugin may reach *host*.

    Args:
        grants: Of the plugin.
        host: Name or address, without brackets, in lower case.
        port: Of the URL.
        resolve: Asked once.

    Raises:
        PermissionDenied: HTTP_ADDRESS_REFUSED.
        Unavailable: HTTP_CONNECTION, the host has no address.
    """
    if not grants.allows_host(host, port):
        raise errors.PermissionDenied(
            f"host {host} is not granted to this plugin; host_access.http.hosts lists those that are",
            reason=REFUSED,
        )
    try:
        found = await resolve(host, port)
    except (OSError, UnicodeError) as error:
        raise errors.Unavailable(
            f"host {host} cannot be resolved", reason=CONNECTION, sent=errors.Sent.NO
        ) from error
    if not found:
        raise errors.Unavailable(
            f"host {host} has no address", reason=CONNECTION, sent=errors.Sent.NO
        )
    if not grants.names_host(host, port) and not all(map(reachable, found)):
        raise errors.PermissionDenied(
            f"host {host} leads to a private, loopback or metadata address; "
            "only a grant of exactly this host allows that",
            reason=REFUSED,
        )
    return found
