"""The result of one check of `patchbay doctor`. Not here: the checks (doctor.py, provider_checks.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """What one check found."""

    name: str
    status: Status
    detail: str
    remedy: str = ""
