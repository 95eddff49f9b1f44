"""What the scheduler must not lose: a record per credential, behind one port with adapters."""
