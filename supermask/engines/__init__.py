"""Engines: from starts to outcomes. `reference` defines what is correct; the others have to agree with it."""
