"""What the tests share: oracles, small studies, stores, faulty disks, readers."""
