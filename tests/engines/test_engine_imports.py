"""Engines train without the packages of other layers: a machine that only trains needs no config or YAML library.

Nor do they import PyTorch's compiler, which takes a second and 70 MB per process.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BLOCKED = ("pydantic", "ruamel", "typer", "rich", "matplotlib", "duckdb", "scipy", "torch._dynamo")

PROGRAM = """
import sys
for name in {blocked!r}:
    sys.modules[name] = None
import numpy as np
from supermask.core.recipe import Recipe
from supermask.core.types import SplitData
from supermask.engines import {module} as engine
from supermask.engines.job import TrainingJob
from supermask.networks.network import sequential_network
from supermask.networks.sequential import architecture, initial_state
layers = architecture("fc-8", (1, 3, 4), 4)
images, labels = np.zeros((6, 1, 3, 4), np.uint8), np.arange(6) % 4
data = SplitData(images, labels, np.arange(6), images, labels, images, labels, 16)
job = TrainingJob(sequential_network(layers), initial_state(layers, 0), Recipe("sgd", 0.1, 3, 2, 2), seed=0)
print(engine.train([job], [data])[0].status)
from supermask.engines import mask_evaluation, reference_masks, selection
"""


@pytest.mark.slow
@pytest.mark.parametrize("module", ["sparse", "reference"])
def test_an_engine_trains_without_the_packages_of_other_layers(module: str) -> None:
    """The modules that learn and evaluate masks are imported without them too."""
    command = [sys.executable, "-c", PROGRAM.format(blocked=BLOCKED, module=module)]
    root = Path(__file__).parents[2]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert (result.stdout.strip(), result.returncode) == ("finished", 0), result.stderr
