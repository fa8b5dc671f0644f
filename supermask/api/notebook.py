"""Studies in a notebook or a script: run one, have its table, see its figures.

    import supermask as sm
    sm.run("mask-criteria", scale="digits")
    sm.table("mask-criteria", scale="digits").df()
    sm.figure("mask-criteria", "accuracy", scale="digits")

A study is a shipped name, a study file, plain data with a study file's keys, or a `Study`. Settings are keyword
arguments: `seeds=[0, 1]`, `train={"lr": 1e-3}` or `**{"train.lr": 1e-3}`, with the same checks as everywhere.
"""

from __future__ import annotations

import base64
import json
import os
import sys
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from supermask.api import runs
from supermask.core.errors import SystemFailure, UserError, did_you_mean, quote
from supermask.core.text import Row
from supermask.execution.local import StudyInterrupted, TaskListener
from supermask.execution.progress import inline_progress_listener, progress_listener, run_labels
from supermask.execution.scheduler import KeepPolicy, Scheduler
from supermask.reporting.figures import RenderedFigure, save_figure, to_png
from supermask.reporting.figures.catalog import study_figures
from supermask.reporting.status import format_counts
from supermask.store import Store, tables
from supermask.study import StudyLike, load_study
from supermask.study.plan import Plan

if TYPE_CHECKING:
    from duckdb import DuckDBPyRelation


@dataclass(frozen=True)
class StudyStatus:
    """How a study stands after `run`; shown as one line."""

    study: str
    status: Mapping[str, str]
    """Run id -> finished, diverged, or ancestor_diverged."""
    store: Path

    def __repr__(self) -> str:
        return f"{self.study}: {format_counts(list(self.status.values()))}. Store: {self.store}"


def run(
    study: StudyLike,
    *,
    store: str | Path | None = None,
    workers: int | None = None,
    engine: str = "auto",
    device: str = "cpu",
    keep: KeepPolicy = "all",
    **settings: object,
) -> StudyStatus:
    """Trains what is missing of a study, on `workers` processes (default: one a core), and shows how far it is.

    Interrupted, the same call goes on; finished runs are never repeated. No `if __name__ == "__main__"` is needed.
    Raises UserError, MachineError, and KeyboardInterrupt.
    """
    asked = load_study(study, settings_to_overrides(settings))
    try:
        with _limit_threads():
            schedule = runs.run(asked, (), _path(store), workers, engine, device, keep, _progress_listener)
    except StudyInterrupted as stopped:
        raise KeyboardInterrupt(f"{stopped.remaining:,} runs are left; the same call goes on from here.") from None
    ran = StudyStatus(asked.name, dict(schedule.status), schedule.store.root)
    if "certificate_failed" in ran.status.values():
        raise SystemFailure(f"{ran}. They are no results: `supermask verify` says why.")
    return ran


def table(study: StudyLike, *, store: str | Path | None = None, **settings: object) -> DuckDBPyRelation:
    """A row a run of the study, done or not, with the columns and types of `tables.COLUMNS`, as a DuckDB relation.

    `.df()` (pandas), `.pl()` (Polars), `.arrow()`, `.fetchall()`; `.filter("level = 1")`, `.aggregate(...)`, and
    `.query("runs", "SELECT ... FROM runs")`. Raises UserError; damaged runs are warned of.
    """
    _, rows = _rows(study, store, settings)
    return tables.to_relation(rows)


class Figure:
    """A figure that a notebook shows: the picture, with its caption in it."""

    def __init__(self, drawn: RenderedFigure, stem: str) -> None:
        self.drawn = drawn
        self.stem = stem
        """What its files are called."""

    @property
    def caption(self) -> str:
        """The sentences below it."""
        return self.drawn.caption

    @property
    def data(self) -> list[Row]:
        """The numbers that it shows, a row each."""
        return self.drawn.data_rows

    def save(self, folder: str | Path = "figures") -> list[Path]:
        """Writes PDF, SVG, PNG and the CSV behind them; gives their paths. Raises UserError, MachineError."""
        return save_figure(self.drawn, Path(folder), self.stem)

    @cached_property
    def _png(self) -> bytes:
        return to_png(self.drawn)

    def _repr_png_(self) -> bytes:
        return self._png

    def _repr_html_(self) -> str:
        source = base64.b64encode(self._png).decode()
        width = round(96 * self.drawn.figure.get_figwidth())
        style = f"width: {width}px; max-width: 100%; height: auto; background: white"
        return f'<img alt="{escape(self.caption)}" style="{style}" src="data:image/png;base64,{source}">'

    def __repr__(self) -> str:
        return f"{self.stem}: {self.caption}"


