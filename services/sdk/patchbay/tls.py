"""
Mutual TLS between gateway and plugins: a directory with `tls.crt`, `tls.key` and `ca.crt`.

Both sides show a certificate of the authority and demand one. Addresses of pods are numbers that change, so
every certificate carries one and the same DNS name, which is asked for whatever the address is. Who calls is
still told by the channel's key, not by the certificate. A renewed certificate is served from the next
connection on, and shown by channels that are opened later. Not here: keys and tokens (keys.py, tokens.py).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import grpc

from patchbay import errors

if TYPE_CHECKING:
    from collections.abc import Mapping

DEFAULT_NAME: Final = "patchbay"
_FILES: Final = ("tls.key", "tls.crt", "ca.crt")
_logger = logging.getLogger("patchbay.tls")


class Tls:
    """
    Certificates of one side.

    Args:
        directory: With the three files.
        name: DNS name that every certificate of the installation carries.

    Raises:
        FailedPrecondition: A file is missing or cannot be read.
    """

    def __init__(self, directory: Path, name: str = DEFAULT_NAME) -> None:
        self.directory = directory
        self.name = name
        self._read()

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Tls | None:
        """
        Return what PATCHBAY_TLS_DIR and PATCHBAY_TLS_NAME say; None without the first.

        Raises:
            FailedPrecondition: A file is missing or cannot be read.
        """
        directory = environ.get("PATCHBAY_TLS_DIR", "")
        if not directory:
            return None
        return cls(Path(directory), environ.get("PATCHBAY_TLS_NAME") or DEFAULT_NAME)

    def _read(self) -> tuple[bytes, bytes, bytes]:
        """Return key, certificate chain and authority."""
        try:
            key, chain, authority = ((self.directory / name).read_bytes() for name in _FILES)
        except OSError as error:
            raise errors.FailedPrecondition(
                f"PATCHBAY_TLS_DIR {self.directory} needs {', '.join(_FILES)}: {error.strerror} "
                f"({error.filename})",
                reason="TLS_INCOMPLETE",
            ) from error
        return key, chain, authority

    def _mark(self) -> tuple[Any, ...]:
        return tuple((self.directory / name).stat().st_mtime_ns for name in _FILES)

    def channel(self, address: str, options: list[tuple[str, Any]]) -> grpc.aio.Channel:
        """
        Return a channel to *address* that shows our certificate and accepts only one of the authority.

        Raises:
            FailedPrecondition: A file is missing or cannot be read.
        """
        key, chain, authority = self._read()
        return grpc.aio.secure_channel(
            address,
            grpc.ssl_channel_credentials(authority, key, chain),
            options=[*options, ("grpc.ssl_target_name_override", self.name)],
        )

    def server_credentials(self) -> grpc.ServerCredentials:
        """
        Return credentials of a server that demands a certificate of the authority.

        Raises:
            FailedPrecondition: A file is missing or cannot be read.
        """
        seen = self._mark()

        def fetch() -> Any:
            # Asked at each handshake, in a thread of gRPC's; None means what it has is still good.
            nonlocal seen
            try:
                if (mark := self._mark()) == seen:
                    return None
                found = self._configuration()
            except (OSError, errors.PatchbayError) as error:
                _logger.warning("the certificate stays as it is: %s", error)
                return None
            seen = mark
            return found

        return grpc.dynamic_ssl_server_credentials(
            self._configuration(), fetch, require_client_authentication=True
        )

    def _configuration(self) -> grpc.ServerCertificateConfiguration:
        key, chain, authority = self._read()
        return grpc.ssl_server_certificate_configuration([(key, chain)], authority)


def open_channel(address: str, options: list[tuple[str, Any]], tls: Tls | None) -> grpc.aio.Channel:
    """Return a channel to *address*, with TLS where *tls* is given."""
    if tls is not None and not address.startswith("unix:"):
        return tls.channel(address, options)
    return grpc.aio.insecure_channel(address, options=options)
