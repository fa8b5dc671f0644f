"""docs/store.md: each line of the table of promises names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "store.md").read_text()


def test_every_promise_names_an_existing_test() -> None:
    table = PAGE.partition("## What is promised")[2].partition("\nThis holds on")[0]
    lines = [line for line in table.splitlines() if line.startswith("| **")]
    assert len(lines) >= 30
    assert all(any(line.startswith(f"| **{kind}") for line in lines) for kind in ("Detected", "Repaired", "Not seen"))
    tests = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    for line in lines:
        evidence = line.split("|")[2]
        named = re.findall(r"`(test_\w+)(\.py)?`", evidence)
        assert named or "the same" in evidence, line
        for name, suffix in named:
            assert (Path(__file__).parent / f"{name}.py").is_file() if suffix else f"def {name}(" in tests, name
