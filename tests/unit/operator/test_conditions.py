"""Conditions: what sums up, what waits for an edit, when a time moves, when an Event is posted."""

from __future__ import annotations

from patchbay_gateway.plugins.instances import Instance
from patchbay_operator.conditions import (
    Said,
    available_aspect,
    merge,
    programmed_aspect,
    summarise,
    transitions,
)
from patchbay_operator.verdicts import Aspect, Verdict

FINE = Aspect(ok=True, reason="Fine", message="fine")


def _by_type(said: list[Said]) -> dict[str, Said]:
    return {s.type: s for s in said}


def _verdict(*, accepted: Aspect = FINE, resolved: Aspect = FINE) -> Verdict:
    return Verdict(accepted, resolved, accepted.ok)


def test_ready_is_true_when_everything_is() -> None:
    said = _by_type(summarise(_verdict(), available=FINE, programmed=FINE))
    assert said["Ready"].status == "True"
    assert (said["Reconciling"].status, said["Stalled"].status) == ("False", "False")


def test_ready_repeats_the_first_thing_that_is_wrong() -> None:
    missing = Aspect(ok=False, reason="SecretNotFound", message="create it")
    late = Aspect(ok=False, reason="RollingOut", message="0 of 1")
    said = _by_type(summarise(_verdict(resolved=missing), available=late, programmed=FINE))
    assert (said["Ready"].reason, said["Ready"].message) == ("SecretNotFound", "create it")


def test_what_only_an_edit_helps_is_stalled_and_all_else_reconciles() -> None:
    conflict = Aspect(ok=False, reason="Conflict", message="another name")
    said = _by_type(summarise(_verdict(accepted=conflict), programmed=None))
    assert (said["Stalled"].status, said["Reconciling"].status) == ("True", "False")
    assert said["Programmed"].status == "False"
    missing = Aspect(ok=False, reason="SecretNotFound", message="create it")
    said = _by_type(summarise(_verdict(resolved=missing), programmed=FINE))
    assert (said["Stalled"].status, said["Reconciling"].status) == ("False", "True")


def test_time_moves_with_the_status_alone() -> None:
    first = merge([], [Said("Ready", "False", "A", "a")], generation=1, now="t1")
    same = merge(first, [Said("Ready", "False", "B", "b")], generation=2, now="t2")
    assert (same[0]["lastTransitionTime"], same[0]["reason"]) == ("t1", "B")
    assert same[0]["observedGeneration"] == 2
    other = merge(same, [Said("Ready", "True", "C", "c")], generation=2, now="t3")
    assert other[0]["lastTransitionTime"] == "t3"


def test_event_is_posted_when_ready_changes_and_not_again() -> None:
    bad = merge([], [Said("Ready", "False", "SecretNotFound", "create it")], generation=1, now="t")
    assert transitions([], bad) == [("Warning", "SecretNotFound", "create it")]
    assert transitions(bad, bad) == []
    good = merge(bad, [Said("Ready", "True", "Ready", "it serves")], generation=1, now="t")
    assert transitions(bad, good) == [("Normal", "Ready", "it serves")]


def _edge(snapshot: int, *, ready: bool = True, **plugins: str) -> Instance:
    return Instance(f"e{snapshot}", "edge", snapshot=snapshot, ready=ready, plugins=plugins)


def test_programmed_asks_every_ready_edge() -> None:
    assert programmed_aspect([], 5, "").reason == "NoEdges"
    assert programmed_aspect([_edge(5), _edge(4)], 5, "").message == "1 of 2 edges run it"
    assert programmed_aspect([_edge(5), _edge(4, ready=False)], 5, "").ok
    assert programmed_aspect([_edge(6)], 5, "").ok


def test_programmed_knows_plugins_that_an_edge_does_not_use() -> None:
    refused = programmed_aspect([_edge(5, far="it refuses its configuration")], 5, "far")
    assert (refused.reason, "refuses" in refused.message) == ("NotRegistered", True)
    assert programmed_aspect([_edge(5, far="ready")], 5, "far").ok


def test_deployment_that_is_stuck_says_what_it_says() -> None:
    stuck = {
        "spec": {"replicas": 1},
        "status": {
            "conditions": [
                {
                    "type": "Progressing",
                    "status": "False",
                    "reason": "ProgressDeadlineExceeded",
                    "message": "timed out",
                }
            ]
        },
    }
    found = available_aspect(stuck)
    assert (found.ok, found.reason) == (False, "ProgressDeadlineExceeded")
    assert not available_aspect(None).ok
    assert available_aspect({"spec": {"replicas": 0}}).reason == "ScaledToZero"
    assert available_aspect({"spec": {"replicas": 2}, "status": {"readyReplicas": 1}}).ok
