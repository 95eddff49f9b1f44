"""
Refreshes of rotating tokens by five schedulers, hurt at every step; the identity server's log is the judge.

The identity server consumes a refresh token at its first presentation and revokes the whole family when a
consumed one comes again. So: each token is presented once, but for the single retry of an intent whose holder
was killed or got no answer; answers that refuse (500) do not consume. All tests share one fleet, each with a
credential of its own.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import time
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from tests.harness.fleet import Fleet, eventually

from patchbay import errors
from patchbay_gateway.scheduler import refresh_rules as rules

if TYPE_CHECKING:
    from collections.abc import Iterator
    from concurrent.futures import Future

    from patchbay_gateway.scheduler.durable.port import CredentialRecord

FULL = os.environ.get("PATCHBAY_TEST_FULL_LENGTH") == "1"
SCHEDULERS = 5
EVERYBODY = tuple(range(SCHEDULERS))
LEAD = 300.0
TIMEOUT = 5.0
"""Seconds that the identity server gets for one refresh: what a test does while it holds has to fit in."""

_numbers: defaultdict[Fleet, Iterator[int]] = defaultdict(itertools.count)


IN_SECRETS = {
    "test_refused_token_raced_by_five_is_refreshed_once",
    "test_killed_before_the_intent_costs_nothing",
    "test_killed_between_answer_and_write_needs_a_login_and_says_so",
    "test_invalid_grant_needs_a_login_until_there_is_a_new_seed",
}
"""What runs over Secrets, too, where a machine has an API server; at full length everything does."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each case over records in a directory, and those that are chosen over records in Secrets."""
    if "fleet" in metafunc.fixturenames:
        stores: list[Any] = ["directory"]
        if FULL or metafunc.function.__name__ in IN_SECRETS:
            needed = pytest.mark.requires("kube-apiserver")
            stores.append(pytest.param("secrets", marks=needed))
        metafunc.parametrize("fleet", stores, indirect=True, scope="module")


@pytest.fixture(scope="module")
def fleet(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Fleet]:
    """Five schedulers; whom a test hurt is healed before the next."""
    directory = tmp_path_factory.mktemp("fleet")
    families = tuple(f"c{n}" for n in range(20))
    made: Fleet
    if request.param == "secrets":
        from tests.harness.secret_fleet import SecretFleet  # noqa: PLC0415 - few machines can

        server = request.getfixturevalue("api_server")
        made = SecretFleet(
            directory, server, schedulers=SCHEDULERS, families=families, timeout=TIMEOUT
        )
    else:
        made = Fleet(directory, schedulers=SCHEDULERS, families=families, timeout=TIMEOUT)
    try:
        made.start()
        yield made
    finally:
        made.stop()


