"""Every unary capability over both channels: all fields arrive, errors keep details, news is ignored."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from google.protobuf import descriptor_pool, message_factory
from tests.fakes.everything import Everything, fill

from patchbay import errors, keys, services, wire
from patchbay.auth_provider import AuthData
from patchbay.command_line import CommandLineExecutionResponse
from patchbay.executor import Executor
from patchbay.frontend_auth import FrontendAuthProvider, FrontendAuthRequest, FrontendAuthResponse
from patchbay.models import AuthModelRequest, ModelResponse
from patchbay.plugin.v1 import (
    command_line_plugin_pb2,
    frontend_auth_provider_pb2,
    model_provider_pb2,
    plugin_pb2,
)
from patchbay.secrets import SecretOpener, seal
from patchbay.serve import PluginServer, build_servicers
from patchbay.tokens import TokenSource
from patchbay_gateway.kernel.channels import methods
from patchbay_gateway.kernel.channels.inprocess import InProcessChannel
from patchbay_gateway.kernel.channels.port import Method
from patchbay_gateway.kernel.channels.remote import RemoteChannel

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from pathlib import Path

    from patchbay_gateway.kernel.channels.port import Channel

PLUGIN_KEYS = {
    id_: [f"test-key of {id_}".ljust(32).encode()] for id_ in ("everything", "only-auth", "mixed")
}
HOST_ID = "host-1"


class OnlyAuth(FrontendAuthProvider):
    id = "only-auth"
    name = "Only auth"
    version = "1.0"
    author = "tests"

    async def authenticate(self, request: FrontendAuthRequest) -> FrontendAuthResponse | None:
        return FrontendAuthResponse(f"{request.method} {request.path}")


@dataclasses.dataclass
class Wire:
    channel: Channel
    plugin: Everything


@pytest.fixture(params=["inprocess strict", "grpc"])
async def wire_to(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    no_leaked_tasks: Callable[[], object],  # noqa: ARG001 - looks after all is closed
) -> AsyncIterator[Wire]:
    plugin = Everything()
    plugins = [plugin, OnlyAuth()]
    if request.param == "grpc":
        server = PluginServer(plugins, PLUGIN_KEYS)
        await server.start(f"unix:{tmp_path}/s")
        remote = RemoteChannel(f"unix:{tmp_path}/s")
        yield Wire(remote, plugin)
        await remote.close()
        await server.stop()
    else:
        local = InProcessChannel(build_servicers(plugins, PLUGIN_KEYS), strict=True)
        yield Wire(local, plugin)
        await local.close()


def metadata(plugin_id: str = "everything") -> tuple[tuple[str, str], ...]:
    key = keys.channel_key(PLUGIN_KEYS[plugin_id][0])
    return (("patchbay-plugin", plugin_id), *TokenSource(key, plugin_id, HOST_ID).metadata())


@dataclasses.dataclass(frozen=True)
class Row:
    """One unary method, with the dataclasses and messages of both sides."""

    call: services.Call
    method: Method[Any, Any]


def rows() -> list[Row]:
    pool = descriptor_pool.Default()
    found = []
    for service in services.SERVICES:
        described = pool.FindServiceByName("patchbay.plugin.v1." + service.name)
        for call in service.calls:
            request = message_factory.GetMessageClass(
                described.methods_by_name[call.method].input_type
            )
            path = f"/{described.full_name}/{call.method}"
            found.append(Row(call, Method(path, request, call.answer)))
    return found


ROWS = {row.method.path.rpartition("v1.")[2]: row for row in rows()}
ANSWERS = {
    "RegisterModels": "patchbay.models.ModelRegistrationResponse",
    "StaticModels": "patchbay.models.ModelResponse",
    "ModelsForAuth": "patchbay.models.ModelResponse",
    "Authenticate": "patchbay.frontend_auth.FrontendAuthResponse",
    "Pick": "patchbay.scheduler_plugin.SchedulerPickResponse",
    "RouteModel": "patchbay.router.ModelRouteResponse",
    "InterceptRequestBeforeAuth": "patchbay.interceptors.RequestInterceptResponse",
    "InterceptRequestAfterAuth": "patchbay.interceptors.RequestInterceptResponse",
    "InterceptResponse": "patchbay.interceptors.ResponseInterceptResponse",
    "RegisterCommandLine": "patchbay.command_line.CommandLineRegistrationResponse",
    "ExecuteCommandLine": "patchbay.command_line.CommandLineExecutionResponse",
    "RegisterManagement": "patchbay.management.ManagementRegistrationResponse",
    "HandleManagement": "patchbay.management.ManagementResponse",
}
"""Method to the dataclass of its answer; the others answer a payload, or nothing."""

APART = {"auth_update", "auths", "secret"}
"""Fields with material, which have tests of their own."""


def answer_class(name: str) -> Any:
    module, _, cls = ANSWERS[name].rpartition(".")
    return getattr(__import__(module, fromlist=[cls]), cls)


def prepared(row: Row) -> Any:
    """Tell the plugin an answer with every field set and return its message."""
    message = fill(row.call.answer())
    for name in APART:
        if name in message.DESCRIPTOR.fields_by_name:
            message.ClearField(name)
    return message


def result_of(row: Row, message: Any) -> Any:
    if row.call.method in ANSWERS:
        return wire.read(answer_class(row.call.method), message)
    return message.body if "body" in message.DESCRIPTOR.fields_by_name else None


@pytest.mark.parametrize("name", ROWS)
async def test_every_field_arrives_both_ways(wire_to: Wire, name: str) -> None:
    row = ROWS[name]
    request, answer = fill(row.method.request()), prepared(row)
    wire_to.plugin.answer = result_of(row, answer)
    got = await wire_to.channel.unary(row.method, request, deadline=60, metadata=metadata())
    assert got == answer
    back = row.method.request()
    wire.write(wire_to.plugin.seen, back)
    # `host` has a test of its own: its lists within maps are flattened.
    for part in ("host", "secret"):
        if part in back.DESCRIPTOR.fields_by_name:
            request.ClearField(part)
    assert back == request


@pytest.mark.parametrize("name", ROWS)
async def test_an_error_keeps_its_details(wire_to: Wire, name: str) -> None:
    wire_to.plugin.answer = errors.ResourceExhausted(
        "come back later", reason="TOO_BUSY", metadata={"limit": "3"}, retry_after=1.5
    )
    row = ROWS[name]
    with pytest.raises(errors.ResourceExhausted, match="come back later") as caught:
        await wire_to.channel.unary(
            row.method, row.method.request(), deadline=60, metadata=metadata()
        )
    assert (caught.value.reason, caught.value.retry_after) == ("TOO_BUSY", 1.5)
    assert caught.value.metadata == {"limit": "3"}


@pytest.mark.parametrize("name", ROWS)
async def test_unknown_fields_and_values_are_ignored(wire_to: Wire, name: str) -> None:
    """A newer host sends fields and enum values that this SDK has not heard of."""
    row = ROWS[name]
    wire_to.plugin.answer = result_of(row, prepared(row))
    newer = bytes([0x82, 0xF4, 0x03, 0x03]) + b"new"  # field 8000, three bytes
    request = row.method.request.FromString(row.method.request().SerializeToString() + newer)
    for field in request.DESCRIPTOR.fields:
        if field.enum_type is not None:
            setattr(request, field.name, 99)
    await wire_to.channel.unary(row.method, request, deadline=60, metadata=metadata())
    for field in request.DESCRIPTOR.fields:
        if field.enum_type is not None:
            assert getattr(wire_to.plugin.seen, field.name).name == "UNSPECIFIED"


@pytest.mark.parametrize("name", sorted(ROWS.keys() - {"FrontendAuthProviderService/Authenticate"}))
async def test_a_plugin_without_the_capability_says_so(wire_to: Wire, name: str) -> None:
    row = ROWS[name]
    with pytest.raises(errors.NotFound) as caught:
        await wire_to.channel.unary(
            row.method, row.method.request(), deadline=60, metadata=metadata("only-auth")
        )
    assert caught.value.reason == "CAPABILITY_NOT_SERVED"


async def test_several_plugins_share_an_address(wire_to: Wire) -> None:
    wire_to.plugin.answer = FrontendAuthResponse("from everything")
    asked = frontend_auth_provider_pb2.FrontendAuthRequest(method="GET", path="/v1/models")
    told = {
        plugin_id: (
            await wire_to.channel.unary(
                methods.AUTHENTICATE, asked, deadline=60, metadata=metadata(plugin_id)
            )
        ).principal
        for plugin_id in ("everything", "only-auth")
    }
    assert told == {"everything": "from everything", "only-auth": "GET /v1/models"}


@pytest.mark.parametrize(
    "name",
    sorted(ROWS.keys() - {"ManagementAPIService/HandleManagement"}),
)
async def test_none_is_an_empty_answer(wire_to: Wire, name: str) -> None:
    """A hook that has nothing to say returns None."""
    row = ROWS[name]
    wire_to.plugin.answer = None
    got = await wire_to.channel.unary(
        row.method, row.method.request(), deadline=60, metadata=metadata()
    )
    assert got == row.call.answer()


def test_a_message_and_its_dataclass_must_have_the_same_fields() -> None:
    @dataclasses.dataclass
    class Short:
        method: str

    with pytest.raises(TypeError, match="body"):
        wire.read(Short, frontend_auth_provider_pb2.FrontendAuthRequest())


async def test_values_are_what_an_author_expects(wire_to: Wire) -> None:
    """One message written out, so that a symmetric mistake of both directions is seen."""
    wire_to.plugin.answer = FrontendAuthResponse("me", {"tenant": "blue"})
    asked = frontend_auth_provider_pb2.FrontendAuthRequest(method="POST", path="/x", body=b"{}")
    asked.headers["x-token"].values.extend(["one", "two"])
    asked.query["key"].values.append("v")
    got = await wire_to.channel.unary(methods.AUTHENTICATE, asked, deadline=60, metadata=metadata())
    seen = wire_to.plugin.seen
    assert seen.headers == [(b"x-token", b"one"), (b"x-token", b"two")]
    assert seen.query == [("key", "v")]
    assert (seen.method, seen.path, seen.body) == ("POST", "/x", b"{}")
    assert "one" not in repr(seen)
    assert (got.authenticated, got.principal, dict(got.metadata)) == (
        True,
        "me",
        {"tenant": "blue"},
    )


async def test_host_configuration_is_told(wire_to: Wire) -> None:
    wire_to.plugin.answer = ModelResponse()
    asked = model_provider_pb2.StaticModelRequest()
    asked.host.auth_dir = "/auths"
    asked.host.force_model_prefix = True
    asked.host.oauth_model_alias["openai"].aliases.add(name="gpt-5.5", alias="big")
    asked.host.excluded_models["openai"].values.extend(["o1", "o2"])
    await wire_to.channel.unary(methods.STATIC_MODELS, asked, deadline=60, metadata=metadata())
    host = wire_to.plugin.seen.host
    assert (host.auth_dir, host.force_model_prefix) == ("/auths", True)
    assert [(a.name, a.alias) for a in host.oauth_model_alias["openai"]] == [("gpt-5.5", "big")]
    assert host.excluded_models == {"openai": ("o1", "o2")}


def model_request(plugin_id: str = "everything") -> model_provider_pb2.AuthModelRequest:
    sealing = keys.sealing_key(PLUGIN_KEYS["everything"][0])
    sealed = seal(
        sealing, plugin_id, "team", 7, ["https://a.example"], 4e9, {"access_token": "test-access"}
    )
    return model_provider_pb2.AuthModelRequest(auth_id="team", auth_provider="x", secret=sealed)


async def test_material_is_opened_and_goes_back_sealed_for_the_scheduler(wire_to: Wire) -> None:
    wire_to.plugin.answer = ModelResponse(
        auth_update=AuthData(id="team", storage={"account": "test-account"}, label="me@x.example")
    )
    got = await wire_to.channel.unary(
        methods.MODELS_FOR_AUTH, model_request(), deadline=60, metadata=metadata()
    )
    seen = wire_to.plugin.seen
    assert isinstance(seen, AuthModelRequest)
    assert seen.secret is not None
    assert seen.secret["access_token"] == "test-access"
    assert "test-access" not in repr(seen)
    storage = got.auth_update.storage
    assert (storage.credential_id, storage.version, got.auth_update.label) == (
        "team",
        7,
        "me@x.example",
    )
    return_key = keys.return_key(PLUGIN_KEYS["everything"][0])
    assert SecretOpener([return_key]).open(storage)["account"] == "test-account"


async def test_a_secret_of_another_plugin_is_refused(wire_to: Wire) -> None:
    with pytest.raises(errors.FailedPrecondition) as caught:
        await wire_to.channel.unary(
            methods.MODELS_FOR_AUTH, model_request("mixed"), deadline=60, metadata=metadata()
        )
    assert caught.value.reason == "SECRET_FOREIGN"


async def test_credentials_of_a_command_line_go_back_sealed(wire_to: Wire) -> None:
    wire_to.plugin.answer = CommandLineExecutionResponse(
        b"ok\n", auths=[AuthData(id="new", storage={"api_key": "test-key"})]
    )
    got = await wire_to.channel.unary(
        methods.EXECUTE_COMMAND_LINE,
        command_line_plugin_pb2.CommandLineExecutionRequest(program="patchbay"),
        deadline=None,  # a person waits
        metadata=metadata(),
    )
    return_key = keys.return_key(PLUGIN_KEYS["everything"][0])
    assert SecretOpener([return_key]).open(got.auths[0].storage)["api_key"] == "test-key"


class Mixed(Everything, Executor):
    id = "mixed"
    input_formats: ClassVar[Sequence[str]] = ("openai",)
    output_formats: ClassVar[Sequence[str]] = ("openai",)


def test_a_plugin_declares_what_it_inherits_from() -> None:
    declared = Mixed().capabilities()
    flags = {
        field.name: getattr(declared, field.name)
        for field in plugin_pb2.Capabilities.DESCRIPTOR.fields
        if field.message_type is None
    }
    assert flags == dict.fromkeys(flags, True) | {"auth_provider": False}
    assert list(declared.executor.input_formats) == ["openai"]
    assert not declared.HasField("interceptor_needs")


def test_only_auth_declares_only_that() -> None:
    assert OnlyAuth().capabilities() == plugin_pb2.Capabilities(frontend_auth_provider=True)
