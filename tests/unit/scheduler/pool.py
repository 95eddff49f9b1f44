"""A view of the pool that a test writes."""

from __future__ import annotations

from patchbay_gateway.scheduler.health import Blocked
from patchbay_gateway.scheduler.marks import MarkError


class FakeView:
    """Holds what the test says against credentials, and counts how often it is asked."""

    def __init__(self):
        self.generation = 0
        self.now = 0.0
        self.asked = 0
        self.busy = {}
        self._blocked = {}

    def block(self, id_, *, until, model=None, probe=False, reason="QUOTA", error=None, tell=True):
        last = MarkError(*error) if error else None
        state = "ready" if probe else "cooling"
        self._blocked[id_, model] = Blocked(state, reason, until, probe, last)
        self.generation += tell

    def lift(self, id_, *, model=None, tell=True):
        self._blocked.pop((id_, model), None)
        self.generation += tell

    def free(self, id_):
        self.busy[id_] = 0
        self.generation += 1

    def ready(self, credential):
        if credential.max_in_flight and self.in_flight(credential.id) >= credential.max_in_flight:
            return False
        blocked = self.blocked(credential.id, "m")
        return blocked is None or blocked.probe_allowed

    def blocked(self, credential_id, upstream_model):
        self.asked += 1
        for key in ((credential_id, None), (credential_id, upstream_model)):
            found = self._blocked.get(key)
            if found is not None and (found.until is None or found.until > self.now):
                return found
        return None

    def in_flight(self, credential_id):
        return self.busy.get(credential_id, 0)
