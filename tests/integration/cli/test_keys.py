"""`patchbay keys` with a configuration file and a gateway that runs on it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from tests.harness.processes import PATCHBAY
from tests.harness.topology import Up, make_config

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    made = Up(tmp_path_factory.mktemp("up"), make_config("http://127.0.0.1:9/v1"))
    made.start()
    yield made
    made.stop()


def run(up: Up, *arguments: str, status: int = 0) -> str:
    environ = {k: v for k, v in os.environ.items() if not k.startswith("PATCHBAY_")}
    done = subprocess.run(
        [PATCHBAY, "keys", *arguments],
        env={
            **environ,
            "PATCHBAY_MANAGEMENT_URL": up.management_url,
            "PATCHBAY_MANAGEMENT_KEY": up.management_key,
            "PATCHBAY_DATA_DIR": str(up.directory / "data"),
        },
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == status, done.stderr
    return done.stdout if status == 0 else done.stderr


def ask(up: Up, key: str) -> int:
    body: dict[str, Any] = {"model": "echo", "messages": [{"role": "user", "content": "hello"}]}
    headers = {"authorization": f"Bearer {key}"}
    url = f"{up.base_url}/v1/chat/completions"
    return httpx.post(url, json=body, headers=headers, timeout=60).status_code


def test_key_opens_as_soon_as_it_is_made_and_not_after_it_is_revoked(up: Up) -> None:
    config = ["--config", str(up.config_path)]
    made = json.loads(run(up, "create", "laptop", "--model", "echo", *config, "--json"))
    assert made["accepted"]
    assert ask(up, made["key"]) == 200
    known = {key["name"]: key for key in json.loads(run(up, "list", "--json"))}
    assert set(known) == {"tests", "laptop"}
    assert known["laptop"]["models"] == ["echo"]
    assert made["key"] not in run(up, "list", *config)
    assert "stopped working at" in run(up, "revoke", "laptop", *config)
    assert ask(up, made["key"]) == 401
    assert ask(up, up.client_key) == 200


def test_verb_without_a_place_says_which_there_are(up: Up) -> None:
    for verb in ("create", "revoke"):
        told = " ".join(run(up, verb, "laptop", status=2).split())
        assert "--config FILE" in told
        assert "--namespace NAME" in told


def test_cluster_that_is_not_there_is_told_in_a_sentence(up: Up, tmp_path: Path) -> None:
    missing = tmp_path / "kubeconfig"
    os.environ["KUBECONFIG"] = str(missing)
    try:
        told = run(up, "list", "--kubernetes", status=1)
    finally:
        del os.environ["KUBECONFIG"]
    assert told.startswith("patchbay: no cluster can be reached")
    assert "KUBECONFIG" in told


def test_help_and_lists_load_no_client_of_kubernetes() -> None:
    """Lists ask a gateway; a cluster's client costs memory that few need."""
    program = (
        "import sys; import patchbay_gateway.cli, patchbay_gateway.commands.keys as k; "
        "sys.exit(any(m.split('.')[0] in {'lightkube', 'httpx2', 'grpc'} for m in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
