"""Logs of plugins: one line an event, fields kept, secrets masked."""

from __future__ import annotations

import io
import json
import logging
from typing import TYPE_CHECKING

import pytest

from patchbay import logs

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def output() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    kept, level = list(root.handlers), root.level
    yield io.StringIO()
    root.handlers[:] = kept
    root.setLevel(level)


def test_json_line_has_event_and_fields(output: io.StringIO) -> None:
    logs.configure({"LOG_FORMAT": "json"}, stream=output, force=True)
    logging.getLogger("mine").info("took %d", 3, extra={"plugin_id": "mine", "input_tokens": 5})
    line = json.loads(output.getvalue())
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "event": "took 3",
        "logger": "mine",
        "level": "info",
        "plugin_id": "mine",
        "input_tokens": 5,
    }


@pytest.mark.parametrize("form", ["json", "text"])
def test_fields_named_like_secrets_are_masked(output: io.StringIO, form: str) -> None:
    logs.configure({"LOG_FORMAT": form}, stream=output, force=True)
    extra = {"api_key": "test-key", "Authorization": "test-key", "token_url": "https://a.example"}
    logging.getLogger("mine").warning("asked", extra=extra)
    assert "test-key" not in output.getvalue()
    assert "https://a.example" in output.getvalue()


def test_traceback_is_in_the_line(output: io.StringIO) -> None:
    logs.configure({"LOG_FORMAT": "json"}, stream=output, force=True)
    try:
        int("wrong")
    except ValueError:
        logging.getLogger("mine").exception("failed")
    (line,) = output.getvalue().splitlines()
    assert "ValueError: invalid literal" in json.loads(line)["exception"]


def test_level_comes_from_the_environment(output: io.StringIO) -> None:
    logs.configure({"LOG_LEVEL": "warning"}, stream=output, force=True)
    logging.getLogger("mine").info("quiet")
    assert output.getvalue() == ""


def test_logging_that_is_set_up_is_left_alone(output: io.StringIO) -> None:
    handler = logging.StreamHandler(output)
    logging.getLogger().handlers[:] = [handler]
    logs.configure({})
    assert logging.getLogger().handlers == [handler]
