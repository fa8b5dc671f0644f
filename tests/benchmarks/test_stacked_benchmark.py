"""The benchmark of the stacked engine runs, on the CPU and on a pretended GPU."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from helpers.harness import IS_FULL
from helpers.pretend_gpu import pretend_gpu

from supermask.core.types import SplitData
from supermask.engines import stacked
from supermask.engines.stacked.cuda_graph import WARMUP_STEPS
from supermask.networks.sequential import Architecture, Conv


@pytest.mark.slow
@pytest.mark.parametrize(("device", "precision"), [("cpu", "float32"), ("cuda", "float32"), ("cuda", "bfloat16")])
def test_the_benchmark_runs_for_every_network(
    device: str, precision: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On small images: only that it runs; no number is checked."""
    benchmark = import_file(Path(__file__).parents[2] / "benchmarks" / "stacked.py", monkeypatch)
    monkeypatch.setattr(benchmark, "PRODUCTS", {"cpu": (8,), "cuda": (8, 16)})
    monkeypatch.setattr(benchmark, "SHAPES", dict.fromkeys(benchmark.SHAPES, (3, 8, 8)))
    monkeypatch.setattr(benchmark, "BATCH", 2)
    # Enough that a step is recorded and replayed.
    monkeypatch.setattr(benchmark, "MIN_STEPS", dict.fromkeys(benchmark.MIN_STEPS, WARMUP_STEPS + 1))
    synthetic_data = benchmark.synthetic_data
    monkeypatch.setattr(benchmark, "synthetic_data", lambda shape: with_few_images(synthetic_data(shape)))
    monkeypatch.setattr(stacked, "choose_conv_algorithms", lambda layers, *_: dict.fromkeys(names(layers), "grouped"))
    every = (device, precision) == ("cuda", "float32")
    networks, replicas = (["fc", "conv2", "conv4", "conv6"], [3]) if every else (["conv2"], [1, 3] if IS_FULL else [3])
    out = tmp_path / "found.json"
    told = ["--device", device, "--precision", precision, "--networks", *networks, "--replicas", *map(str, replicas)]
    monkeypatch.setattr("sys.argv", ["stacked.py", *told, "--steps", "1", "--turns", "1", "--out", str(out)])
    with pretend_gpu():
        benchmark.main()
    found = json.loads(out.read_text())
    assert [(line["network"], line["replicas"]) for line in found["measured"]] == [
        (n, r) for n in networks for r in replicas
    ]
    for line in found["measured"]:
        assert (line["bytes"] is None) == (device == "cpu")
        assert line["share_of_peak"] == pytest.approx(line["flops"] / found["peak_flops"])
        times = [line[name] for name in line if name.endswith("_ms") and name != "backward_ms"]
        assert len(times) == 5
        assert all(time > 0 for time in times)


def with_few_images(data: SplitData) -> SplitData:
    """Return the data with 20 images to evaluate on, not 1,000."""
    images, labels = data.test_images[:20], data.test_labels[:20]
    return replace(data, validation_images=images, validation_labels=labels, test_images=images, test_labels=labels)


def names(layers: Architecture) -> list[str]:
    return [layer.name for layer in layers if isinstance(layer, Conv)]


def import_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    spec = spec_from_file_location(f"benchmark_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    return module
