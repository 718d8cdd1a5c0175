"""A trajectory: from a config to rounds, each one scored, bought and fitted."""
