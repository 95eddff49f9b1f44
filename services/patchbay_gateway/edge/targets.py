"""
From a public model name to the providers that can serve it in this dialect.

Pure over one snapshot and the registry's view. Not here: choosing a credential (scheduler).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from patchbay import errors
from patchbay_gateway.plugins.snapshot import RetryEntry
from patchbay_gateway.translate.thinking import parse_suffix, split_suffix

if TYPE_CHECKING:
    from patchbay.plugin.v1 import plugin_pb2
    from patchbay_gateway.edge.request import Request
    from patchbay_gateway.plugins.snapshot import Snapshot


Accepts = Callable[["plugin_pb2.ExecutorCapability"], bool]
_NO_RETRY: Final = RetryEntry()


class Executors(Protocol):
    """What is known of executor plugins: the registry's part of it."""

    def executor(self, plugin_id: str) -> plugin_pb2.ExecutorCapability | None:
        """Return what the plugin's ready addresses declare, None when there is none."""


class Candidates(msgspec.Struct, frozen=True, gc=False):
    """Who may serve a request."""

    providers: tuple[str, ...]
    credentials: int
    """Enabled credentials of these providers: how many different ones attempts can try."""
    pooled: bool = False
    """One provider has several models for the name: an alias pool, or a fallback to another model of it."""
    retry: RetryEntry = _NO_RETRY
    target_model: str = ""
    """The model to ask for, where a model router named one."""


DIRECT: Final = Candidates((), 0)
"""Nobody of the catalogue: a plugin's executor without a credential."""


def routed(snapshot: Snapshot, name: str, model: str) -> Candidates:
    """
    Return the provider that a model router chose, with the model that it named.

    Raises:
        NotFound: MODEL_NOT_FOUND, the provider has no such model.
    """
    if not any(t.provider == name for t in snapshot.targets.get(model, ())):
        raise unknown_model(model)
    provider = snapshot.provider_by_name[name]
    return Candidates(
        (provider.name,),
        snapshot.enabled_credentials[provider.name],
        retry=provider.retry,
        target_model=model,
    )


def split_thinking(request: Request) -> None:
    """Take the suffix that asks for thinking off a model name that is not known with it."""
    name, inside = bare(request.snapshot, request.model)
    if name != request.model:
        request.model, request.thinking = name, parse_suffix(inside)


def bare(snapshot: Snapshot, model: str) -> tuple[str, str]:
    """Return a model's name without the suffix that asks for thinking, and what the suffix asks for."""
    if model.endswith(")") and model not in snapshot.targets:
        name, inside = split_suffix(model)
        if name in snapshot.targets:
            return name, inside
    return model, ""


def resolve(
    snapshot: Snapshot,
    executors: Executors,
    *,
    model: str,
    dialect: str,
    operation: str,
    accepts: Accepts | None = None,
) -> Candidates:
    """
    Return the candidates for *model*.

    Args:
        snapshot: What the request is pinned to.
        executors: What is known of executor plugins.
        model: Public name.
        dialect: The client's.
        operation: What is asked.
        accepts: Whether an executor can serve the request, translated if need be; default only as it is.

    Raises:
        NotFound: MODEL_NOT_FOUND, nobody serves a model of that name.
        InvalidRequest: DIALECT_NOT_AVAILABLE, it is served, but not in this dialect or operation.
        Unavailable: NO_EXECUTOR, no executor of its providers is registered now.
    """
    if accepts is None:

        def accepts(capability: plugin_pb2.ExecutorCapability) -> bool:
            return serves(capability, dialect, operation)

    if not snapshot.targets.get(model):
        raise unknown_model(model)
    providers: list[str] = []
    retries: list[RetryEntry] = []
    credentials = 0
    absent = pooled = False
    # What a route falls back to is tried when none of its own targets can serve (scheduler).
    names = (model, *snapshot.fallbacks.get(model, ()))
    for target in (target for name in names for target in snapshot.targets[name]):
        provider = snapshot.provider_by_name.get(target.provider)
        if provider is None:
            continue
        if provider.name in providers:
            pooled = True
            continue
        capability = executors.executor(provider.plugin)
        if capability is None:
            absent = True
        elif accepts(capability):
            providers.append(provider.name)
            retries.append(provider.retry)
            credentials += snapshot.enabled_credentials[provider.name]
    if providers:
        return Candidates(tuple(providers), credentials, pooled, _widest(retries))
    if absent:
        raise errors.Unavailable(
            f"no executor for model {model!r} is ready; try again in a moment",
            reason="NO_EXECUTOR",
            retry_after=2,
            sent=errors.Sent.NO,
        )
    raise errors.InvalidRequest(
        f"model {model!r} cannot be reached by {operation} in the {dialect} dialect; "
        "use the dialect of its provider",
        reason="DIALECT_NOT_AVAILABLE",
    )


def _widest(retries: list[RetryEntry]) -> RetryEntry:
    """Return what the most patient provider allows; the scheduler knows which take part in a round."""
    if len(retries) == 1:
        return retries[0]
    most = [retry.max_credentials for retry in retries]
    return RetryEntry(
        rounds=max(retry.rounds for retry in retries),
        max_credentials=0 if 0 in most else max(most),
        max_wait=max(retry.max_wait for retry in retries),
    )


def serves(capability: plugin_pb2.ExecutorCapability, dialect: str, operation: str) -> bool:
    """Whether an executor takes *operation* in *dialect*."""
    for entry in capability.operations:
        if entry.format == dialect:
            return operation in entry.operations
    return not capability.operations and operation == "chat" and dialect in capability.input_formats


def unknown_model(model: str) -> errors.NotFound:
    """Return the error for a model that this client cannot see."""
    return errors.NotFound(
        f"the model {model!r} does not exist or you do not have access to it",
        reason="MODEL_NOT_FOUND",
        metadata={"param": "model"},
    )
