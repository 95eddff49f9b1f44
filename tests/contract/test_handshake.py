"""Host and plugin over a real channel of each kind (patchbay/handshake.py, plugins/handshake.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import pytest

from patchbay import errors, handshake
from patchbay.executor import Executor, ExecutorRequest, ExecutorResponse
from patchbay.keys import channel_key
from patchbay.plugin.v1 import executor_pb2, plugin_pb2
from patchbay.serve import PluginServer, build_servicers
from patchbay.tokens import TokenSource
from patchbay_gateway.kernel.channels import methods
from patchbay_gateway.kernel.channels.inprocess import InProcessChannel
from patchbay_gateway.kernel.channels.remote import RemoteChannel
from patchbay_gateway.plugins import handshake as host_side
from patchbay_gateway.plugins.handshake import Host, Refused

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from patchbay_gateway.kernel.channels.port import Channel

KEYS = {"one": b"test-key of plugin one, 32 bytes", "two": b"test-key of plugin two, 32 bytes"}
HOST = Host("host-1", "1.0")


class One(Executor):
    id = "one"
    name = "One"
    version = "1.2"
    author = "tests"
    input_formats: ClassVar[Sequence[str]] = ("openai",)
    output_formats: ClassVar[Sequence[str]] = ("openai",)
    config = b""

    async def configure(self, config: bytes) -> None:
        if config == b"bad":
            raise errors.InvalidRequest("field x is missing")
        self.config = config

    async def execute(self, request: ExecutorRequest) -> ExecutorResponse:
        return ExecutorResponse(self.id.encode() + b" " + self.config)


class Two(One):
    id = "two"
    name = "Two"


class Newer(One):
    """A plugin built with a newer SDK."""

    def capabilities(self) -> plugin_pb2.Capabilities:
        return plugin_pb2.Capabilities()


@pytest.fixture(params=["inprocess strict", "grpc"])
async def channel(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    no_leaked_tasks: Callable[[], object],  # noqa: ARG001 - looks after all is closed
) -> AsyncIterator[Channel]:
    plugins = [One(), Two()]
    plugin_keys = {id_: [key] for id_, key in KEYS.items()}
    made: Channel
    if request.param == "grpc":
        server = PluginServer(plugins, plugin_keys)
        await server.start(f"unix:{tmp_path}/s")
        made = RemoteChannel(f"unix:{tmp_path}/s")
        yield made
        await made.close()
        await server.stop()
    else:
        made = InProcessChannel(build_servicers(plugins, plugin_keys), strict=True)
        yield made
        await made.close()


def named(plugin_id: str, config: bytes | None = None) -> tuple[tuple[str, str], ...]:
    token = TokenSource(channel_key(KEYS[plugin_id]), plugin_id, HOST.id).metadata()
    extra = () if config is None else (("patchbay-config", handshake.config_hash(config)),)
    return (("patchbay-plugin", plugin_id), *extra, *token)


async def execute(channel: Channel, metadata: Any) -> bytes:
    answer = await channel.unary(
        methods.EXECUTE, executor_pb2.ExecutorRequest(), deadline=60, metadata=metadata
    )
    return bytes(answer.payload)


async def register(channel: Channel, plugin_id: str, config: bytes = b"") -> Any:
    key = channel_key(KEYS[plugin_id])
    return await host_side.register(channel, HOST, plugin_id, config, [key])


async def test_register_tells_who_the_plugin_is(channel: Channel) -> None:
    registration = await register(channel, "one")
    response = registration.response
    assert (response.plugin_id, response.metadata.version) == ("one", "1.2")
    assert list(response.capabilities.executor.input_formats) == ["openai"]


async def test_register_twice_is_the_same_as_once(channel: Channel) -> None:
    first = await register(channel, "one", b"a")
    second = await register(channel, "one", b"a")
    assert first.response == second.response
    assert await execute(channel, named("one", b"a")) == b"one a"


async def test_calls_go_to_the_plugin_that_the_metadata_name(channel: Channel) -> None:
    await register(channel, "one", b"1")
    await register(channel, "two", b"2")
    assert await execute(channel, named("one")) == b"one 1"
    assert await execute(channel, named("two")) == b"two 2"


async def test_calls_run_in_the_configuration_that_they_name(channel: Channel) -> None:
    """Two hosts at different versions of the configuration use one plugin for a while."""
    old = await register(channel, "one", b"old")
    await host_side.reconfigure(channel, HOST, "one", b"new", old)
    assert await execute(channel, named("one", b"old")) == b"one old"
    assert await execute(channel, named("one", b"new")) == b"one new"
    assert await execute(channel, named("one")) == b"one new"


async def test_call_that_names_an_unknown_configuration_may_go_elsewhere(channel: Channel) -> None:
    with pytest.raises(errors.Unavailable) as caught:
        await execute(channel, named("one", b"never seen"))
    assert (caught.value.reason, caught.value.sent) == ("NOT_REGISTERED", errors.Sent.NO)


async def test_configuration_that_the_plugin_refuses_is_the_plugins_own_error(
    channel: Channel,
) -> None:
    with pytest.raises(errors.InvalidRequest, match="field x is missing"):
        await register(channel, "one", b"bad")


async def test_plugin_that_is_not_there_is_not_found(channel: Channel) -> None:
    with pytest.raises(errors.NotFound) as caught:
        await host_side.register(channel, HOST, "three", b"", [bytes(32)])
    assert caught.value.reason == "PLUGIN_UNKNOWN"


async def test_host_without_the_plugins_key_says_so_and_sends_nothing_more(
    channel: Channel,
) -> None:
    with pytest.raises(Refused, match="does not know the key"):
        await host_side.register(channel, HOST, "one", b"secret: x", [bytes(32)])
    with pytest.raises(Refused, match="no key"):
        await host_side.register(channel, HOST, "one", b"", [])


async def test_plugin_refuses_a_host_that_does_not_know_its_key(channel: Channel) -> None:
    challenge = await channel.unary(
        methods.CHALLENGE,
        plugin_pb2.ChallengeRequest(plugin_id="one", host_id="h", host_nonce=bytes(16)),
        deadline=60,
    )
    request = plugin_pb2.RegisterRequest(
        plugin_id="one",
        host_id="h",
        protocol_versions=[1],
        config_hash=handshake.config_hash(b""),
        plugin_nonce=challenge.plugin_nonce,
        proof=bytes(32),
    )
    with pytest.raises(errors.Unauthenticated) as caught:
        await channel.unary(methods.REGISTER, request, deadline=60)
    assert caught.value.reason == "PROOF_INVALID"
    with pytest.raises(errors.Unauthenticated) as caught:
        await channel.unary(methods.REGISTER, request, deadline=60)
    assert caught.value.reason == "CHALLENGE_UNKNOWN", "a nonce is good for one attempt"


async def test_configuration_must_be_the_one_that_was_proved(channel: Channel) -> None:
    challenge = await channel.unary(
        methods.CHALLENGE,
        plugin_pb2.ChallengeRequest(plugin_id="one", host_id="h", host_nonce=bytes(16)),
        deadline=60,
    )
    proved = handshake.config_hash(b"mine")
    request = plugin_pb2.RegisterRequest(
        plugin_id="one",
        host_id="h",
        protocol_versions=[1],
        config=b"somebody else's",
        config_hash=proved,
        plugin_nonce=challenge.plugin_nonce,
        proof=handshake.host_proof(
            channel_key(KEYS["one"]), "one", "h", challenge.plugin_nonce, proved
        ),
    )
    with pytest.raises(errors.InvalidRequest) as caught:
        await channel.unary(methods.REGISTER, request, deadline=60)
    assert caught.value.reason == "CONFIG_HASH_MISMATCH"


async def test_protocol_that_the_plugin_does_not_know_is_answered_with_its_own(
    channel: Channel,
) -> None:
    challenge = await channel.unary(
        methods.CHALLENGE,
        plugin_pb2.ChallengeRequest(plugin_id="one", host_id="h", host_nonce=bytes(16)),
        deadline=60,
    )
    config_hash = handshake.config_hash(b"")
    proof = handshake.host_proof(
        channel_key(KEYS["one"]), "one", "h", challenge.plugin_nonce, config_hash
    )
    response = await channel.unary(
        methods.REGISTER,
        plugin_pb2.RegisterRequest(
            plugin_id="one",
            host_id="h",
            protocol_versions=[99],
            config_hash=config_hash,
            plugin_nonce=challenge.plugin_nonce,
            proof=proof,
        ),
        deadline=60,
    )
    assert response.protocol_version == handshake.PROTOCOL_VERSIONS[0]


def good() -> plugin_pb2.RegisterResponse:
    return plugin_pb2.RegisterResponse(
        protocol_version=1,
        schema_version=1,
        plugin_id="one",
        metadata=plugin_pb2.Metadata(name="One", version="1", author="tests"),
        capabilities=One().capabilities(),
    )


def test_objections_to_a_good_answer_are_none() -> None:
    assert host_side.objections(good(), "one") == []


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"protocol_version": 9}, "protocol version 9"),
        ({"schema_version": 9}, "schema version 9 is newer"),
        ({"schema_version": 0}, "schema_version is missing"),
        ({"plugin_id": "two"}, "it is plugin 'two'"),
        ({"metadata": plugin_pb2.Metadata(version="1", author="a")}, "metadata.name is empty"),
        ({"capabilities": plugin_pb2.Capabilities()}, "no capability"),
        (
            {"capabilities": plugin_pb2.Capabilities(executor=plugin_pb2.ExecutorCapability())},
            "no input or no output",
        ),
        (
            {
                "metadata": plugin_pb2.Metadata(
                    name="a",
                    version="1",
                    author="a",
                    config_fields=[plugin_pb2.ConfigField(name="x")],
                )
            },
            "'x' has no type",
        ),
    ],
)
def test_objections_name_what_is_wrong(change: dict[str, Any], reason: str) -> None:
    response = good()
    for name, value in change.items():
        response.ClearField(name)  # type: ignore[arg-type] # the stub lists literals
        if isinstance(value, int | str):
            setattr(response, name, value)
        else:
            getattr(response, name).CopyFrom(value)
    assert any(reason in objection for objection in host_side.objections(response, "one"))


async def test_plugin_that_is_refused_is_told_why(
    caplog: pytest.LogCaptureFixture,
) -> None:
    channel = InProcessChannel(build_servicers([Newer()], {"one": [KEYS["one"]]}), strict=True)
    with pytest.raises(Refused, match="no capability"):
        await register(channel, "one")
    assert "refused plugin one: it declares no capability" in caplog.text
    await channel.close()
