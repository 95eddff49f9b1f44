"""What a configuration becomes: snapshot, material, sealed secrets."""

from __future__ import annotations

import pytest
from tests.unit.scheduler.conftest import make_credential, make_provider, make_snapshot

from patchbay import keys
from patchbay.secrets import SecretOpener
from patchbay_gateway.kernel.config import BUILTIN_PLUGINS, ConfigError, parse
from patchbay_gateway.kernel.keys import client_key_digest, plugin_key
from patchbay_gateway.plugins.distribution import SnapshotHolder
from patchbay_gateway.plugins.sections import decode_sections, encode_sections
from patchbay_gateway.plugins.snapshot import (
    AffinityEntry,
    ClientKeyEntry,
    CoolingEntry,
    ErrorRuleEntry,
    OAuth2Entry,
    QueueEntry,
    Snapshot,
)
from patchbay_gateway.scheduler.catalogue import Catalogue
from patchbay_gateway.scheduler.credentials import Credentials, read_material
from patchbay_gateway.scheduler.publish import build_snapshot, digest_keys

ROOT = b"r" * 32

FILE = """
client_keys:
  - {name: laptop, key: test-key-laptop, models: ["m*"], tenant: blue}
providers:
  - name: fake
    plugin: openai-compatible
    base_url: https://fake.example/v1
    models: [m, {name: long-name, alias: short}]
    retry: {rounds: 2}
    on_disconnect: {drain: 10s}
    attempt_header: x-attempt
    credentials:
      - {id: one, api_key: test-key-one, priority: 3, prefix: t, excluded_models: [short]}
      - {id: two, api_key_env: TWO}
  - {name: free, plugin: echo, models: [echo]}
plugins:
  - {id: mine, address: "127.0.0.1:7009", priority: 5, config: {a: 1}}
routes: [{name: big, targets: [{provider: fake, model: m}]}]
routing: {retry: {max_credentials: 4}}
"""


def build(text=FILE, env=None, previous=None, now=1000.0):
    """Return the snapshot of *text*."""
    env = {"TWO": "test-key-two"} if env is None else env
    config = parse(text, env={})
    return build_snapshot(
        config,
        material=read_material(config, env, ROOT),
        digests=digest_keys(config, env, ROOT),
        prices=(),
        previous=previous,
        now=now,
        open_access=False,
    )


def credentials_of(snapshot):
    return {c.id: c for p in snapshot.providers for c in p.credentials}


def test_configuration_becomes_a_snapshot_without_secrets():
    snapshot = build()
    fake = snapshot.providers[0]
    assert (fake.drain, fake.attempt_header) == (10.0, "x-attempt")
    assert (fake.retry.rounds, fake.retry.max_credentials) == (2, 4)
    assert [m.public for m in fake.models] == ["m", "short"]
    assert [p.id for p in snapshot.plugins] == ["mine", *sorted(BUILTIN_PLUGINS)]
    assert [p.builtin for p in snapshot.plugins] == [False, *[True] * len(BUILTIN_PLUGINS)]
    assert snapshot.plugins[0].config == "a: 1\n"
    assert snapshot.client_keys == (
        ClientKeyEntry("laptop", client_key_digest(ROOT, "test-key-laptop"), ("m*",), "blue"),
    )
    one = fake.credentials[0]
    assert (one.kind, one.priority, one.prefix, one.excluded_models) == (
        *("api_key", 3, "t"),
        ("short",),
    )
    assert len(one.auth_index) == 12
    everything = b"".join(encode_sections(snapshot).values())
    assert b"test-key" not in everything
    assert set(snapshot.targets) == {"m", "short", "t/m", "t/short", "echo", "big"}


POOL = """
providers:
  - name: claude
    plugin: claude
    cooldown: {scope: credential, max: 5m, transient: 0s, probe: false}
    errors:
      - {status: 400, match: [busy], match_regex: ["try .* later"], action: continue-and-cooldown}
    credentials:
      - id: team
        max_in_flight: 3
        oauth2:
          token_url: https://id.example/token
          client_id: me
          refresh_token: test-refresh-token
          client_secret: test-client-secret
          client_auth: basic
          extra: {audience: models}
          refresh_lead: 1m
routing: {affinity: {enabled: true, ttl: 5m}, queue: {length: 7, wait: 1s}, strategy: fill-first}
"""


def test_pool_reaches_the_snapshot_without_secrets():
    snapshot = decode_sections(1, encode_sections(build(POOL)))
    (provider,) = snapshot.providers
    assert provider.base_url == "https://api.anthropic.com"
    assert provider.cooldown == CoolingEntry(
        scope="credential", max=300.0, transient=0.0, probe=False
    )
    assert provider.errors == (
        ErrorRuleEntry(400, "continue-and-cooldown", ("busy",), ("try .* later",)),
    )
    (team,) = provider.credentials
    assert team.max_in_flight == 3
    assert team.oauth2 == OAuth2Entry(
        token_url="https://id.example/token",
        client_id="me",
        client_auth="basic",
        extra={"audience": "models"},
        refresh_lead=60.0,
    )
    assert snapshot.settings.strategy == "fill-first"
    assert snapshot.settings.affinity == AffinityEntry(True, 300.0)
    assert snapshot.settings.queue == QueueEntry(7, 1.0)
    assert b"test-" not in b"".join(encode_sections(snapshot).values())


def test_provider_without_credentials_gets_an_implicit_one():
    (implicit,) = build().providers[1].credentials
    assert (implicit.id, implicit.kind) == ("free-default", "none")


def test_plugin_with_the_id_of_a_builtin_takes_its_place():
    text = FILE.replace("id: mine", "id: echo")
    plugins = {p.id: p for p in build(text).plugins}
    assert not plugins["echo"].builtin
    assert plugins["echo"].addresses[0].address == "127.0.0.1:7009"


