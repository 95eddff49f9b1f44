"""Where a plugin's HTTP may go."""

from __future__ import annotations

import pytest

from patchbay import errors
from patchbay_gateway.plugins.callbacks.addresses import allowed_addresses, reachable
from patchbay_gateway.plugins.callbacks.http_calls import parse_target
from patchbay_gateway.plugins.grants import Grants


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.255.0.3",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "100.64.0.1",
        "100.100.100.200",
        "169.254.169.254",
        "168.63.129.16",
        "192.0.0.192",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::1",
        "2002:7f00:1::",
        "2001:0:808:808::f5ff:fffe",
        "fe80::1",
        "fec0::1",
        "fe80::1%eth0",
        "fd00:ec2::254",
        "ff02::1",
        "2001:db8::1",
        "no address",
    ],
)
def test_address_that_is_not_of_the_open_internet_is_refused(address: str) -> None:
    assert not reachable(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_address_of_the_open_internet_is_reachable(address: str) -> None:
    assert reachable(address)


class Names:
    """A resolver that knows one answer, and counts."""

    def __init__(self, *addresses: str) -> None:
        self._addresses = addresses
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> tuple[str, ...]:
        self.asked.append((host, port))
        return self._addresses


def grants(*hosts: str) -> Grants:
    """Return grants of HTTP."""
    return Grants(hosts=hosts)


async def test_granted_public_host_resolves_once() -> None:
    names = Names("8.8.8.8", "8.8.4.4")
    found = await allowed_addresses(grants("*.example"), "api.example", 443, names)
    assert list(found) == ["8.8.8.8", "8.8.4.4"]
    assert names.asked == [("api.example", 443)]


async def test_host_that_no_pattern_covers_is_refused_before_it_is_looked_up() -> None:
    names = Names("8.8.8.8")
    with pytest.raises(errors.PermissionDenied, match="not granted") as refused:
        await allowed_addresses(grants("*.example"), "example.org", 443, names)
    assert refused.value.reason == "HTTP_ADDRESS_REFUSED"
    assert names.asked == []


@pytest.mark.parametrize("pattern", ["*", "*.example", "api.*"])
async def test_one_private_address_of_several_refuses_them_all(pattern: str) -> None:
    names = Names("8.8.8.8", "10.0.0.1")
    with pytest.raises(errors.PermissionDenied, match="private"):
        await allowed_addresses(grants(pattern), "api.example", 443, names)


@pytest.mark.parametrize("spelled", ["api.example", "API.example", "api.example:8443"])
async def test_private_address_is_meant_where_the_grant_spells_the_host(spelled: str) -> None:
    found = await allowed_addresses(grants(spelled), "api.example", 8443, Names("10.0.0.1"))
    assert list(found) == ["10.0.0.1"]


async def test_grant_of_a_port_covers_no_other() -> None:
    with pytest.raises(errors.PermissionDenied):
        await allowed_addresses(grants("api.example:8443"), "api.example", 443, Names("8.8.8.8"))


@pytest.mark.parametrize("fault", [OSError("no such name"), None])
async def test_host_without_address_is_a_failed_connection(fault: OSError | None) -> None:
    async def resolve(host: str, port: int) -> tuple[str, ...]:  # noqa: ARG001 - a port's
        if fault is not None:
            raise fault
        return ()

    with pytest.raises(errors.Unavailable) as refused:
        await allowed_addresses(grants("*"), "nowhere.example", 80, resolve)
    assert (refused.value.reason, refused.value.sent) == ("HTTP_CONNECTION", errors.Sent.NO)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/relative",
        "ftp://a.example/",
        "file:///etc/passwd",
        "http://",
        "http://user@a.example/",
        "http://a.example\\@b.example/",
        "http://a.example/with space",
        "http://a.example/\r\nx: y",
        "http://bücher.example/",
        "http://[fe80::1%25eth0]/",
        "http://a.example:99999/",
    ],
)
def test_url_that_somebody_could_read_otherwise_is_refused(url: str) -> None:
    with pytest.raises(errors.InvalidRequest) as refused:
        parse_target(url)
    assert refused.value.reason == "INVALID_URL"


def test_url_is_taken_apart() -> None:
    target = parse_target("https://API.Example.:8443/a%20b?c=d#e")
    assert (target.tls, target.host, target.port) == (True, "api.example", 8443)
    assert target.path == "/a%20b?c=d"
    assert target.authority == "api.example:8443"
    assert parse_target("http://[2606:4700::1111]").authority == "[2606:4700::1111]"
