"""Faster answers for some: a request normalizer that sets `service_tier` in one model's payloads."""

from __future__ import annotations

import json

import yaml

from patchbay.transform import RequestNormalizer, RequestTransformRequest


class ServiceTier(RequestNormalizer):
    """Sets `service_tier: priority` where the configuration says `fast: true`."""

    id = "service-tier"
    name = "Service tier"
    version = "1.0.0"
    author = "Patchbay"

    def __init__(self) -> None:
        self._fast = False
        self._format = "openai"
        self._model = "gpt-5.5"

    async def configure(self, config: bytes) -> None:
        """Take `fast`, `to_format` and `model`."""
        settings = yaml.safe_load(config) or {}
        self._fast = bool(settings.get("fast", False))
        self._format = str(settings.get("to_format", "openai"))
        self._model = str(settings.get("model", "gpt-5.5"))

    async def normalize_request(self, request: RequestTransformRequest) -> bytes | None:
        """Set the tier; a payload that is no JSON object stays."""
        if not self._fast or (request.to_format, request.model) != (self._format, self._model):
            return None
        try:
            payload = json.loads(request.body)
        except ValueError:
            return None
        if not isinstance(payload, dict):
            return None
        return json.dumps({**payload, "service_tier": "priority"}).encode()
