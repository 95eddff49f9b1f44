"""From the spec of a Plugin to the objects that run it: pure, no cluster and no clock."""
