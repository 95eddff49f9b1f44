"""
Providers that exist only by environment variables, and the echo provider: for `patchbay up`.

Not here: overrides of keys (file.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from pydantic import ValidationError

from patchbay_gateway.kernel.config.file import load
from patchbay_gateway.kernel.config.plugins import BUILTIN_PLUGINS, DEFAULT_BASE_URLS
from patchbay_gateway.kernel.config.problems import ConfigError, Problem
from patchbay_gateway.kernel.config.providers import Provider

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from patchbay_gateway.kernel.config.model import Config
    from patchbay_gateway.kernel.config.settings import ProcessSettings


@dataclass(frozen=True, slots=True)
class _Known:
    """A provider whose standard variables are understood."""

    name: str
    plugin: str
    key: str
    base_url: str
    default_url: str
    models: tuple[str, ...]


_KNOWN: Final = (
    _Known(
        "openai",
        "openai-compatible",
        "OPENAI_API_KEY",
        "OPENAI_BASE_URL",
        "https://api.openai.com/v1",
        (
            "gpt-5.5",
            "gpt-5.1",
            "gpt-5",
            "gpt-5-mini",
            "gpt-5-nano",
            "gpt-4.1",
            "gpt-4.1-mini",
            "gpt-4o",
            "gpt-4o-mini",
            "o3",
            "o4-mini",
            "text-embedding-3-small",
            "text-embedding-3-large",
        ),
    ),
    _Known(
        "anthropic",
        "claude",
        "ANTHROPIC_API_KEY",
        "ANTHROPIC_BASE_URL",
        DEFAULT_BASE_URLS["claude"],
        (
            "claude-opus-5-5",
            "claude-sonnet-5-5",
            "claude-haiku-5-5",
            "claude-fable-5-2",
            "claude-opus-5",
            "claude-sonnet-5",
            "claude-opus-4-8",
            "claude-sonnet-4-6",
            "claude-haiku-4-5",
        ),
    ),
    _Known(
        "gemini",
        "gemini",
        "GEMINI_API_KEY",
        "GOOGLE_GEMINI_BASE_URL",
        DEFAULT_BASE_URLS["gemini"],
        (
            "gemini-3.8-flash",
            "gemini-3.5-flash",
            "gemini-3.1-pro-preview",
            "gemini-3.1-flash-lite",
            "gemini-2.5-pro",
            "gemini-2.5-flash",
            "gemini-2.5-flash-lite",
        ),
    ),
)

ECHO: Final = "echo"


def for_up(
    config: Config,
    env: Mapping[str, str],
    *,
    available: Collection[str] = BUILTIN_PLUGINS,
    models: Mapping[str, Sequence[str]] | None = None,
) -> Config:
    """
    Return *config* with what `patchbay up` adds by itself.

    That is the echo provider, unless the file names providers, and the providers whose keys are in
    the environment. Arguments as `with_environment_providers`.
    """
    completed = with_echo_provider(config) if not config.providers else config
    return with_environment_providers(completed, env, available=available, models=models)


def load_for(settings: ProcessSettings, env: Mapping[str, str]) -> Config:
    """
    Return the configuration that a process of these settings runs on.

    Its file with the environment's overrides and, for `patchbay up`, what `for_up` adds. Call it again
    when the file has changed.

    Raises:
        ConfigError: All that is wrong.
    """
    config = load(settings.config_path, env)
    if settings.service != "up":
        return config
    return for_up(config, env, models=settings.environment_models)


def with_echo_provider(config: Config) -> Config:
    """Return *config* with the provider `echo` and its model `echo`, if it has none of that name."""
    if any(p.name == ECHO for p in config.providers):
        return config
    # Failures of the echo are rehearsals: one must not spoil the next.
    rules = {"cooldown": {"enabled": False}}
    echo = Provider.model_validate({"name": ECHO, "plugin": ECHO, "models": [ECHO], **rules})
    return config.model_copy(update={"providers": (*config.providers, echo)})


def with_environment_providers(
    config: Config,
    env: Mapping[str, str],
    *,
    available: Collection[str] = BUILTIN_PLUGINS,
    models: Mapping[str, Sequence[str]] | None = None,
) -> Config:
    """
    Return *config* with a provider for each key found in the environment.

    A provider that the file names is left as it is.

    Args:
        config: From the file.
        env: The environment; `OPENAI_API_KEY`, `OPENAI_BASE_URL` and their like, `*_FILE` too.
        available: Executor plugins that can be used; providers that need another are left out.
        models: Provider name → models, where they are known better than by the built-in lists.

    Raises:
        ConfigError: A base URL in the environment is none.
    """
    taken = {p.name for p in config.providers}
    used = {c.id for p in config.providers for c in p.credentials}
    added = []
    for known in _KNOWN:
        if known.plugin not in available or known.name in taken:
            continue
        has_file = bool(env.get(f"{known.key}_FILE"))
        if not env.get(known.key) and not has_file:
            continue
        credential = f"{known.name}-env"
        if credential in used:
            continue
        url = (env.get(known.base_url) or known.default_url).rstrip("/")
        try:
            provider = Provider.model_validate(
                {
                    "name": known.name,
                    "plugin": known.plugin,
                    "base_url": url,
                    "models": list((models or {}).get(known.name, known.models)),
                    "credentials": [{"id": credential, "api_key_env": known.key}],
                }
            )
        except ValidationError as error:
            message = error.errors(include_url=False)[0]["msg"].removeprefix("Value error, ")
            raise ConfigError([Problem("", message, source=known.base_url)]) from error
        added.append(provider)
    return config.model_copy(update={"providers": (*config.providers, *added)}) if added else config