def test_version_grows_only_with_the_material():
    first = build(now=1000.0)
    same = build(previous=first, now=2000.0)
    assert encode_sections(same) == encode_sections(first)
    rotated = build(env={"TWO": "test-key-other"}, previous=same, now=2000.0)
    assert credentials_of(rotated)["one"].version == credentials_of(first)["one"].version == 1000
    assert credentials_of(rotated)["two"].version == 2000
    back = build(previous=rotated, now=1500.0)
    assert credentials_of(back)["two"].version == 2001


def test_credential_without_key_here_stays_published_as_it_was():
    """One scheduler that was not given a key does not take the credential from the others."""
    first = build(now=1000.0)
    assert credentials_of(build(env={}, previous=first, now=2000.0)) == credentials_of(first)


def test_credential_without_key_anywhere_has_no_fingerprint():
    two = credentials_of(build(env={}))["two"]
    assert (two.fingerprint, two.disabled) == ("", False)


def test_client_key_without_source_is_refused():
    with pytest.raises(ConfigError):
        build(FILE.replace("key: test-key-laptop", "key_env: NOWHERE"))


def test_hash_of_a_client_key_is_taken_as_it_is():
    digest = "ab" * 32
    snapshot = build(FILE.replace("key: test-key-laptop", f"hash: {digest}"))
    assert snapshot.client_keys[0].digest == digest


# -- sealing ----------------------------------------------------------------------------------------


def credentials_for(clock, text=FILE, env=None):
    """Return credentials and the snapshot of the same configuration."""
    env = {"TWO": "test-key-two"} if env is None else env
    held = Credentials((ROOT,), clock=clock)
    held.replace(read_material(parse(text, env={}), env, ROOT))
    return held, build(text, env)


def opened(secret, clock):
    opener = SecretOpener([keys.sealing_key(plugin_key(ROOT, "openai-compatible"))])
    return opener.open(secret, clock.now())["api_key"]


async def test_secret_is_sealed_once_and_again_before_it_grows_old(clock):
    held, snapshot = credentials_for(clock)
    provider = snapshot.providers[0]
    first, until = held.sealed(provider, provider.credentials[0])
    assert opened(first, clock) == "test-key-one"
    assert list(first.allowed_origins) == ["https://fake.example"]
    assert first.not_after.seconds == int(clock.now()) + 900
    assert until == clock.now() + 600
    await clock.advance(599)
    assert held.sealed(provider, provider.credentials[0])[0] is first
    await clock.advance(2)
    later, _ = held.sealed(provider, provider.credentials[0])
    assert later is not first
    assert opened(later, clock) == "test-key-one"


async def test_rotated_key_serves_snapshots_of_before_and_after(clock):
    held, before = credentials_for(clock)
    old = before.providers[0].credentials[1]
    env = {"TWO": "test-key-new"}
    after = build(env=env, previous=before, now=2000.0)
    new = after.providers[0].credentials[1]
    assert not held.usable(after.providers[0], new)
    held.replace(read_material(parse(FILE, env={}), env, ROOT))
    assert opened(held.sealed(before.providers[0], old)[0], clock) == "test-key-two"
    assert opened(held.sealed(after.providers[0], new)[0], clock) == "test-key-new"
    held.replace(read_material(parse(FILE, env={}), env, ROOT))
    assert not held.usable(before.providers[0], old)


async def test_credential_without_key_has_no_secret(clock):
    held, snapshot = credentials_for(clock)
    free = snapshot.providers[1]
    assert held.usable(free, free.credentials[0])
    assert held.sealed(free, free.credentials[0])[0] is None


async def test_catalogue_lists_what_somebody_serves(clock):
    held = Credentials((ROOT,), clock=clock)
    snapshot = make_snapshot(
        make_provider("a", "x", make_credential("k", kind="api_key"), models=("m", "n")),
        make_provider("b", make_credential("y", disabled=True), models=("m", "o")),
        make_provider("c", make_credential("z", kind="api_key"), models=("p",)),
    )
    assert Catalogue(held).models(snapshot) == (("m", ("a",)), ("n", ("a",)))


# -- sections ---------------------------------------------------------------------------------------


def test_sections_become_the_same_snapshot():
    snapshot = build()
    decoded = decode_sections(7, encode_sections(snapshot))
    assert decoded.version == 7
    assert encode_sections(decoded) == encode_sections(snapshot)
    assert decoded.providers == snapshot.providers
    assert decoded.plugins == snapshot.plugins


def test_client_key_moves_only_its_shard():
    def keyed(*digests):
        entries = tuple(ClientKeyEntry(d, d) for d in digests)
        return encode_sections(Snapshot(version=1, client_keys=entries))

    few, more = keyed("aa1", "bb1"), keyed("bb1", "aa1", "bb2")
    assert [n for n in sorted(more) if more[n] != few.get(n)] == ["client_keys/bb"]


def test_section_of_a_newer_release_is_left_alone():
    sections = encode_sections(build()) | {"novelty": b"[1]"}
    assert decode_sections(1, sections).providers


async def test_holder_keeps_three_and_never_goes_back():
    holder = SnapshotHolder()
    seen = []
    forget = holder.on_change(lambda s: seen.append(s.version))
    for version in (10, 20, 15, 30, 40):
        holder.set(Snapshot(version=version))
    assert holder.current is not None
    assert holder.current.version == 40
    assert [holder.get(v) is not None for v in (10, 15, 20, 30, 40)] == [
        *(False, False),
        *(True, True, True),
    ]
    forget()
    holder.set(Snapshot(version=50))
    assert seen == [10, 20, 30, 40]
    assert (await holder.first()).version == 50
