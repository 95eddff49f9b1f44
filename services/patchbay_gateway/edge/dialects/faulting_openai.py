"""
What only OpenAI-like providers say of failures: chat, completions, embeddings and Responses alike.

Many are behind this wire format, Google among them, so its words count here too. Not here: the shared rules
(faulting.py).
"""

from __future__ import annotations

import re
from typing import Final

from patchbay.errors import FaultScope
from patchbay_gateway.edge.dialects import faulting_gemini
from patchbay_gateway.edge.dialects.faulting import Peculiar
from patchbay_gateway.kernel.outcomes import FaultKind

PECULIAR: Final = Peculiar(
    words={
        **faulting_gemini.WORDS,
        "unsupported_country_region_territory": (FaultKind.FORBIDDEN, FaultScope.CREDENTIAL),
        "deploymentnotfound": (FaultKind.NOT_FOUND, FaultScope.MODEL),
    },
    sentences=(
        (
            re.compile(r"(?i)\byour organi[sz]ation must be verified\b"),
            (FaultKind.FORBIDDEN, FaultScope.MODEL),
        ),
        (re.compile(r"(?i)\bno endpoints found\b"), (FaultKind.NOT_FOUND, FaultScope.MODEL)),
    ),
    scope=faulting_gemini.quota_scope,
)
