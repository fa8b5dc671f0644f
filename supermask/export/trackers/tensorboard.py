"""TensorBoard: one event file per run, in a folder whose name TensorBoard displays as the run's name.

The files are written record by record with TensorBoard's own classes. The same run gives the same bytes, and neither
torch nor TensorFlow is needed.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shlex import quote
from typing import Any

from supermask.core.text import slugify
from supermask.export.trackers.record import TrackerRun

REQUIRES = ("tensorboard",)
FILE = "events.out.tfevents.{ended}.supermask"
PARTIAL = "partial"
RUN_FOLDER = re.compile(r"level-[0-9]+-seed-[0-9]+-([0-9a-f]{32})")

METRIC = "metrics/"
"""Prefix of the tags of metrics. Tags of curves have no prefix."""


@contextmanager
def open_tracker(folder: Path) -> Iterator[EventFiles]:
    """Open the event files below `folder`."""
    yield EventFiles(folder)


def view_command(folder: Path) -> str:
    """Return the shell command that displays the runs."""
    return f"tensorboard --logdir {quote(str(folder))}"


class EventFiles:
    """Event files `<treatment>/level-03-seed-0-<run id>/events.out.tfevents...`. Each file is written atomically."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # Remains of a killed export.
        for partial in folder.glob(f"*/*/{PARTIAL}"):
            partial.unlink()
            with suppress(OSError):
                partial.parent.rmdir()

    def sent_run_ids(self) -> set[str]:
        """Return the ids of the runs that have an event file."""
        matches = (RUN_FOLDER.fullmatch(path.parent.name) for path in self.folder.glob("*/*/events.out.tfevents.*"))
        return {match[1] for match in matches if match}

    def send(self, run: TrackerRun) -> None:
        """Add a run. Raises OSError."""
        from tensorboard.summary.writer.record_writer import RecordWriter

        name = f"level-{run.params['level']:02}-seed-{run.params['seed']}-{run.run_id}"
        folder = self.folder / slugify(run.tags["treatment"]) / name
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / PARTIAL
        with partial.open("wb") as file:
            writer = RecordWriter(file)
            for event in _events(run):
                writer.write(event.SerializeToString(deterministic=True))
            writer.flush()
        partial.replace(folder / FILE.format(ended=int(run.ended)))


def _events(run: TrackerRun) -> Iterator[Any]:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    last = int(run.params["iterations"])
    yield Event(wall_time=run.began, file_version="brain.Event:2")
    yield Event(wall_time=run.began, summary=Summary(value=[_session_start(run)]))
    points = [(name, i, value) for name, curve in run.curves.items() for i, value in curve]
    points += [(METRIC + name, last, value) for name, value in run.metrics.items()]
    for tag, iteration, value in points:
        # Times of evaluations are not stored; they are interpolated, so that curves over time have the right shape.
        time = run.began + (iteration / last if last else 1.0) * (run.ended - run.began)
        yield Event(wall_time=time, step=iteration, summary=Summary(value=[Summary.Value(tag=tag, simple_value=value)]))
    yield Event(wall_time=run.ended, summary=Summary(value=[_session_end(run)]))


def _session_start(run: TrackerRun) -> Any:
    """Encode the run's params for the page HPARAMS."""
    from google.protobuf.struct_pb2 import Value
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    start = plugin_data_pb2.SessionStartInfo(group_name=run.run_id, start_time_secs=run.began)
    for name, value in run.params.items():
        kind = {bool: "bool_value", str: "string_value"}.get(type(value), "number_value")
        start.hparams[name].CopyFrom(Value(**{kind: value}))
    return _plugin_value(metadata.SESSION_START_INFO_TAG, session_start_info=start)


def _session_end(run: TrackerRun) -> Any:
    from tensorboard.plugins.hparams import api_pb2, metadata, plugin_data_pb2

    end = plugin_data_pb2.SessionEndInfo(status=api_pb2.STATUS_SUCCESS, end_time_secs=run.ended)
    return _plugin_value(metadata.SESSION_END_INFO_TAG, session_end_info=end)


def _plugin_value(tag: str, **content: Any) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
    from tensorboard.plugins.hparams import metadata, plugin_data_pb2

    data = plugin_data_pb2.HParamsPluginData(version=metadata.PLUGIN_DATA_VERSION, **content)
    about = SummaryMetadata.PluginData(
        plugin_name=metadata.PLUGIN_NAME, content=data.SerializeToString(deterministic=True)
    )
    return Summary.Value(tag=tag, metadata=SummaryMetadata(plugin_data=about), tensor=metadata.NULL_TENSOR)
