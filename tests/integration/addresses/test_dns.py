"""The DNS client against a real name server (plugins/dns.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from patchbay_gateway.plugins.dns import (
    DnsResolver,
    DnsSettings,
    HostsFile,
    LookupFailed,
    system_settings,
)

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fakes.dns_server import DnsServer


def resolver_of(dns: DnsServer, tmp_path: Path, *search: str, timeout: float = 5.0) -> DnsResolver:
    settings = DnsSettings((("127.0.0.1", dns.port),), search, timeout=timeout)
    return DnsResolver(settings, HostsFile(tmp_path / "hosts"))


async def test_all_addresses_of_both_families_are_returned(
    dns: DnsServer, resolver: DnsResolver
) -> None:
    dns.records["a.test"] = ["10.0.0.1", "10.0.0.2", "fd00::1"]
    assert await resolver.resolve("a.test") == {"10.0.0.1", "10.0.0.2", "fd00::1"}
    assert await resolver.resolve("a.test.") == {"10.0.0.1", "10.0.0.2", "fd00::1"}


async def test_name_that_does_not_exist_has_no_addresses(resolver: DnsResolver) -> None:
    assert await resolver.resolve("none.test") == frozenset()


async def test_name_without_records_has_no_addresses(dns: DnsServer, resolver: DnsResolver) -> None:
    dns.records["empty.test"] = []
    assert await resolver.resolve("empty.test") == frozenset()


@pytest.mark.parametrize("rcode", [2, 5])
async def test_server_that_fails_raises(dns: DnsServer, resolver: DnsResolver, rcode: int) -> None:
    dns.rcode = rcode
    with pytest.raises(LookupFailed, match=f"code {rcode}"):
        await resolver.resolve("a.test")


async def test_silent_server_raises(dns: DnsServer, tmp_path: Path) -> None:
    dns.silent = True
    with pytest.raises(LookupFailed, match="did not answer"):
        await resolver_of(dns, tmp_path, timeout=0.1).resolve("a.test")


async def test_second_server_is_asked_when_the_first_is_away(
    dns: DnsServer, tmp_path: Path, free_port: int
) -> None:
    dns.records["a.test"] = ["10.0.0.1"]
    settings = DnsSettings((("127.0.0.1", free_port), ("127.0.0.1", dns.port)), timeout=2.0)
    resolver = DnsResolver(settings, HostsFile(tmp_path / "hosts"))
    assert await resolver.resolve("a.test") == {"10.0.0.1"}


async def test_answer_that_was_cut_is_asked_again_over_tcp(
    dns: DnsServer, resolver: DnsResolver
) -> None:
    dns.records["many.test"] = [f"10.0.{n // 200}.{n % 200}" for n in range(300)]
    assert len(await resolver.resolve("many.test")) == 300
    assert dns.tcp_questions == 1


async def test_answer_with_a_foreign_id_is_ignored(dns: DnsServer, resolver: DnsResolver) -> None:
    dns.records["a.test"] = ["10.0.0.1"]
    dns.forge = True
    assert await resolver.resolve("a.test") == {"10.0.0.1"}


async def test_short_name_is_tried_in_each_search_domain_then_alone(
    dns: DnsServer, tmp_path: Path
) -> None:
    resolver = resolver_of(dns, tmp_path, "one.test", "two.test")
    dns.records["executors.two.test"] = ["10.0.0.2"]
    assert await resolver.resolve("executors") == {"10.0.0.2"}
    del dns.records["executors.two.test"]
    dns.records["executors"] = ["10.0.0.3"]
    assert await resolver.resolve("executors") == {"10.0.0.3"}


async def test_name_with_dots_is_never_put_before_a_search_domain(
    dns: DnsServer, tmp_path: Path
) -> None:
    """A wildcard there would answer for every name that does not exist."""
    await resolver_of(dns, tmp_path, "wild.test").resolve("a.b")
    assert set(dns.asked) == {"a.b"}


async def test_hosts_file_comes_first_and_is_read_again(dns: DnsServer, tmp_path: Path) -> None:
    resolver = resolver_of(dns, tmp_path)
    (tmp_path / "hosts").write_text("127.0.0.9 local Here # comment\n::1 here\n")
    assert await resolver.resolve("here") == {"127.0.0.9", "::1"}
    (tmp_path / "hosts").write_text("127.0.0.10 here now\n")
    assert await resolver.resolve("here") == {"127.0.0.10"}
    assert not dns.asked


async def test_literal_address_needs_no_question(dns: DnsServer, resolver: DnsResolver) -> None:
    assert await resolver.resolve("192.0.2.1") == {"192.0.2.1"}
    assert await resolver.resolve("::1") == {"::1"}
    assert not dns.asked


async def test_system_settings_are_those_of_resolv_conf(tmp_path: Path) -> None:
    path = tmp_path / "resolv.conf"
    path.write_text("# x\nsearch a.test b.test\nnameserver 192.0.2.1\nnameserver 192.0.2.2 ; y\n")
    assert system_settings(path) == DnsSettings(
        (("192.0.2.1", 53), ("192.0.2.2", 53)), ("a.test", "b.test")
    )
    assert system_settings(tmp_path / "none").servers == (("127.0.0.1", 53),)
