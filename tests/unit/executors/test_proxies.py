"""Which proxy a URL goes through."""

from __future__ import annotations

import pytest

from patchbay import errors
from patchbay_gateway.executors.proxies import Proxies

ENV = {
    "HTTPS_PROXY": "http://proxy.example:3128",
    "NO_PROXY": "internal.example, .corp.example,10.0.0.0/8,exact.example:8443",
}


@pytest.mark.parametrize(
    ("url", "proxy"),
    [
        ("https://api.example.com/v1", "http://proxy.example:3128"),
        ("http://api.example.com/v1", None),
        ("https://internal.example/", None),
        ("https://a.internal.example/", None),
        ("https://notinternal.example/", "http://proxy.example:3128"),
        ("https://x.corp.example/", None),
        ("https://10.1.2.3/", None),
        ("https://11.1.2.3/", "http://proxy.example:3128"),
        ("https://exact.example:8443/", None),
        ("https://exact.example/", "http://proxy.example:3128"),
        ("https://localhost:1/", None),
        ("https://127.0.0.7/", None),
        ("https://[::1]:8/", None),
    ],
)
def test_choose_from_environment(url: str, proxy: str | None) -> None:
    proxies = Proxies(ENV)
    assert proxies.choose(url, "") == proxy
    assert proxies.choose(url, "") == proxy


def test_choose_setting_wins() -> None:
    proxies = Proxies(ENV)
    assert proxies.choose("https://api.example.com/", "http://own:1") == "http://own:1"
    assert proxies.choose("https://api.example.com/", "direct") is None


def test_choose_all_proxy_lower_case_first_and_scheme_added() -> None:
    proxies = Proxies({"ALL_PROXY": "upper:1", "all_proxy": "lower:1"})
    assert proxies.choose("http://api.example.com/", "") == "http://lower:1"


def test_choose_star_exempts_everything() -> None:
    assert Proxies({**ENV, "NO_PROXY": "*"}).choose("https://api.example.com/", "") is None


def test_choose_socks_refused() -> None:
    with pytest.raises(errors.InvalidRequest) as caught:
        Proxies({}).choose("https://api.example.com/", "socks5://p:1")
    assert caught.value.reason == "PROXY_UNSUPPORTED"


@pytest.mark.parametrize(
    ("setting", "proxy"),
    [
        ("http://${PROXY_AUTH}@own:1", "http://me:p%40ss@own:1"),
        ("https://you:${PROXY_PASSWORD}@own:1", "https://you:a%2Fb@own:1"),
    ],
)
def test_user_and_password_of_a_setting_are_the_executors(setting: str, proxy: str) -> None:
    env = {"PROXY_AUTH": "me:p%40ss", "PROXY_PASSWORD": "a/b"}
    assert Proxies(env).choose("https://api.example.com/", setting) == proxy


@pytest.mark.parametrize(
    "setting",
    [
        "http://${PROXY_ABSENT}@own:1",
        "http://${SECRET}@own:1",
        "http://${}@own:1",
        "http://${PROXY_AUTH}:1",
        "http://a@${PROXY_AUTH}/",
    ],
)
def test_reference_to_what_is_not_the_proxys_is_refused(setting: str) -> None:
    """A setting must not send variables of another purpose, or any of them, to a host of its choice."""
    env = {"PROXY_AUTH": "me:secret", "SECRET": "secret"}
    with pytest.raises(errors.FailedPrecondition) as caught:
        Proxies(env).choose("https://api.example.com/", setting)
    assert caught.value.reason == "PROXY_VARIABLE"
    assert "me:secret" not in str(caught.value)


@pytest.mark.parametrize("setting", ["direct", "none"])
def test_setting_that_says_no_proxy_wins_over_the_environment(setting: str) -> None:
    proxies = Proxies({"HTTPS_PROXY": "http://proxy.example:1"})

    assert proxies.choose("https://api.example", setting) is None
