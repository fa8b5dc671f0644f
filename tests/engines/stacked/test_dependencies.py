"""The stacked engine needs torch and NumPy only: machines with a GPU often have no compiler stack and no network."""

from __future__ import annotations

import subprocess
import sys

import pytest

BLOCKED = ("pydantic", "pydantic_core", "ruamel", "numba", "llvmlite", "scipy", "duckdb", "sklearn", "matplotlib")

TRAIN = f"""
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {BLOCKED!r}:
            raise ImportError(f"{{name}} is blocked")

sys.meta_path.insert(0, Blocker())

import numpy as np
from supermask.core.recipe import Recipe
from supermask.core.types import SplitData
from supermask.engines import stacked
from supermask.engines.job import TrainingJob
from supermask.networks.network import sequential_network
from supermask.networks.sequential import architecture, initial_state

images, labels = np.zeros((20, 1, 4, 4), np.uint8), np.arange(20) % 2
data = SplitData(images, labels, np.arange(20), images, labels, images, labels, 255)
layers = architecture("fc-4", (1, 4, 4), 2)
network, recipe = sequential_network(layers), Recipe("adam", 1e-3, 5, 4, 2)
jobs = [TrainingJob(network, initial_state(layers, seed), recipe, seed) for seed in (0, 1)]
print([result.status for result in stacked.train(jobs, [data] * 2)])
assert not [name for name in sys.modules if name.partition(".")[0] in {BLOCKED!r}]
"""


@pytest.mark.slow
def test_it_trains_without_pydantic_and_numba() -> None:
    result = subprocess.run([sys.executable, "-c", TRAIN], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "['finished', 'finished']\n"
