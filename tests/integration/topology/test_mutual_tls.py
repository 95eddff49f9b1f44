"""The four services with certificates: everything between them is encrypted, and nobody else is let in."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest
from tests.harness.certificates import Authority
from tests.harness.topology import Services, make_config

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Services]:
    directory = tmp_path_factory.mktemp("tls")
    certificates = Authority().issue(directory / "certificates")
    config = make_config("http://127.0.0.1:9/v1")
    gateway = Services(directory, config, {"PATCHBAY_TLS_DIR": str(certificates)})
    gateway.start()
    yield gateway
    gateway.stop()


def test_request_goes_through_all_services(services: Services) -> None:
    body = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}
    answer = httpx.post(
        f"{services.base_url}/v1/chat/completions",
        json=body,
        headers=services.headers(),
        timeout=60,
        verify=False,
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["choices"][0]["message"]["content"] == "hello"
    # The edge asks the usage service.
    assert isinstance(services.usage(), list)
