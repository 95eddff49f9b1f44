"""Session identifiers: fourteen sources in order."""

import json
from types import SimpleNamespace
from typing import Any

import pytest
from tests.harness import virtual_time
from tests.harness.pipeline import Edge, Script, pool

from patchbay_gateway.edge import body, sessions
from patchbay_gateway.edge.auth import Client
from patchbay_gateway.plugins.snapshot import AffinityEntry, SettingsEntry

CHAT = {"messages": [{"role": "user", "content": "hello"}]}


def request(
    document: dict[str, Any] | None = None,
    headers: dict[str, str] | None = None,
    *,
    client: str = "k",
    tenant: str = "t",
    execution: str = "",
    dialect: str = "openai",
) -> Any:
    """Return as much of a request as the sources look at."""
    data = json.dumps(document if document is not None else {}).encode()
    pairs = [(k.encode(), v.encode()) for k, v in (headers or {}).items()]
    return SimpleNamespace(
        document=body.scan(data),
        client=Client(client, tenant, "authorization", None),
        routed=SimpleNamespace(
            exchange=SimpleNamespace(head=SimpleNamespace(headers=pairs)),
            execution_session_id=execution,
            dialect=SimpleNamespace(name=dialect),
        ),
    )


SOURCES: list[tuple[dict[str, Any], dict[str, str], list[str]]] = [
    ({}, {"x-claude-code-session-id": "s1"}, ["s1"]),
    ({"metadata": {"user_id": "user_a_account_b_session_s2"}}, {}, ["s2"]),
    ({}, {"session-id": "s3"}, ["s3"]),
    ({}, {"x-session-id": "s4"}, ["s4"]),
    ({}, {"x-session-affinity": "s5"}, ["s5"]),
    ({}, {"x-client-request-id": "s6"}, ["s6"]),
    ({"session_id": "s7"}, {}, ["s7"]),
    ({"prompt_cache_key": "s8"}, {}, ["s8"]),
    ({"conversation": {"id": "s9"}}, {}, ["s9"]),
    ({"metadata": {"user_id": "s10"}}, {}, ["s10"]),
    ({"conversation_id": "s11"}, {}, ["s11"]),
]


@pytest.mark.parametrize("n", range(len(SOURCES)))
def test_source_alone_is_found(n: int) -> None:
    document, headers, expected = SOURCES[n]
    assert sessions.identifiers(request({**CHAT, **document}, headers)) == expected


@pytest.mark.parametrize("n", range(len(SOURCES)))
def test_source_outranks_all_that_follow(n: int) -> None:
    document: dict[str, Any] = dict(CHAT)
    headers: dict[str, str] = {}
    for more, names, _ in reversed(SOURCES[n:]):
        document.update(more)
        headers.update(names)
    found = sessions.identifiers(request(document, headers, execution="s12"))
    assert found[0] == SOURCES[n][2][0]


@pytest.mark.parametrize(
    ("document", "headers", "expected"),
    [
        ({"sessionId": "a"}, {}, ["a"]),
        ({}, {"session_id": "a"}, ["a"]),
        ({"conversation": "a"}, {}, ["a"]),
        ({"prompt_cache_key": "a", "conversation": "b"}, {}, ["a", "b"]),
        ({"prompt_cache_key": "a", "conversation_id": "a"}, {}, ["a"]),
        ({"metadata": {"user_id": '{"device_id":"d","session_id":"a"}'}}, {}, ["a"]),
        ({}, {"x-session-id": "  a "}, ["a"]),
    ],
)
def test_other_spellings(
    document: dict[str, Any], headers: dict[str, str], expected: list[str]
) -> None:
    assert sessions.identifiers(request(document, headers)) == expected


@pytest.mark.parametrize("bad", ["", "  ", "x" * 257, "ä" * 129, "a\x00b", "a\nb", "a\x7f"])
def test_unsound_identifiers_are_passed_over(bad: str) -> None:
    assert sessions.identifiers(request({"session_id": bad, "conversation_id": "c"})) == ["c"]


@pytest.mark.parametrize("bad", [3, None, ["a"], {"x": 1}, True])
def test_identifiers_of_another_type_are_passed_over(bad: object) -> None:
    document = {"session_id": bad, "metadata": bad, "conversation": bad, "messages": bad}
    assert sessions.identifiers(request(document)) == []


def test_execution_session_comes_before_what_is_derived() -> None:
    assert sessions.identifiers(request(CHAT, execution="socket-1")) == ["socket-1"]


INSTRUCTED: list[tuple[str, dict[str, Any]]] = [
    ("openai", {"messages": [{"role": "system", "content": "be"}, *CHAT["messages"]]}),
    ("openai", {"messages": [{"role": "developer", "content": "be"}, *CHAT["messages"]]}),
    ("claude", {"system": [{"type": "text", "text": "be"}], **CHAT}),
    ("openai-response", {"instructions": "be", "input": "hello"}),
    (
        "openai-response",
        {"instructions": "be", "input": [{"role": "user", "content": [{"text": "hello"}]}]},
    ),
    (
        "gemini",
        {
            "systemInstruction": {"parts": [{"text": "be"}]},
            "contents": [{"role": "user", "parts": [{"text": "hello"}]}],
        },
    ),
]


@pytest.mark.parametrize(("dialect", "document"), INSTRUCTED)
def test_derived_of_instructions_and_first_input(dialect: str, document: dict[str, Any]) -> None:
    (found,) = sessions.identifiers(request(document, dialect=dialect))
    assert found.startswith("ctx:v1:")


def test_derived_is_the_same_in_later_turns() -> None:
    first: dict[str, Any] = INSTRUCTED[0][1]
    later = {"messages": [*first["messages"], {"role": "assistant", "content": "hi"}]}
    assert sessions.identifiers(request(first)) == sessions.identifiers(request(later))


def test_derived_differs_by_client_tenant_dialect_and_input() -> None:
    document = INSTRUCTED[0][1]
    seen = {
        sessions.identifiers(made)[0]
        for made in (
            request(document),
            request(document, client="other"),
            request(document, tenant="other"),
            request(document, dialect="claude"),
            request({"messages": [document["messages"][0], {"role": "user", "content": "x"}]}),
        )
    }
    assert len(seen) == 5


def test_derived_without_instructions_first_and_second_turn_meet() -> None:
    second = {"messages": [*CHAT["messages"], {"role": "assistant", "content": "hi"}]}
    (short,) = sessions.identifiers(request(CHAT))
    full, fallback = sessions.identifiers(request(second))
    assert short == fallback
    assert full != short


def test_nothing_to_go_by_is_no_session() -> None:
    assert sessions.identifiers(request({"input": [1, 2]})) == []


@pytest.mark.parametrize("enabled", [True, False])
def test_pipeline_asks_only_where_affinity_is_on(enabled: bool) -> None:
    async def scenario() -> None:
        script = Script()
        settings = SettingsEntry(affinity=AffinityEntry(enabled=enabled))
        edge = Edge(script, pool("a"), settings=settings)
        await edge.ask(b'{"model":"m","session_id":"s"}')
        assert list(script.acquired[0].session_ids) == (["s"] if enabled else [])

    virtual_time.run(scenario())
