"""
Who takes which file when two workers share a run (`make test`; a pytest plugin).

Tests of faults wait most of their time, unit tests compute all of theirs. So the first worker begins with
the faults, the other with what computes, and they meet in the files of integration, none of which is long:
both cores are busy to the end, and what kills under load has no other such load beside it. A file stays
whole, with what its tests share. Within a level the seed decides. Not here: how many workers (Makefile).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import pytest
from xdist.scheduler import LoadFileScheduling

if TYPE_CHECKING:
    from xdist.remote import Producer
    from xdist.workermanage import WorkerController

_LEVELS: Final = ("tests/faults/", "tests/integration/")


class FromBothEnds(LoadFileScheduling):  # type: ignore[misc] # xdist is not typed
    """Files in the order of levels for the first worker, from the end for all others."""

    def _assign_work_unit(self, node: WorkerController) -> None:
        choose = min if node is self.nodes[0] else max
        self.workqueue.move_to_end(choose(self.workqueue, key=level), last=False)
        super()._assign_work_unit(node)


def level(file: str) -> int:
    """Return how early the first worker is to take *file*, a path below the root."""
    starts = (n for n, folder in enumerate(_LEVELS) if file.startswith(folder))
    return next(starts, len(_LEVELS))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> FromBothEnds | None:
    """Take the place of `--dist loadfile`, and of nothing else that somebody asks for."""
    return FromBothEnds(config, log) if config.getoption("dist") == "loadfile" else None
