"""Log lines: their form, their level, what is masked."""

from __future__ import annotations

import io
import json
import logging

import pytest
import structlog

from patchbay_gateway.kernel import logs


@pytest.fixture(autouse=True)
def _restored():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_line_has_event_level_logger_time_and_fields():
    stream = io.StringIO()
    logs.configure("json", "INFO", stream=stream)
    logs.get_logger("scheduler").info("lease expired", attempt=b"\xff", count=2, where={1})
    (line,) = lines(stream)
    assert line.pop("timestamp")
    assert line == {
        "event": "lease expired",
        "level": "info",
        "logger": "scheduler",
        "attempt": "\ufffd",
        "count": 2,
        "where": "{1}",
    }


def test_level_below_the_wanted_one_is_silent():
    stream = io.StringIO()
    logs.configure("json", "warning", stream=stream)
    logs.get_logger("x").info("no")
    logs.get_logger("x").warning("yes")
    assert [line["event"] for line in lines(stream)] == ["yes"]


def test_fields_named_like_secrets_are_masked_and_counts_are_not():
    stream = io.StringIO()
    logs.configure("json", stream=stream)
    fields = {
        "api_key": "k",
        "Authorization": "b",
        "access_token": "t",
        "input_tokens": 3,
        "token_url": "u",
    }
    logs.get_logger("x").info("e", **fields)
    (line,) = lines(stream)
    assert (line["api_key"], line["Authorization"], line["access_token"]) == (logs.MASK,) * 3
    assert (line["input_tokens"], line["token_url"]) == (3, "u")


def test_logging_of_libraries_comes_out_in_the_same_form():
    stream = io.StringIO()
    logs.configure("json", stream=stream)
    logging.getLogger("uvicorn.error").warning("odd %s", "thing")
    logging.getLogger("uvicorn.error").info("chatter")
    (line,) = lines(stream)
    assert (line["event"], line["logger"], line["level"]) == (
        "odd thing",
        "uvicorn.error",
        "warning",
    )


def test_traceback_shows_no_local_variables():
    stream = io.StringIO()
    logs.configure("json", stream=stream)

    def broken() -> None:
        hidden = "value-of-a-local"
        raise ValueError(str(len(hidden)))

    try:
        broken()
    except ValueError:
        logs.get_logger("x").exception("failed")
    assert "ValueError: 16" in stream.getvalue()
    assert "value-of-a-local" not in stream.getvalue().replace('hidden = "value-of-a-local"', "")


def test_text_form_is_for_people():
    stream = io.StringIO()
    logs.configure("text", stream=stream)
    logs.get_logger("x").info("ready", port=8080)
    assert "ready" in stream.getvalue()
    assert "port=8080" in stream.getvalue()


def test_unknown_level_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="debug, info"):
        logs.configure("json", "loud")
