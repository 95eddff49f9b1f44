"""Events from the wire: what is kept, what is refused."""

from __future__ import annotations

import pytest
from tests.fakes.journal_events import START, make_message

from patchbay.type.v1 import error_pb2
from patchbay.usage.v1 import journal_pb2
from patchbay_gateway.usage.events import Kind, Malformed, Settlement, Usage, decode


def test_decode_settled_keeps_everything() -> None:
    message = make_message(
        "settled",
        at=2,
        usage={"input_tokens": 0, "output_tokens": 7, "images": 2},
        sequence=9,
    )
    event = decode(message.SerializeToString())
    assert (event.kind, event.at) == (Kind.SETTLED, (START + 2) * 1_000_000)
    assert (event.writer, event.sequence) == ("w1", 9)
    assert event.usage == Usage(0, 7, None, None, None, (("images", 2),), estimated=False)
    assert event.settlement == Settlement("succeeded", "yes", 200, 200, "", 5_000, 90_000)
    info = event.info
    assert (info.attempt_uid, info.number, info.stream) == (event.uid, 1, 1)
    assert (info.model, info.client_key, info.credential_id) == ("gpt", "laptop", "main")
    assert info.opened_at == START * 1_000_000


def test_decode_unspecified_outcome_is_failed_and_reached_unknown() -> None:
    message = make_message("settled")
    message.settlement.outcome = journal_pb2.OUTCOME_UNSPECIFIED
    message.settlement.reached = error_pb2.SENT_UNSPECIFIED
    end = decode(message.SerializeToString()).settlement
    assert end is not None
    assert (end.outcome, end.reached) == ("failed", "unknown")


def test_decode_without_opening_time_takes_the_event_s() -> None:
    message = make_message("settled", at=5)
    message.attempt.ClearField("opened_at")
    assert decode(message.SerializeToString()).info.opened_at == (START + 5) * 1_000_000


def test_decode_takes_nul_and_excess_out_of_text() -> None:
    message = make_message("opened")
    message.attempt.client_request_id = "a\0b"
    message.attempt.model = "m" * 9000
    info = decode(message.SerializeToString()).info
    assert info.client_request_id == "ab"
    assert info.model == "m" * 512


def test_decode_ordinal_is_only_a_renewal_s() -> None:
    assert decode(make_message("settled", n=4).SerializeToString()).n == 0
    assert decode(make_message("renewed", n=4).SerializeToString()).n == 4


def _edited(edit: str) -> bytes:
    message = make_message("settled", sequence=5, usage={"input_tokens": 1})
    if edit == "schema 0":
        message.schema = 0
    elif edit == "schema 2":
        message.schema = 2
    elif edit == "kind":
        message.kind = journal_pb2.EVENT_KIND_UNSPECIFIED
    elif edit == "attempt":
        message.attempt.attempt_uid = ""
    else:
        message.usage.items[0].quantity = -1
    return message.SerializeToString()


@pytest.mark.parametrize("edit", ["schema 0", "schema 2", "kind", "attempt", "quantity"])
def test_decode_of_an_impossible_event_names_its_place(edit: str) -> None:
    """The sequence must be known, or the writer's watermark would wait for it for ever."""
    with pytest.raises(Malformed) as caught:
        decode(_edited(edit))
    assert (caught.value.writer, caught.value.sequence) == ("w1", 5)


def test_decode_of_garbage_is_refused() -> None:
    with pytest.raises(Malformed, match="not a journal event"):
        decode(b"\xff\xff\xff")
