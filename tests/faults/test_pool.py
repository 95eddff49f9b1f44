"""
Two hundred accounts at providers that answer every status: who is asked, what rests, what clients are told.

One gateway for all tests, in both topologies; each test has accounts of its own. The judges are the
upstream's log, the ledger, and `patchbay credentials list`, which must agree with what the next request does.
"""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from tests.faults.conftest import AT_FULL_LENGTH, FULL, SHORT
from tests.harness.judge import Judge
from tests.harness.pool import Group, Pool, instant, left, make_pool
from tests.harness.topology import Services, Up
from tests.harness.upstream import Upstream

if TYPE_CHECKING:
    from collections.abc import Iterator

    import httpx

# Status → seconds that an account rests after it, at least and at most.
STATUSES = {
    401: (1790, 1800),
    402: (1790, 1800),
    403: (1790, 1800),
    404: (590, 600),
    408: (50, 60),
    429: (0, 60),
    500: (50, 60),
    502: (50, 60),
    503: (50, 60),
    504: (50, 60),
    520: (50, 60),
    529: (0, 60),
}
# Retry-After → the same. 0 and garbage are none: the rest is Patchbay's own, and grows.
WAITS = {"0": (0, 60), "5": (0, 5), "soon": (0, 60), "864000": (3500, 3600)}
SICK = (
    *(Group(f"s{status}", 10, f"status={status}") for status in STATUSES),
    *(Group(f"w{wait}", 5, f"status=429,retry_after={wait}") for wait in WAITS),
    # Of 20 accounts one model is bad, the other is well.
    Group("half", 20, "status=503", well=("other",)),
)
WELL = Group("well", 40)
EXPECTED = {f"s{s}": w for s, w in STATUSES.items()} | {f"w{w}": r for w, r in WAITS.items()}
EXPECTED["half"] = (50, 60)
LASTING = [name for name, (least, _) in EXPECTED.items() if least]
ALONE = tuple(
    Group(name, 1, models=(name,)) for name in ("early", "reset", "race", "relapse", "faultless")
)
GRAVE = (
    Group("grave401", 1, "status=401", models=("grave",)),
    Group("grave520", 1, "status=520,error=the origin is down", models=("grave",)),
)
# Seconds between leases of one account while the failure of the first is on its way; less than any window.
BURST = 0.85
# The client's own faults: the same for every account, so held against none.
REQUEST_FAULTS = (400, 405, 409, 413, 415, 422)


@pytest.fixture(scope="module", params=["up", "services"])
def pool(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pool]:
    """The pool behind `patchbay up`, and behind two schedulers; at the end the ledger is judged."""
    directory = tmp_path_factory.mktemp(f"pool-{request.param}")
    lengths = SHORT
    upstream = Upstream(directory)
    upstream.process.start()
    config = make_pool(upstream.url, (*SICK, WELL, *ALONE, *GRAVE))
    gateway: Up | Services
    if request.param == "up":
        gateway = Up(directory, config, lengths.env)
    else:
        gateway = Services(directory, config, lengths.env, schedulers=2, executors=2)
    try:
        gateway.start()
        made = Pool(gateway, upstream)
        yield made
        made.close()
        Judge(gateway, upstream, settle=FULL.settle).check_ledger()
    finally:
        gateway.stop()
        upstream.process.kill()


def served(answer: httpx.Response) -> bool:
    """
    Whether *answer* is one that a client of this pool may get.

    Ten accounts of a kind stand side by side, and a request gives up after ten attempts. Where the windows of
    such ten end together, the next request meets them all, and its client reads a provider's words.
    """
    if answer.status_code == 200:
        return True
    return (
        answer.headers["x-patchbay-attempts"] == "10"
        and answer.json()["error"]["code"] != "model_cooldown"
    )


@pytest.fixture(scope="module")
def spoilt(pool: Pool) -> Pool:
    """The pool after so many requests that every sick account was asked."""
    wanted = {id_ for group in SICK for id_ in group.ids}
    assert len(wanted) + WELL.size == 200
    sick = tuple(group.name for group in SICK)
    for _ in range(30):
        for _ in range(20):
            answer = pool.ask("pool")
            assert served(answer), answer.text
        if wanted <= {credential for credential, _, _ in pool.calls(*sick)}:
            return pool
    missing = wanted - {credential for credential, _, _ in pool.calls(*sick)}
    raise AssertionError(f"never asked: {sorted(missing)}")


