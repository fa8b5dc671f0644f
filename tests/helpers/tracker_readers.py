"""Readers of exported trackers with the trackers' own libraries: run id -> name, params, metrics, curves."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from supermask.export.trackers.record import METRICS

Points = list[tuple[int, float]]


@dataclass
class TrackedRun:
    """A run as a tracker stores it."""

    name: str = ""
    params: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    curves: dict[str, Points] = field(default_factory=dict)


def tensorboard(folder: Path) -> dict[str, TrackedRun]:
    """Read event files with TensorBoard's EventAccumulator, as its pages do."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    runs = {}
    for path in folder.glob("**/*tfevents*"):
        events = EventAccumulator(str(path.parent), size_guidance={"scalars": 0})
        events.Reload()
        scalars = {tag: [(p.step, p.value) for p in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
        about = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
        start = HParamsPluginData.FromString(about).session_start_info
        params = {name: getattr(value, value.WhichOneof("kind")) for name, value in start.hparams.items()}
        metrics = {tag.removeprefix("metrics/"): v[0][1] for tag, v in scalars.items() if tag.startswith("metrics/")}
        curves = {tag: points for tag, points in scalars.items() if not tag.startswith("metrics/")}
        assert start.group_name not in runs
        runs[start.group_name] = TrackedRun(str(path.parent.relative_to(folder)), params, metrics, curves)
    return runs


def wandb(folder: Path) -> dict[str, TrackedRun]:
    """Read run files with W&B's record type; W&B itself reads them only in compiled code."""
    from wandb.proto.wandb_internal_pb2 import Record

    runs: dict[str, TrackedRun] = {}
    for path in folder.glob("offline-run-*/run-*.wandb"):
        tracked, kinds, run_id = TrackedRun(), [], ""
        for data in records(path.read_bytes()):
            record = Record.FromString(data)
            kinds.append(record.WhichOneof("record_type"))
            if record.HasField("run"):
                run_id, tracked.name = record.run.run_id, record.run.display_name
                tracked.params = {
                    u.key: json.loads(u.value_json) for u in record.run.config.update if u.key != "_wandb"
                }
            elif record.HasField("history"):
                values = {(i.key or i.nested_key[0]): json.loads(i.value_json) for i in record.history.item}
                for name in values.keys() & {"training_loss", "validation_loss", "validation_accuracy"}:
                    tracked.curves.setdefault(name, []).append((record.history.step.num, values[name]))
            elif record.HasField("summary"):
                updates = {(u.key or u.nested_key[0]): json.loads(u.value_json) for u in record.summary.update}
                tracked.metrics |= {k: v for k, v in updates.items() if k in METRICS}
        assert kinds[-1] in ("exit", "final", "footer"), kinds
        assert path.parent.name.endswith(f"-{run_id}") and path.stem == f"run-{run_id}"
        runs[run_id] = tracked
    return runs


def records(data: bytes) -> Iterator[bytes]:
    """Yield the records of a .wandb file: LevelDB log format (32 kB blocks, checksum, length, kind) after 7 bytes."""
    assert data[:4] == b":W&B"
    position, record = 7, b""
    while position + 7 <= len(data):
        if 32768 - position % 32768 < 7:
            position += 32768 - position % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + 7])
        record += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):
            yield record
            record = b""


def mlflow(folder: Path) -> dict[str, TrackedRun]:
    """Read runs with MlflowClient."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    runs = {}
    for run in client.search_runs([e.experiment_id for e in client.search_experiments()], max_results=1000):
        assert run.info.status == "FINISHED"
        curves = {}
        for name in ("training_loss", "validation_loss", "validation_accuracy"):
            history = client.get_metric_history(run.info.run_id, name)
            if history:
                curves[name] = sorted((m.step, m.value) for m in history)
        run_id = run.data.tags["supermask.run_id"]
        assert run_id not in runs
        metrics = {name: value for name, value in run.data.metrics.items() if name not in curves}
        runs[run_id] = TrackedRun(str(run.info.run_name), dict(run.data.params), metrics, curves)
    return runs


READERS: dict[str, Callable[[Path], dict[str, TrackedRun]]] = {
    "tensorboard": tensorboard,
    "wandb": wandb,
    "mlflow": mlflow,
}