class Case:
    """One credential in one test."""

    def __init__(self, fleet: Fleet, credential_id: str) -> None:
        self.fleet = fleet
        self.id = credential_id
        self.family = f"{credential_id}x"
        self.kills = 0

    @property
    def record(self) -> CredentialRecord:
        """As it stands."""
        record = self.fleet.record(self.id)
        assert record is not None
        return record

    @property
    def state(self) -> str:
        """What schedulers show by the record as it stands; for states that pass quickly."""
        return rules.status_of(self.record, LEAD, time.time()).state

    def shown(self, state: str) -> None:
        """Wait until a scheduler that no test hurts shows this state."""
        told: list[str] = []

        def look() -> bool:
            told[:] = [self.fleet.status(self.id, SCHEDULERS - 1).state]
            return told == [state]

        eventually(look, 90, lambda: (told, self.record))

    def sow(self) -> CredentialRecord:
        """Give it a fresh family and wait until all is well; whoever's timer fires does it."""
        seed = self.fleet.identity.open_family(self.family)
        self.fleet.sow(self.id, seed)
        return self.wait(lambda r: self.grown(r) and bool(r.access) and r.intent is None)

    @staticmethod
    def rests(record: CredentialRecord) -> bool:
        """Whether there will be no refresh of it for a long time."""
        return record.intent is None and record.expires_at > time.time() + 2 * LEAD

    def grown(self, record: CredentialRecord) -> bool:
        """Whether the record's token descends from the present family."""
        return record.refresh_token.startswith(f"test-refresh-{self.family}-")

    def wait(self, condition: Any, limit: float = 90.0) -> CredentialRecord:
        """Wait until the record is as asked."""
        return self.fleet.wait_record(self.id, condition, limit)

    def presentations(self) -> list[dict[str, Any]]:
        """What the identity server saw of the family."""
        name = f"{self.family}."
        return [p for p in self.fleet.identity.presentations() if p["token"].startswith(name)]

    def presented(self, count: int) -> list[dict[str, Any]]:
        """Wait until so many presentations have arrived and return them."""
        eventually(lambda: len(self.presentations()) >= count, 90, self.presentations)
        return self.presentations()

    def judge(self, *, retries: int = 0) -> None:
        """Each token was presented once, but for *retries*; what was refused unconsumed does not count."""
        seen = [p for p in self.presentations() if not p["outcome"].startswith("status")]
        again = sum(Counter(p["token"] for p in seen).values()) - len({p["token"] for p in seen})
        assert again <= retries, seen

    def met(self, *schedulers: int) -> None:
        """Wait until each of *schedulers* has reached its auth provider; it may just have started again."""
        for scheduler in schedulers:

            def refreshed(scheduler: int = scheduler) -> bool:
                (answer,) = self.fleet.refresh(self.id, self.record.version, scheduler)
                return isinstance(answer, int)

            eventually(refreshed)

    def kill(self, name: str) -> None:
        """SIGKILL."""
        self.kills += 1
        self.fleet.processes[name].kill()

    @contextmanager
    def asking(self, *schedulers: int) -> Iterator[Future[list[int | errors.PatchbayError]]]:
        """Ask for a newer version meanwhile; the answers are there at the end of the block."""
        with ThreadPoolExecutor(1) as pool:
            yield pool.submit(self.fleet.refresh, self.id, self.record.version, *schedulers)


@pytest.fixture
def case(fleet: Fleet) -> Iterator[Case]:
    """A credential of its own, freshly refreshed; everything runs again afterwards."""
    made = Case(fleet, f"c{next(_numbers[fleet])}")
    made.sow()
    yield made
    fleet.identity.process.signal(signal.SIGCONT)
    fleet.identity.behave()
    fleet.identity.release()
    for process in fleet.processes.values():
        if process.running:
            process.signal(signal.SIGCONT)
        else:
            process.start()
    # What the next test tells the identity server must meet no refresh of this one's credential.
    made.wait(lambda r: r.status == "needs_login" or made.rests(r))


# -- races ----------------------------------------------------------------------------------------


def test_expiry_after_expiry_raced_by_five_presents_each_token_once(case: Case) -> None:
    case.fleet.identity.behave(expires_in=4.0)
    first = case.record.version
    case.fleet.refresh(case.id, first, 0)
    generations = 8 if FULL else 3
    record = case.wait(lambda r: r.version > first + generations)
    case.judge()
    assert record.status == "ok"


def test_refused_token_raced_by_five_is_refreshed_once(case: Case) -> None:
    """Everybody gets the same newer version."""
    before = case.record.version
    answers = case.fleet.refresh(case.id, before, *EVERYBODY, *EVERYBODY, *EVERYBODY, *EVERYBODY)
    assert set(answers) == {before + 1}
    assert len(case.presentations()) == 2  # the first by `sow`
    case.judge()


def test_losers_wait_for_a_slow_winner(case: Case) -> None:
    case.fleet.identity.behave(hold=True, times=1)
    before = case.record.version
    with case.asking(0) as first:
        case.presented(2)
        assert case.state == "refreshing"
        with case.asking(1, 2, 3, 4) as others:
            time.sleep(1.0)  # so that they wait for it; nothing tells
            case.fleet.identity.release()
        assert set(others.result()) == {before + 1}
    assert first.result() == [before + 1]
    case.judge()


# -- a scheduler is killed at each step -----------------------------------------------------------


def test_killed_before_the_intent_costs_nothing(case: Case) -> None:
    before = case.record.version
    with case.asking(0) as asked:
        with case.fleet.locked():
            eventually(case.fleet.lock_is_wanted)
            case.kill("scheduler0")
        assert isinstance(asked.result()[0], errors.Unavailable)
    assert case.record.intent is None
    assert case.fleet.refresh(case.id, before, 1) == [before + 1]
    case.judge()


