"""What `patchbay up` tells a person once it serves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from patchbay_gateway.embedded import greet
from patchbay_gateway.kernel.config import Config, ProcessSettings

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(("host", "told"), [("::1", "[::1]"), ("127.0.0.1", "127.0.0.1")])
def test_greeting_has_urls_that_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], host: str, told: str
) -> None:
    """An IPv6 address stands in brackets."""
    more = {"data_dir": tmp_path, "host": host, "port": 80, "management_port": 81}
    greet(Config(), ProcessSettings.load("up", {}, more))
    said = capsys.readouterr().err
    assert said.startswith(
        f"Patchbay listens on http://{told}:80, management on http://{told}:81\n"
    )
    assert f"  curl http://{told}:80/v1/chat/completions " in said
