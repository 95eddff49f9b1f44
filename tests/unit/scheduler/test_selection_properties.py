"""Any pool, any history, any request: a choice is ready and of the best priority, a refusal finds nobody."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.scheduler.conftest import make_credential, make_provider, make_snapshot
from tests.unit.scheduler.pool import FakeView

from patchbay.errors import ResourceExhausted, Unavailable
from patchbay_gateway.scheduler.selection import Selector


class World:
    """A pool of two providers under one of the strategies, and its history."""

    def __init__(self, dice, strategy):
        self.dice, self.strategy = dice, strategy
        self.view = FakeView()
        self.now = 1000.0
        self.credentials = [
            make_credential(
                f"c{number}",
                priority=dice.choice([0, 0, 1]),
                weight=dice.choice([0, 1, 1, 3]),
                max_in_flight=dice.choice([0, 0, 2]),
            )
            for number in range(dice.randint(1, 7))
        ]
        cut = dice.randint(0, len(self.credentials))
        pools = {"a": self.credentials[:cut], "b": self.credentials[cut:]}
        models = {"a": dice.choice([("m",), ("m", "k=m")]), "b": ("m",)}
        self.models = {c.id: [m[:1] for m in models[p]] for p, pool in pools.items() for c in pool}
        self.snapshot = make_snapshot(
            *(make_provider(p, *pool, models=models[p]) for p, pool in pools.items() if pool),
            strategy=strategy,
        )
        self.selector = Selector(lambda *_: True, self.view)

    def step(self):
        dice, view = self.dice, self.view
        id_ = dice.choice(self.credentials).id
        match dice.randint(0, 9):
            case 0 | 1:
                model = dice.choice([None, "m", "k"])
                view.block(id_, until=self.now + dice.choice([0.5, 1, 3]), model=model)
            case 2:
                for model in (None, "m", "k"):
                    view.lift(id_, model=model)
            case 3:
                view.busy[id_] = dice.randint(0, 3)
                view.generation += 1
            case 4:
                self.now += dice.choice([0.3, 1, 2])
            case _:
                self.request()

    def request(self):
        dice = self.dice
        self.view.now = self.now
        exclude = [c.id for c in self.credentials if dice.random() < 0.15]
        tried = [
            (c.id, dice.choice(self.models[c.id])) for c in self.credentials if dice.random() < 0.15
        ]
        ready = [c for c in self.credentials if self.serves(c, exclude, tried)]
        best = [c.id for c in ready if c.priority == max(c.priority for c in ready)]
        try:
            found = self.selector.pick(
                self.snapshot, "m", ("a", "b"), now=self.now, exclude=exclude, tried=tried
            )
        except (ResourceExhausted, Unavailable):
            assert not ready
        else:
            assert found.credential.id in best
            assert (found.credential.id, found.upstream_model) not in tried

    def serves(self, credential, exclude, tried):
        if credential.id in exclude or (self.strategy.startswith("w") and credential.weight <= 0):
            return False
        full = 0 < credential.max_in_flight <= self.view.in_flight(credential.id)
        return not full and any(
            (credential.id, model) not in tried and self.view.blocked(credential.id, model) is None
            for model in self.models[credential.id]
        )


@pytest.mark.parametrize("strategy", ["round-robin", "fill-first", "weighted-round-robin"])
@settings(max_examples=60, deadline=None)
@given(dice=st.randoms(use_true_random=False))
def test_choice_is_ready_and_of_the_best_priority(strategy, dice):
    world = World(dice, strategy)
    for _ in range(60):
        world.step()