class Figures(Mapping[str, Figure]):
    """All figures of a study, by name; a notebook shows them one below the other."""

    def __init__(self, figures: Mapping[str, Figure]) -> None:
        self._figures = dict(figures)

    def __getitem__(self, name: str) -> Figure:
        return self._figures[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._figures)

    def __len__(self) -> int:
        return len(self._figures)

    def save(self, folder: str | Path = "figures") -> list[Path]:
        """Writes all of them: see `Figure.save`."""
        return [path for figure in self.values() for path in figure.save(folder)]

    def _repr_html_(self) -> str:
        return "\n<br>\n".join(figure._repr_html_() for figure in self.values())

    def __repr__(self) -> str:
        return "\n".join(map(repr, self.values()))


@overload
def figure(study: StudyLike, name: str, *, store: str | Path | None = None, **settings: object) -> Figure: ...
@overload
def figure(study: StudyLike, name: None = None, *, store: str | Path | None = None, **settings: object) -> Figures: ...
def figure(
    study: StudyLike, name: str | None = None, *, store: str | Path | None = None, **settings: object
) -> Figure | Figures:
    """A study's figure, such as `accuracy`, drawn from the runs that are done; without a name all of them.

    Raises UserError: nothing is done yet, or there is no such figure.
    """
    made, rows = _rows(study, store, settings)
    at = _path(store) or runs.default_store_path()
    if not any(row["status"] == "finished" for row in rows):
        raise UserError(
            f"no run of study {quote(made.study.name)} with these settings is in {at} yet: `run` it first, with the "
            "same settings and the same store."
        )
    found = {
        each: Figure(drawn, f"{made.study.name}-{each}") for each, drawn in study_figures(made, rows, Store(at)).items()
    }
    if name is None:
        return Figures(found)
    if name not in found:
        near = did_you_mean(str(name), found) or "."
        raise UserError(f"{quote(name)} is not a figure of this study{near} It has: {', '.join(found)}.")
    return found[name]


def settings_to_overrides(settings: Mapping[str, object]) -> list[str]:
    """Keyword arguments as a command line's `key=VALUE`; JSON is YAML. Raises UserError for what is no plain data."""
    overrides = []
    for key, value in settings.items():
        if key == "scale":
            overrides.append(f"scale={value}")
            continue
        try:
            text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_to_yaml_value)
        except (TypeError, ValueError):
            raise UserError(
                f"setting {quote(key)}: {quote(value)} is not a number, a text, a switch, or a list or map of them."
            ) from None
        overrides.append(f"{key}={text}")
    return overrides


def _to_yaml_value(value: Any) -> Any:
    """A range, and what NumPy counts with."""
    if isinstance(value, range):
        return list(value)
    if type(value).__module__ == "numpy":
        return value.tolist()
    raise TypeError(value)


def _rows(study: StudyLike, store: str | Path | None, settings: Mapping[str, object]) -> tuple[Plan, list[Row]]:
    made, rows, damaged = runs.study_rows(study, settings_to_overrides(settings), _path(store))
    for text in damaged:
        warnings.warn(text, stacklevel=3)
    return made, rows


def _path(store: str | Path | None) -> Path | None:
    return None if store is None else Path(store).expanduser().resolve()


def _progress_listener(plans: Sequence[Plan], schedule: Scheduler) -> AbstractContextManager[TaskListener]:
    """One line that is replaced, in a notebook; on a terminal and elsewhere what the command line shows."""
    for text in schedule.damaged:
        warnings.warn(text, stacklevel=2)
    name, labels, tasks = plans[0].study.name, run_labels(plans), schedule.tasks_left
    if tasks and _in_notebook():
        return inline_progress_listener(name, _notebook_line(), labels, tasks)
    from rich.console import Console

    return progress_listener(name, Console(soft_wrap=True), labels, tasks)


def _in_notebook() -> bool:
    """Whether a Jupyter kernel carries this out: IPython is then there already."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


def _notebook_line() -> Any:
    from IPython.display import display  # type: ignore[import-not-found,unused-ignore]

    handle = display({"text/plain": "starting"}, raw=True, display_id=True)
    return lambda line: handle.update({"text/plain": line}, raw=True)


@contextmanager
def _limit_threads() -> Iterator[None]:
    """Workers are told what the command line tells them; the notebook's own torch keeps its threads."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
