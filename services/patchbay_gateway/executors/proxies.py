"""
Which proxy a URL goes through: HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY, as curl reads them.

The environment is read once and answers are remembered per origin, because this runs for every call.
This machine itself (localhost, 127.0.0.0/8, ::1) is never reached through a proxy from the environment.

A setting may leave user and password to this process: `http://${PROXY_AUTH}@host:port` takes them from that
variable. Only names that begin with `PROXY_` are looked up, for whoever may write a setting need not be one
who may read the environment.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING
from urllib.parse import quote, urlsplit

from patchbay import errors
from patchbay.secrets import origin_of

if TYPE_CHECKING:
    from collections.abc import Mapping

DIRECT = "direct"
"""Proxy setting that switches the environment's proxies off; `none` says the same."""

_REMEMBERED = 1024
_REFERENCE = re.compile(r"\$\{([^}]*)\}")
_REFERABLE = "PROXY_"


class Proxies:
    """
    The environment's proxies.

    Args:
        env: The environment.
    """

    def __init__(self, env: Mapping[str, str]) -> None:
        lower = {key.lower(): value for key, value in env.items() if value}
        # Lower-case names win, as in curl.
        lower |= {key: value for key, value in env.items() if value and key.islower()}
        every = lower.get("all_proxy", "")
        self._by_scheme = {
            "http": lower.get("http_proxy", every),
            "https": lower.get("https_proxy", every),
        }
        self._exempt = [
            entry.strip().lower().lstrip("*").lstrip(".")
            for entry in lower.get("no_proxy", "").split(",")
            if entry.strip()
        ]
        self._exempt_all = "*" in lower.get("no_proxy", "").replace(" ", "").split(",")
        self._known: dict[str, str | None] = {}
        self._env = {key: value for key, value in env.items() if key.startswith(_REFERABLE)}

    def choose(self, url: str, setting: str) -> str | None:
        """
        Return the URL of the proxy for *url*, None to go directly.

        Args:
            url: Where the call goes.
            setting: The provider's or credential's own: a URL, `direct`, `none`, or empty.

        Raises:
            InvalidRequest: A proxy of a kind that is not supported.
            FailedPrecondition: PROXY_VARIABLE, it refers to a variable that is not there, or none of those.
        """
        if setting:
            if setting.find("${") >= 0:
                setting = self._filled(setting)
            return None if setting in {DIRECT, "none"} else _checked(setting)
        origin = origin_of(url)
        try:
            return self._known[origin]
        except KeyError:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            found = self._known[origin] = self._find(url)
            return found

    def _filled(self, setting: str) -> str:
        """Return *setting* with what it refers to, before the host only."""
        scheme, mark, rest = setting.partition("://")
        user, at, host = rest.rpartition("@")
        if not at or "${" in host:
            raise _no_variable("a proxy's URL refers to a variable elsewhere than before its host")
        return f"{scheme}{mark}{_REFERENCE.sub(self._value, user)}@{host}"

    def _value(self, found: re.Match[str]) -> str:
        value = self._env.get(found[1], "")
        if not value:
            raise _no_variable(
                f"a proxy's URL refers to {found[1]!r}: the executor has no such variable, "
                f"or its name does not begin with {_REFERABLE}"
            )
        # What is written as in a URL stays so.
        return quote(value, safe=":%")

    def _find(self, url: str) -> str | None:
        parts = urlsplit(url)
        host, proxy = parts.hostname or "", self._by_scheme.get(parts.scheme, "")
        if not proxy or self._exempt_all or _is_this_machine(host):
            return None
        for entry in self._exempt:
            name, _, port = entry.partition(":")
            if port.isdigit() and ":" not in host and str(parts.port) != port:
                continue
            name = name if port.isdigit() else entry
            if host == name or host.endswith(f".{name}") or _in_network(host, name):
                return None
        return _checked(proxy if "://" in proxy else f"http://{proxy}")


def _no_variable(why: str) -> errors.FailedPrecondition:
    return errors.FailedPrecondition(why, reason="PROXY_VARIABLE", sent=errors.Sent.NO)


def _checked(proxy: str) -> str:
    if urlsplit(proxy).scheme not in {"http", "https"}:
        raise errors.InvalidRequest(
            "the proxy must be an http or https URL; other kinds are not supported",
            reason="PROXY_UNSUPPORTED",
            sent=errors.Sent.NO,
        )
    return proxy


def _is_this_machine(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _in_network(host: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False
