"""Helm for tests: the charts rendered with values, as documents. Not here: a cluster."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CHARTS = ROOT / "charts"


def find_helm() -> str:
    """Return the program: that of `scripts/kube-tools`, fetched when it is missing."""
    found = subprocess.run(
        [ROOT / "scripts" / "kube-tools", "--fetch"],
        check=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    return str(Path(found.stdout.strip()) / "helm")


class Helm:
    """Helm, for one chart and namespace."""

    def __init__(self, program: str, chart: str = "patchbay") -> None:
        self._program = program
        self.chart = CHARTS / chart

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run it and return what it said, whatever its exit status."""
        return subprocess.run(
            [self._program, *arguments], capture_output=True, text=True, check=False, timeout=120
        )

    def render(
        self, *options: str, values: dict[str, Any] | None = None, apis: tuple[str, ...] = ()
    ) -> list[dict[str, Any]]:
        """Return the documents of the chart; AssertionError with Helm's words when it refuses."""
        done = self.template(*options, values=values, apis=apis)
        assert done.returncode == 0, done.stderr
        return [d for d in yaml.safe_load_all(done.stdout) if d]

    def template(
        self, *options: str, values: dict[str, Any] | None = None, apis: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        """Render and return what Helm said."""
        given = yaml.safe_dump(values or {})
        return subprocess.run(
            [
                *(self._program, "template", "gw", str(self.chart), "--namespace", "gateway"),
                *("--kube-version", "1.34.0", "-f", "-"),
                *(part for api in apis for part in ("--api-versions", api)),
                *options,
            ],
            input=given,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