def test_killed_after_the_intent_is_retried_once(case: Case) -> None:
    """Its call stands in an executor that hangs; what that does when it wakes is the provider's log."""
    executors = case.fleet.processes["executors"]
    with case.asking(0):
        executors.signal(signal.SIGSTOP)
        case.wait(lambda r: r.intent is not None)
        case.kill("scheduler0")
    executors.signal(signal.SIGCONT)
    record = case.wait(lambda r: r.intent is None)
    case.judge(retries=1)
    lost = any(p["outcome"] == "reuse" for p in case.presentations())
    assert record.status == ("needs_login" if lost else "ok")


def test_killed_while_the_provider_thinks_is_retried_once_and_shown_ambiguous(case: Case) -> None:
    case.fleet.identity.behave(hold=True, times=2)
    before = case.record.version
    with case.asking(0):
        case.presented(2)
        assert case.state == "refreshing"
        case.kill("scheduler0")
    with case.asking(1, 2, 3, 4) as asked:
        case.presented(3)
        assert case.state == "ambiguous"
        case.fleet.identity.release()
    assert set(asked.result()) == {before + 1}
    case.shown("ok")
    case.judge(retries=1)


def test_killed_between_answer_and_write_needs_a_login_and_says_so(case: Case) -> None:
    """The one loss that there is: nobody else was told the new token."""
    case.fleet.identity.behave(hold=True, times=1)
    with case.asking(0):
        case.presented(2)
        with case.fleet.locked():
            case.fleet.identity.release()
            eventually(lambda: case.presentations()[1]["answered"])
            eventually(case.fleet.lock_is_wanted)
            case.kill("scheduler0")
    (answer,) = case.fleet.refresh(case.id, case.record.version, 1)
    assert isinstance(answer, errors.FailedPrecondition)
    assert answer.reason == "NEEDS_LOGIN"
    assert [p["outcome"] for p in case.presentations()][1:] == ["issued", "reuse"]
    record = case.record
    assert record.status == "needs_login"
    assert record.last_error is not None
    assert record.last_error.code == "INVALID_GRANT"
    case.judge(retries=1)


def test_killed_after_the_write_loses_nothing(case: Case) -> None:
    """Nobody may have been told; they see the record."""
    before = case.record.version
    with case.asking(0):
        eventually(lambda: case.record.version > before)
        case.kill("scheduler0")
    assert set(case.fleet.refresh(case.id, before, 1, 2, 3, 4)) == {before + 1}
    case.judge()


def test_stopped_in_the_middle_finishes_its_refresh(case: Case) -> None:
    """SIGTERM is no kill: what is under way is kept before the process ends."""
    case.fleet.identity.behave(hold=True, times=1)
    before = case.record.version
    with case.asking(0):
        case.presented(2)
        process = case.fleet.processes["scheduler0"]
        process.signal(signal.SIGTERM)
        case.fleet.identity.release()
        assert process.wait(90) == 0
    assert case.record.version == before + 1
    assert case.state == "ok"
    case.judge()


def test_killed_at_random_instants_presents_again_at_most_once_a_kill(case: Case) -> None:
    """Timers go on; a family that is lost is lost where a kill came between answer and write."""
    seed = random.SystemRandom().randrange(1 << 30)
    rng = random.Random(seed)
    print("seed", seed)  # noqa: T201 - shown with a failure
    case.fleet.identity.behave(expires_in=3.0, delay=0.05)
    case.fleet.refresh(case.id, case.record.version, 0)
    for _ in range(10 if FULL else 3):
        name = f"scheduler{rng.randrange(SCHEDULERS - 1)}"
        time.sleep(rng.uniform(0.5, 2.5))
        case.kill(name)
        time.sleep(rng.uniform(0.0, 0.5))
        case.fleet.processes[name].start()
    case.wait(lambda r: r.intent is None and not rules.urgent(r, LEAD, time.time()))
    case.judge(retries=case.kills)
    if any(p["outcome"] in {"reuse", "revoked"} for p in case.presentations()):
        case.shown("needs_login")
    else:
        before = case.record.version
        case.wait(lambda r: r.version > before)


# -- Redis ----------------------------------------------------------------------------------------


