"""The host's side of the plugin contract: snapshot, registry, addresses, breakers, policy."""
