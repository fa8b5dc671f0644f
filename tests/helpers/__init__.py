"""Shared by the tests: oracles, small studies, stores, faulty disks, readers."""