def test_pool_sick_accounts_are_asked_once_a_window_and_clients_are_served(spoilt: Pool) -> None:
    answers = [spoilt.ask("pool", stream=n % 2 == 1) for n in range(100)]
    assert all(served(answer) for answer in answers), [answer.text for answer in answers]
    # Each window that ends costs one client at most, and a window is longer each time.
    assert sum(answer.status_code == 200 for answer in answers) > 80
    by_credential: dict[str, list[float]] = defaultdict(list)
    for credential, at, status in spoilt.calls(*EXPECTED):
        if status != 200:
            by_credential[credential].append(at)
    overtaken: list[str] = []
    for credential, times in by_credential.items():
        # The shortest window that is left after a failure: what was asked for, or the first of a backoff.
        least = max(EXPECTED[credential.rpartition("-")[0]][0], 1)
        if credential.startswith("w5"):
            least = 5
        pauses = [later - earlier for earlier, later in itertools.pairwise(times)]
        if isinstance(spoilt.gateway, Services) and any(pause < BURST for pause in pauses):
            # A client has its answer before a scheduler has the report of the last failure, and another
            # scheduler may have leased for its next request by then: of one burst, not of two windows.
            overtaken.append(credential)
            pauses = [pause for pause in pauses if pause >= BURST]
        assert all(pause > least - 0.1 for pause in pauses), (credential, pauses)
        if least == 1 and len(pauses) > 1:
            assert pauses[-1] > 1.9, (credential, pauses, "a backoff grows")
    # Rare, or reports are late always.
    assert len(overtaken) <= 5, overtaken


def test_pool_list_says_for_each_account_what_happened_and_until_when(spoilt: Pool) -> None:
    listed_at = time.time()
    lines = spoilt.listed()
    for group in SICK:
        least, most = EXPECTED[group.name]
        for id_ in group.ids:
            line = lines[id_, "pool"]
            assert line["last_error"] is not None, (id_, line)
            assert line["last_error"]["message"] == "as told"
            told = line["last_error"]["http_status"]
            assert f"status={told}" in group.tells, (id_, line)
            failed = instant(line["last_error"]["at"])
            # Whoever was asked longer ago, by another test on a slow machine, may have recovered.
            if group.name in LASTING and listed_at < failed + least:
                assert line["state"] == "cooling", (id_, line)
                # Times are told to the second.
                assert least - 2 <= instant(line["until"]) - failed <= most + 2, (id_, line)
    for id_ in WELL.ids:
        assert lines[id_, "pool"]["state"] == "ready", lines[id_, "pool"]


def test_pool_list_agrees_with_what_the_next_request_does(spoilt: Pool) -> None:
    """Each of the 200 accounts is asked alone, right after it was listed."""
    lines = spoilt.listed(*(group.name for group in (*SICK, WELL)))
    assert len({id_ for id_, _ in lines}) == 200
    before = len(spoilt.calls())
    states, ready = set(), []
    for (id_, model), line in lines.items():
        states.add(line["state"])
        if line["state"] == "cooling" and left(line) < 3:
            continue  # it recovers while we look
        most = left(line) if line["state"] == "cooling" else 0.0
        answer = spoilt.ask(f"{id_}/{model}")
        if line["state"] == "ready":
            ready.append(id_)
            continue
        assert answer.status_code == 429, (line, answer.text)
        assert answer.json()["error"]["code"] == "model_cooldown"
        assert left(line) - 3 < int(answer.headers["retry-after"]) < most + 3, line
        assert str(line["last_error"]["http_status"]) in answer.json()["error"]["message"]
    # Whoever was listed as ready was asked, and nobody else.
    assert [credential for credential, _, _ in spoilt.calls()[before:]] == ready
    assert states == {"ready", "cooling"}


def test_provider_bad_for_one_model_serves_the_others(spoilt: Pool) -> None:
    lines = spoilt.listed("half")
    assert {s["state"] for (_, m), s in lines.items() if m == "pool"} <= {"cooling", "ready"}
    assert {s["state"] for (_, m), s in lines.items() if m == "other"} == {"ready"}
    answers = [spoilt.ask("other") for _ in range(20)]
    assert {(a.status_code, a.headers["x-patchbay-attempts"]) for a in answers} == {(200, "1")}


