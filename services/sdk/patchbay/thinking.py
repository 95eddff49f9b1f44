"""
Thinking appliers: the base class of a plugin that writes reasoning settings into payloads of its provider
(pluginapi: ThinkingApplier).

One plugin per provider, the first by priority. An error changes nothing. Not here: reading settings from
model names and requests (the gateway's).
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import ClassVar

from patchbay.capability import Plugin
from patchbay.host_client import UNREACHABLE, HostClient
from patchbay.models import ModelInfo
from patchbay.wire import APART, of


class ThinkingMode(enum.StrEnum):
    """Kinds of settings."""

    UNSPECIFIED = ""
    BUDGET = "budget"
    """So many tokens."""
    LEVEL = "level"
    """A named level."""
    NONE = "none"
    """No reasoning."""
    AUTO = "auto"
    """The provider chooses."""


@dataclass(frozen=True, slots=True)
class ThinkingConfig:
    """A reasoning setting."""

    mode: ThinkingMode = field(default=ThinkingMode.UNSPECIFIED, metadata=of(ThinkingMode))
    """Which of the fields counts."""
    budget: int = 0
    """Tokens."""
    level: str = ""
    """Name of a level."""


@dataclass(frozen=True, slots=True)
class ThinkingApplyRequest:
    """A setting and a payload."""

    provider: str
    """Provider key, which is also the payload's format."""
    body: bytes
    """The payload."""
    model: ModelInfo | None = field(default=None, metadata=of(ModelInfo))
    """The model; at least its id."""
    config: ThinkingConfig | None = field(default=None, metadata=of(ThinkingConfig))
    """The setting, checked against the model."""
    callbacks: HostClient = field(default=UNREACHABLE, repr=False, compare=False, metadata=APART)
    """What the plugin may ask of the gateway meanwhile."""


class ThinkingApplier(Plugin):
    """A plugin that writes reasoning settings; its `identifier` is the provider key."""

    capability_flag: ClassVar = "thinking_applier"

    async def apply_thinking(self, request: ThinkingApplyRequest) -> bytes | None:
        """Return the payload with the setting; None: unchanged."""
        raise NotImplementedError
