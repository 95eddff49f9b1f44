"""How the service is put together: where the ledger is, what it cannot start without."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from patchbay.errors import FailedPrecondition
from patchbay_gateway.kernel.config import Config, ProcessSettings, UsageConfig
from patchbay_gateway.usage.main import database_url, run

if TYPE_CHECKING:
    from pathlib import Path


def _settings(tmp_path: Path) -> ProcessSettings:
    return ProcessSettings.load("usage", {}, {"data_dir": tmp_path})


def test_ledger_is_in_the_data_directory_unless_configured(tmp_path: Path) -> None:
    settings = _settings(tmp_path)
    assert database_url(Config(), settings) == f"sqlite:///{tmp_path}/ledger.db"
    url = "postgresql://ledger@db/patchbay"
    assert database_url(Config(usage=UsageConfig(database_url=url)), settings) == url


def test_service_without_redis_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="set REDIS_URL"):
        run(Config(), _settings(tmp_path))
