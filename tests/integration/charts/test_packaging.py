"""The charts as files: what is written down, generated, stored with a release, and left when it goes."""

from __future__ import annotations

import base64
import gzip
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.harness.helm import CHARTS, Helm

pytestmark = pytest.mark.requires("helm")


@pytest.mark.parametrize("chart", ["patchbay", "patchbay-crds"])
def test_chart_satisfies_the_linter(helm: Helm, chart: str) -> None:
    done = helm.run("lint", "--strict", str(CHARTS / chart))
    assert done.returncode == 0, done.stdout + done.stderr


def test_templates_are_pure() -> None:
    for path in (CHARTS / "patchbay" / "templates").rglob("*"):
        if path.is_file():
            text = path.read_text()
            for word in ("lookup ", "randAlpha", "genCA", "genSelfSigned", "now "):
                assert f"{{{{ {word}" not in text, path
                assert f"({word}" not in text, path


def test_release_stays_far_below_the_bound_of_a_secret(helm: Helm) -> None:
    """Helm keeps chart and manifest in one Secret of at most 1 MiB, compressed, in base64 twice."""
    for chart in ("patchbay", "patchbay-crds"):
        files = [p for p in (CHARTS / chart).rglob("*") if p.is_file()]
        stored = b"".join(base64.b64encode(Path(p).read_bytes()) for p in files)
        stored += Helm(helm._program, chart).template().stdout.encode()
        assert len(base64.b64encode(gzip.compress(stored))) < 300_000


def test_definitions_stay_when_their_chart_goes(helm: Helm) -> None:
    crds = Helm(helm._program, "patchbay-crds")
    for document in crds.render():
        assert document["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
        assert (
            document["spec"]["versions"][0].get("selectableFields")
            or document["spec"]["names"]["kind"] == "ModelRoute"
        )
    assert "annotations" not in crds.render(values={"keep": False})[0]["metadata"]


def test_readme_and_schema_are_current() -> None:
    import subprocess  # noqa: PLC0415 - of this test alone
    import sys  # noqa: PLC0415 - the same

    root = CHARTS.parent
    done = subprocess.run(
        [sys.executable, root / "scripts" / "chart", "--check"], check=False, capture_output=True
    )
    assert done.returncode == 0, done.stderr


def test_every_value_is_used() -> None:
    values = yaml.safe_load((CHARTS / "patchbay" / "values.yaml").read_text())
    text = "\n".join(
        p.read_text() for p in (CHARTS / "patchbay" / "templates").rglob("*") if p.is_file()
    )

    def names(part: Any) -> list[str]:
        if not isinstance(part, dict):
            return []
        return [n for k, v in part.items() for n in (k, *names(v))]

    free = {"config", "resources", "labels", "annotations"}
    leaves = {
        name for key, part in values.items() if key not in free for name in (key, *names(part))
    }
    unused = {n for n in leaves if f".{n}" not in text and f'"{n}"' not in text}
    assert unused <= {"requests", "limits", "cpu", "memory", "app", "grafana_dashboard"}
