"""Writes `expected.json` anew from the samples, after a deliberate change: read the difference."""

from __future__ import annotations

import json

from tests.unit.sdk.test_auth_documents import GOLDEN, SAMPLES, read

if __name__ == "__main__":
    found = {path.name: read(path) for path in SAMPLES}
    (GOLDEN / "expected.json").write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")
