"""
Models that plugins tell: model_registrar, and model_provider with its fixed models and those of a credential.

A plugin that is a model provider is not asked as a registrar. What an executor's scope leaves out is not
asked for. Names are trimmed, blank ones left out. Not here: when to ask (scheduler/plugin_models.py), what
becomes of the answers (told_models.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from patchbay.plugin.v1 import model_provider_pb2, model_registrar_pb2, plugin_pb2
from patchbay_gateway.kernel.channels import methods
from patchbay_gateway.plugins.told_models import Told

if TYPE_CHECKING:
    from collections.abc import Iterable

    from patchbay.plugin.v1 import model_info_pb2
    from patchbay_gateway.plugins.calls import PluginCalls
    from patchbay_gateway.plugins.hooks import Hook

PROVIDER: Final = "model_provider"
REGISTRAR: Final = "model_registrar"


def fixed_scope(capabilities: plugin_pb2.Capabilities) -> bool:
    """Whether the plugin is asked for fixed models."""
    scope = capabilities.executor.model_scope
    return scope != plugin_pb2.EXECUTOR_MODEL_SCOPE_OAUTH


def credential_scope(capabilities: plugin_pb2.Capabilities) -> bool:
    """Whether the plugin is asked for the models of credentials."""
    scope = capabilities.executor.model_scope
    return scope != plugin_pb2.EXECUTOR_MODEL_SCOPE_STATIC


async def fixed_models(calls: PluginCalls, hook: Hook) -> Told:
    """
    Return the models that every credential has.

    Raises:
        PatchbayError: The plugin does not say.
    """
    if hook.capability == REGISTRAR:
        registered = await calls.unary(
            hook, methods.REGISTER_MODELS, model_registrar_pb2.ModelRegistrationRequest()
        )
        key = registered.provider.strip().lower()
        # Blank: none are registered.
        return Told(key, _names(registered.models) if key else ())
    answer = await calls.unary(hook, methods.STATIC_MODELS, model_provider_pb2.StaticModelRequest())
    return Told(answer.provider.strip().lower(), _names(answer.models))


async def credential_models(
    calls: PluginCalls, hook: Hook, request: model_provider_pb2.AuthModelRequest
) -> Told:
    """
    Return the models of one credential.

    Raises:
        PatchbayError: The plugin does not say.
    """
    answer = await calls.unary(hook, methods.MODELS_FOR_AUTH, request)
    return Told(answer.provider.strip().lower(), _names(answer.models))


def _names(models: Iterable[model_info_pb2.ModelInfo]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for model in models if (name := model.id.strip())))
