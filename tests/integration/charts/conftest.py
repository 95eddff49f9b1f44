"""The real Helm, and the chart rendered with each set of values."""

from __future__ import annotations

from typing import Any

import pytest
from tests.harness.helm import Helm, find_helm
from tests.integration.charts.rendering import MATRIX


@pytest.fixture(scope="module")
def helm() -> Helm:
    return Helm(find_helm())


@pytest.fixture(scope="module", params=MATRIX)
def rendered(request: pytest.FixtureRequest, helm: Helm) -> list[dict[str, Any]]:
    options, values, apis = MATRIX[request.param]
    return helm.render(*options, values=values, apis=apis)
