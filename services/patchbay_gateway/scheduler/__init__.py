"""The scheduler: credentials, selection, leases, journal, snapshot publishing."""