def test_redis_flushed_in_the_middle_changes_nothing_and_timers_return(case: Case) -> None:
    case.fleet.identity.behave(hold=True, times=1)
    before = case.record.version
    with case.asking(0, 1) as asked:
        case.presented(2)
        case.fleet.flush_redis()
        case.fleet.identity.release()
    assert set(asked.result()) == {before + 1}
    eventually(lambda: case.id in case.fleet.timers(), 90, case.fleet.timers)
    case.judge()


def test_redis_away_refreshes_what_is_refused_and_what_has_run_out_once(case: Case) -> None:
    case.met(*EVERYBODY)
    case.fleet.processes["valkey"].kill()
    case.fleet.identity.behave(expires_in=8.0, times=1)
    before = case.record.version
    assert set(case.fleet.refresh(case.id, before, *EVERYBODY)) == {before + 1}
    case.wait(lambda r: r.version == before + 2)
    case.judge()
    case.fleet.processes["valkey"].start()
    eventually(lambda: case.id in case.fleet.timers(), 90, case.fleet.timers)


# -- the lease ends in the middle -----------------------------------------------------------------


def test_holder_that_sleeps_through_its_intent_is_replaced_and_does_no_harm(case: Case) -> None:
    case.fleet.identity.behave(hold=True, times=1)
    before = case.record.version
    with case.asking(0):
        case.presented(2)
        case.fleet.processes["scheduler0"].signal(signal.SIGSTOP)
        assert case.fleet.refresh(case.id, before, 1) == [before + 1]
        case.fleet.identity.release()
        case.fleet.processes["scheduler0"].signal(signal.SIGCONT)
    assert set(case.fleet.refresh(case.id, before, *EVERYBODY)) == {before + 1}
    case.shown("ok")
    case.judge(retries=1)


# -- the identity server misbehaves ---------------------------------------------------------------


def test_answer_later_than_the_deadline_is_retried_once(case: Case) -> None:
    case.fleet.identity.behave(hold=True)  # the retry, so that the state before it can be seen
    case.fleet.identity.behave(delay=10.0, times=1)
    before = case.record.version
    (answer,) = case.fleet.refresh(case.id, before, 0)
    assert isinstance(answer, errors.ResourceExhausted)
    assert answer.reason == "REFRESH_BACKOFF"
    case.shown("ambiguous")
    case.fleet.identity.release()
    case.wait(lambda r: r.version == before + 1)
    case.judge(retries=1)


def test_500_is_tried_again_after_a_pause_and_shown(case: Case) -> None:
    case.fleet.identity.behave(status=500, times=2)
    before = case.record.version
    (answer,) = case.fleet.refresh(case.id, before, 0)
    assert isinstance(answer, errors.ResourceExhausted)
    assert answer.retry_after is not None
    record = case.record
    assert record.status == "backoff"
    assert record.last_error is not None
    assert record.last_error.http_status == 500
    case.wait(lambda r: r.version == before + 1)
    case.shown("ok")
    assert [p["outcome"] for p in case.presentations()][1:] == ["status 500"] * 2 + ["issued"]
    case.judge()


def test_invalid_grant_needs_a_login_until_there_is_a_new_seed(case: Case) -> None:
    case.fleet.identity.revoke(case.family)
    answers = case.fleet.refresh(case.id, case.record.version, *EVERYBODY)
    assert {getattr(answer, "reason", answer) for answer in answers} == {"NEEDS_LOGIN"}
    case.shown("needs_login")
    eventually(lambda: case.id not in case.fleet.timers(), 90, case.fleet.timers)
    assert len(case.presentations()) == 2
    case.family = f"{case.family}y"
    case.sow()
    case.shown("ok")
    case.judge()


def test_identity_server_down_is_waited_for(case: Case) -> None:
    """Nothing is presented while nobody listens. What it has in memory goes with it: a new seed comes."""
    identity = case.fleet.identity
    identity.process.kill()
    case.family = f"{case.family}y"
    case.fleet.sow(case.id, f"test-refresh-{case.family}-0")
    record = case.wait(lambda r: case.grown(r) and r.status == "backoff")
    assert record.last_error is not None
    identity.process.start()
    identity.open_family(case.family)
    case.wait(lambda r: case.grown(r) and r.status == "ok" and bool(r.access))
    case.judge()
    assert len(case.presentations()) == 1