def test_request_fault_is_told_and_penalises_nobody(pool: Pool) -> None:
    for status in REQUEST_FAULTS:
        before = len(pool.calls("faultless"))
        answer = pool.ask("faultless", status=status)
        assert (answer.status_code, answer.headers["x-patchbay-attempts"]) == (status, "1")
        assert answer.json()["error"]["message"] == "as told"
        assert len(pool.calls("faultless")) == before + 1
    line = pool.listed("faultless")["faultless-00", "faultless"]
    assert (line["state"], line["reason"]) == ("ready", None)
    assert pool.ask("faultless").status_code == 200


def test_client_is_told_the_graver_failure_of_a_provider(pool: Pool) -> None:
    """In whichever order: the origin that is down says more than a refused key, and neither is our 429."""
    answer = pool.ask("grave")
    assert answer.headers["x-patchbay-attempts"] == "2"
    assert answer.status_code == 520
    assert answer.json()["error"]["message"] == "the origin is down"


# The rule is the scheduler's own and takes 10 s; that two of them agree is what the races below ask.
@pytest.mark.parametrize(
    "pool", ["up", "services"] if AT_FULL_LENGTH else ["up"], indirect=True, scope="module"
)
def test_quota_that_resets_early_is_found_by_a_probe(pool: Pool) -> None:
    first = pool.ask("early", status=429, retry_after="60")
    assert (first.status_code, first.headers["retry-after"]) == (429, "60")
    line = pool.until("early", "early", "cooling")
    assert 45 < left(line) <= 60
    refused = pool.ask("early")
    assert (refused.status_code, refused.json()["error"]["code"]) == (429, "model_cooldown")
    assert len(pool.calls("early")) == 1
    # The provider is well again. From 10 s on (or a tenth of the window) one request may find out.
    pool.until("early", "early", "ready")
    assert pool.ask("early").status_code == 200
    line = pool.until("early", "early", "ready")
    assert line["until"] is None, "nothing is held against it any more"
    assert time.time() - pool.calls("early")[0][1] < 50, "long before the window was over"


def test_quota_of_ten_days_is_an_hour_and_a_reset_ends_it(pool: Pool) -> None:
    assert pool.ask("reset", status=429, retry_after="864000").status_code == 429
    line = pool.until("reset", "reset", "cooling")
    assert 3500 < left(line) <= 3600
    refused = pool.ask("reset")
    assert 3500 < int(refused.headers["retry-after"]) <= 3600
    # By the name that clients use, too.
    shown = pool.verb("reset", "reset-00", "--model", "reset")
    assert [model["state"] for model in shown["models"]] == ["ready"]
    assert pool.ask("reset").status_code == 200
    assert len(pool.calls("reset")) == 2


@pytest.mark.parametrize("well", [True, False], ids=["recovers", "relapses"])
def test_race_of_twenty_for_the_last_accounts_probe_has_one_winner(pool: Pool, well: bool) -> None:
    name = "race" if well else "relapse"
    assert pool.ask(name, status=503, retry_after="1").status_code == 503
    pool.until(name, name, "ready", failed=True)

    def ask(_: int) -> httpx.Response:
        return pool.ask(name, stall="head", stall_s=3, status=200 if well else 503)

    with ThreadPoolExecutor(20) as threads:
        answers = list(threads.map(ask, range(20)))
    assert len(pool.calls(name)) == 2, "one asked the provider, the others did not"
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == ([200, *[429] * 19] if well else [*[429] * 19, 503])
    refused = [answer for answer in answers if answer.status_code == 429]
    assert {answer.json()["error"]["code"] for answer in refused} == {"model_cooldown"}
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    if well:
        # The winner has its answer before the scheduler has its report.
        line = pool.until(name, name, "ready")
        while line["until"] is not None:
            line = pool.until(name, name, "ready")
        answers = [pool.ask(name) for _ in range(20)]
        assert {answer.status_code for answer in answers} == {200}
    else:
        assert left(pool.until(name, name, "cooling")) > 40, "the provider said no time: a minute"
