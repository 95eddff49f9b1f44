"""How long a plugin's calls may go on after SIGTERM, as its environment says it."""

from __future__ import annotations

import pytest

from patchbay.errors import FailedPrecondition
from patchbay.serve import GRACE, drain_seconds


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("", GRACE), ("0", 0.0), ("1200", 1200.0), ("90s", 90.0), ("10m", 600.0), ("1.5h", 5400.0)],
)
def test_drain_is_what_the_environment_says(text: str, seconds: float) -> None:
    assert drain_seconds({"PATCHBAY_DRAIN": text}) == seconds


@pytest.mark.parametrize("text", ["soon", "-1", "10 m", "1d"])
def test_drain_that_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(FailedPrecondition, match="PATCHBAY_DRAIN"):
        drain_seconds({"PATCHBAY_DRAIN": text})
