"""
Checks of a machine and a configuration, each with a remedy: `patchbay doctor`.

A check looks and changes nothing. Not here: those of providers (provider_checks.py), how they are printed
(commands/diagnosis.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import socket
import stat
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from patchbay import errors
from patchbay_gateway.checks import Check
from patchbay_gateway.commands.client import ManagementClient, connect
from patchbay_gateway.commands.ports import why_not
from patchbay_gateway.kernel import config as configuration
from patchbay_gateway.kernel.management_token import TOKEN_FILE
from patchbay_gateway.plugins.prices import load_prices
from patchbay_gateway.provider_checks import examine_pool, examine_providers
from patchbay_gateway.reaching import unreachable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping
    from pathlib import Path

# One stream holds a client and an upstream socket; a thousand of them and the rest fit in here.
ENOUGH_FILES: Final = 4096
ENOUGH_DISK: Final = 1 << 30
CLOCK_SKEW: Final = 2.0
"""Seconds; tokens between services and leases tolerate this much."""


@dataclass(frozen=True, slots=True)
class Subject:
    """What is examined."""

    settings: configuration.ProcessSettings
    env: Mapping[str, str]
    management_url: str
    unreachable: Callable[[Iterable[str]], Mapping[str, str]] = unreachable
    """Returns URL → why not, of those that cannot be reached."""


def examine(subject: Subject) -> Iterator[Check]:
    """Yield the result of every check, cheap and local ones first."""
    loaded = None
    try:
        loaded = configuration.load_for(subject.settings, subject.env)
    except errors.PatchbayError as error:
        yield Check("configuration", "fail", error.message, "mend the lines named above")
    else:
        yield _configuration(subject, loaded)
        yield from _keys(subject, loaded)
        yield from _prices(loaded)
    yield _data_dir(subject.settings.data_dir)
    yield from _private_files(subject.settings.data_dir)
    yield _file_descriptors()
    yield from _redis(subject)
    yield from _addresses(subject.settings)
    if loaded is not None:
        yield from examine_providers(loaded, subject.env, subject.unreachable)
    yield from _gateway(subject)


def _configuration(subject: Subject, loaded: configuration.Config) -> Check:
    path = subject.settings.config_path
    names = ", ".join(p.name for p in loaded.providers)
    if not names:
        remedy = "name one under providers, or export OPENAI_API_KEY"
        return Check("configuration", "warn", "no provider", remedy)
    return Check("configuration", "ok", f"{path or 'no file, defaults'}; providers: {names}")


def _keys(subject: Subject, loaded: configuration.Config) -> Iterator[Check]:
    if missing := configuration.missing_secrets(loaded, subject.env):
        detail = "; ".join(str(p) for p in missing)
        yield Check("keys", "fail", detail, "export the variables or write the files named")
    else:
        number = len(loaded.client_keys) + sum(len(p.credentials) for p in loaded.providers)
        yield Check("keys", "ok", f"all {number} can be read")
    if not loaded.client_keys and not subject.settings.loopback:
        yield Check(
            "client keys",
            "warn",
            f"none, and {subject.settings.host} can be reached from elsewhere: all calls get 401",
            "add client_keys to the configuration",
        )


def _prices(loaded: configuration.Config) -> Iterator[Check]:
    """A gateway does not start with prices that it cannot read, and one that runs keeps the former."""
    if (path := loaded.usage.prices) is None:
        return
    try:
        entries = load_prices(path)
    except errors.InvalidRequest as error:
        yield Check("prices", "fail", error.message, "mend the file, or correct usage.prices")
    else:
        yield Check("prices", "ok", f"{len(entries)} entries in {path}")


def _data_dir(path: Path) -> Check:
    existing = path
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        return Check(
            "data directory",
            "fail",
            f"{path} cannot be written",
            f"give this user write access to {existing}, or set PATCHBAY_DATA_DIR",
        )
    free = shutil.disk_usage(existing).free
    detail = f"{path}, {free >> 20} MiB free"
    if free < ENOUGH_DISK:
        return Check("data directory", "warn", detail, "free space, or set PATCHBAY_DATA_DIR")
    return Check("data directory", "ok", detail)


def _private_files(data_dir: Path) -> Iterator[Check]:
    """Root keys and the token open everything: they are for their owner alone."""
    candidates = [data_dir / TOKEN_FILE]
    with contextlib.suppress(OSError):
        candidates.extend(p for p in (data_dir / "keys").iterdir() if p.is_file())
    open_to_others = []
    for path in candidates:
        with contextlib.suppress(OSError):
            if stat.S_IMODE(path.stat().st_mode) & 0o077:
                open_to_others.append(str(path))
    if open_to_others:
        names = " ".join(sorted(open_to_others))
        yield Check("file modes", "fail", f"others can read {names}", f"chmod 600 {names}")


def _file_descriptors() -> Check:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < ENOUGH_FILES:
        return Check(
            "file descriptors",
            "warn",
            f"limit {soft}: about {max(0, soft - 100) // 2} requests at once",
            f"ulimit -n {ENOUGH_FILES if hard < 0 else min(65536, hard)} before the start",
        )
    return Check("file descriptors", "ok", f"limit {'none' if soft < 0 else soft}")


def _redis(subject: Subject) -> Iterator[Check]:
    url = subject.settings.redis_url
    if url is None:
        from patchbay_gateway.kernel.valkey import find_server  # noqa: PLC0415 - only without URL

        try:
            yield Check("redis", "ok", f"none named; `up` starts {find_server()}")
        except errors.PatchbayError as error:
            yield Check("redis", "fail", error.message, "one of the three named")
        return
    try:
        skew = asyncio.run(_ask_redis(url, subject.settings.installation))
    except errors.PatchbayError as error:
        remedy = "start it, or correct REDIS_URL"
        if isinstance(error, errors.FailedPrecondition):
            remedy = "change the server's configuration as said"
        yield Check("redis", "fail", error.message, remedy)
        return
    yield Check("redis", "ok", "answers, and evicts nothing")
    yield _clock(skew, "Redis")


async def _ask_redis(url: str, installation: str) -> float:
    """Check the server and return how many seconds its clock is ahead of ours."""
    from patchbay_gateway.kernel.clock import SystemClock  # noqa: PLC0415 - only with a URL
    from patchbay_gateway.kernel.redis import Store  # noqa: PLC0415 - the same

    store = Store(url, installation=installation, clock=SystemClock(), timeout=2.0)
    try:
        await store.check_server()
        seconds, micros = await store.call("TIME")
        return int(seconds) + int(micros) / 1e6 - time.time()
    finally:
        await store.aclose()


def _clock(skew: float, whose: str) -> Check:
    detail = f"{abs(skew):.1f} s {'behind' if skew > 0 else 'ahead of'} {whose}"
    if abs(skew) > CLOCK_SKEW:
        return Check("clock", "warn", detail, "switch on time synchronisation (NTP) on both")
    return Check("clock", "ok", detail)


def _addresses(settings: configuration.ProcessSettings) -> Iterator[Check]:
    """Connect to each other service that the environment names."""
    for name in ("scheduler", "usage", "executors"):
        for address in filter(None, getattr(settings, f"{name}_address").split(",")):
            host, _, port = address.rpartition(":")
            try:
                with socket.create_connection((host.strip("[]"), int(port)), timeout=2):
                    yield Check(name, "ok", f"{address} accepts connections")
            except OSError as error:
                remedy = f"start `patchbay {name}`, or correct PATCHBAY_{name.upper()}_ADDRESS"
                yield Check(name, "fail", f"{address}: {error.strerror or error}", remedy)


def _gateway(subject: Subject) -> Iterator[Check]:
    """A gateway that runs must be ready and answer us; where none runs the ports must be free."""
    settings = subject.settings
    client = connect(subject.management_url, subject.env, settings.data_dir)
    try:
        status, body = client.fetch("/readyz")
    except errors.InvalidRequest as error:
        yield Check("gateway", "fail", error.message, "correct PATCHBAY_MANAGEMENT_URL or --url")
        return
    except errors.Unavailable:
        yield Check("gateway", "ok", f"none runs at {subject.management_url}")
        for port in (settings.port, settings.management_port):
            yield _port(settings.host, port)
        return
    if status != 200:
        detail = f"{subject.management_url} is not ready: {body[:500].decode(errors='replace')}"
        yield Check("gateway", "fail", detail, "see its log")
        return
    yield Check("gateway", "ok", f"{subject.management_url} is ready")
    yield (answers := _management(client))
    if answers.status == "ok":
        yield from _pool(client)


def _management(client: ManagementClient) -> Check:
    try:
        version = client.get("/v0/management/snapshot").get("version")
    except errors.NotFound:
        return Check("management", "warn", "no snapshot is published yet", "see its log")
    except errors.PatchbayError as error:
        return Check("management", "fail", error.message, "set PATCHBAY_MANAGEMENT_KEY")
    return Check("management", "ok", f"answers; snapshot {version}")


def _pool(client: ManagementClient) -> Iterator[Check]:
    """What the gateway's schedulers know of the credentials."""
    try:
        yield from examine_pool(client.get("/v0/management/credentials"))
    except errors.PatchbayError as error:
        yield Check("pool", "warn", error.message, "see the log of the scheduler")


def _port(host: str, port: int) -> Check:
    if why := why_not(host, port):
        remedy = "stop what listens there, or choose another with --port, --management-port"
        return Check(f"port {port}", "fail", why, remedy)
    return Check(f"port {port}", "ok", "free")
