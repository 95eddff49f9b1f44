"""`patchbay plugin key`."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from patchbay import cli
from patchbay.serve import parse_key
from patchbay_gateway.kernel.keys import load_roots, plugin_key


def test_plugin_key_is_what_the_gateway_derives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The printed line is what a plugin takes as PATCHBAY_PLUGIN_KEY."""
    monkeypatch.delenv("PATCHBAY_PLUGINS_KEY", raising=False)
    result = CliRunner().invoke(
        cli.build(), ["plugin", "key", "my-filter", "--data-dir", str(tmp_path)]
    )
    assert result.exit_code == 0, result.output
    root = load_roots({}, ["plugins"], tmp_path).plugins[0]
    assert parse_key(result.output.strip(), "output") == plugin_key(root, "my-filter")
