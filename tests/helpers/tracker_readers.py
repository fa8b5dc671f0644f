"""What a tracker was sent, read back: run id -> params, metrics, curves, name. Each with the tracker's own reader."""

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
class Found:
    """A run in a tracker."""

    name: str = ""
    params: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    curves: dict[str, Points] = field(default_factory=dict)


def tensorboard(folder: Path) -> dict[str, Found]:
    """By TensorBoard's EventAccumulator, as its pages read them."""
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
        runs[start.group_name] = Found(str(path.parent.relative_to(folder)), params, metrics, curves)
    return runs


def wandb(folder: Path) -> dict[str, Found]:
    """By W&B's record type; the package itself reads these files only in its compiled part."""
    from wandb.proto.wandb_internal_pb2 import Record

    runs: dict[str, Found] = {}
    for path in folder.glob("offline-run-*/run-*.wandb"):
        found, kinds, run_id = Found(), [], ""
        for data in records(path.read_bytes()):
            record = Record.FromString(data)
            kinds.append(record.WhichOneof("record_type"))
            if record.HasField("run"):
                run_id, found.name = record.run.run_id, record.run.display_name
                found.params = {u.key: json.loads(u.value_json) for u in record.run.config.update if u.key != "_wandb"}
            elif record.HasField("history"):
                values = {(i.key or i.nested_key[0]): json.loads(i.value_json) for i in record.history.item}
                for name in values.keys() & {"training_loss", "validation_loss", "validation_accuracy"}:
                    found.curves.setdefault(name, []).append((record.history.step.num, values[name]))
            elif record.HasField("summary"):
                updates = {(u.key or u.nested_key[0]): json.loads(u.value_json) for u in record.summary.update}
                found.metrics |= {k: v for k, v in updates.items() if k in METRICS}
        assert kinds[-1] in ("exit", "final", "footer"), kinds
        assert path.parent.name.endswith(f"-{run_id}") and path.stem == f"run-{run_id}"
        runs[run_id] = found
    return runs


def records(data: bytes) -> Iterator[bytes]:
    """The records of a .wandb file: LevelDB's log format (blocks of 32 kB, checksum, length, kind) after 7 bytes."""
    assert data[:4] == b":W&B"
    at, whole = 7, b""
    while at + 7 <= len(data):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield whole
            whole = b""


def mlflow(folder: Path) -> dict[str, Found]:
    """By MlflowClient."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder}/mlflow.db")
    runs = {}
    for run in client.search_runs([each.experiment_id for each in client.search_experiments()], max_results=1000):
        assert run.info.status == "FINISHED"
        curves = {}
        for name in ("training_loss", "validation_loss", "validation_accuracy"):
            history = client.get_metric_history(run.info.run_id, name)
            if history:
                curves[name] = sorted((m.step, m.value) for m in history)
        run_id = run.data.tags["supermask.run_id"]
        assert run_id not in runs
        metrics = {name: value for name, value in run.data.metrics.items() if name not in curves}
        runs[run_id] = Found(str(run.info.run_name), dict(run.data.params), metrics, curves)
    return runs


READERS: dict[str, Callable[[Path], dict[str, Found]]] = {"tensorboard": tensorboard, "wandb": wandb, "mlflow": mlflow}
