"""A plugin that registers a model of the provider `fake`, run as a process by a test."""

from __future__ import annotations

import os
from typing import ClassVar

from patchbay.models import (
    ModelInfo,
    ModelRegistrar,
    ModelRegistrationRequest,
    ModelRegistrationResponse,
)
from patchbay.serve import serve


class Registrar(ModelRegistrar):
    id: ClassVar = "registrar"
    name: ClassVar = "Registrar"
    version: ClassVar = "1"
    author: ClassVar = "tests"

    async def register_models(self, request: ModelRegistrationRequest) -> ModelRegistrationResponse:
        return ModelRegistrationResponse("fake", [ModelInfo("registered")])


if __name__ == "__main__":
    serve(Registrar(), address=os.environ["SAMPLE_ADDRESS"])
