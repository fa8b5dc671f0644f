"""Engines: from initial state to training result. `reference` defines the correct numbers; the others must agree."""
