"""Functions for notebooks and scripts: run a study, get its table, show its figures.

    import supermask as sm
    sm.run("mask-criteria", scale="digits")
    sm.table("mask-criteria", scale="digits").df()
    sm.figure("mask-criteria", "accuracy", scale="digits")

A study is a shipped name, a study file, a dict with the keys of a study file, or a `Study`. Settings are keyword
arguments: `seeds=[0, 1]`, `train={"lr": 1e-3}` or `**{"train.lr": 1e-3}`, checked like overrides of the command line.
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
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from supermask.api import runs
from supermask.core.environment import expand_path
from supermask.core.errors import RunsRefused, UserError, quote
from supermask.core.text import Row
from supermask.core.text_output import survive_lost_output
from supermask.execution.local import StudyInterrupted, TaskListener
from supermask.execution.progress import inline_progress_listener, progress_listener, run_labels
from supermask.execution.run import ListenerFactory
from supermask.execution.scheduler import KeepPolicy, Scheduler
from supermask.execution.tasks import emptied_message
from supermask.reporting.figures import RenderedFigure, save_figure, to_png
from supermask.reporting.figures.catalog import study_figures
from supermask.reporting.figures.save import figure_stem
from supermask.reporting.status import format_counts
from supermask.store import tables
from supermask.store.location import output_path
from supermask.study import StudyLike, load_study
from supermask.study.plan import Plan

if TYPE_CHECKING:
    from duckdb import DuckDBPyRelation
    from matplotlib.figure import Figure as MatplotlibFigure


@dataclass(frozen=True)
class StudyStatus:
    """Status of the runs of a study, as `run` and `status` return it; its repr is one line."""

    study: str
    status: Mapping[str, str]
    """Run id -> status: finished, diverged, certificate_failed, ancestor_diverged or ancestor_certificate_failed; or
    to_do, which `status` alone gives."""
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
    """Train the missing runs of a study on `workers` processes (default: one per core), with a progress display.

    After an interruption the same call resumes; finished runs are never repeated. No `if __name__ == "__main__"` is
    needed. Raises UserError, SystemFailure, and KeyboardInterrupt.
    """
    loaded = load_study(study, settings_to_overrides(settings))
    try:
        with progress_display() as listener:
            scheduler = runs.run(loaded, (), _path(store), workers, engine, device, keep, listener)
    except StudyInterrupted as interruption:
        raise KeyboardInterrupt(f"{interruption.remaining:,} runs are left; the same call resumes.") from None
    result = StudyStatus(loaded.name, dict(scheduler.status), scheduler.store.root)
    if refused := [run_id for run_id, status in result.status.items() if status == "certificate_failed"]:
        emptied = emptied_message(scheduler.store, refused)
        raise RunsRefused(
            f"{result}. "
            + (emptied or "Runs whose certificate failed are not results: `supermask verify` prints the reason.")
        )
    if message := runs.missing_result(list(result.status.values()), "this study"):
        warnings.warn(message, stacklevel=2)
    return result


def table(study: StudyLike, *, store: str | Path | None = None, **settings: object) -> DuckDBPyRelation:
    """Return one row per run of the study, finished or not, as a DuckDB relation; `tables.COLUMNS` lists the columns.

    Convert it with `.df()` (pandas), `.pl()` (Polars), `.arrow()` or `.fetchall()`; select with `.filter("level = 1")`,
    `.aggregate(...)` or `.query("runs", "SELECT ... FROM runs")`. Raises UserError; warns of damaged runs.
    """
    _, rows = _rows(study, store, settings)
    return tables.to_relation(rows)


class Figure:
    """A figure that a notebook displays as a PNG image that includes the caption."""

    def __init__(self, rendered: RenderedFigure, stem: str) -> None:
        self.rendered = rendered
        self.stem = stem
        """File name without suffix."""

    @property
    def figure(self) -> MatplotlibFigure:
        """The matplotlib figure, to change and save as you like."""
        return self.rendered.figure

    @property
    def caption(self) -> str:
        """Caption, as plain text."""
        return self.rendered.caption

    @property
    def data(self) -> list[Row]:
        """Plotted values, one row per point."""
        return self.rendered.data_rows

    def save(self, folder: str | Path = "figures") -> list[Path]:
        """Write PDF, SVG, PNG and the data as CSV; return their paths. Raises UserError, SystemFailure."""
        return save_figure(self.rendered, output_path(folder), self.stem)

    @cached_property
    def _png(self) -> bytes:
        return to_png(self.rendered)

    def _repr_png_(self) -> bytes:
        return self._png

    def _repr_html_(self) -> str:
        source = base64.b64encode(self._png).decode()
        width = round(96 * self.rendered.figure.get_figwidth())
        style = f"width: {width}px; max-width: 100%; height: auto; background: white"
        return f'<img alt="{escape(self.caption)}" style="{style}" src="data:image/png;base64,{source}">'

    def __repr__(self) -> str:
        return f"{self.stem}: {self.caption}"


class Figures(Mapping[str, Figure]):
    """All figures of a study by name; a notebook displays them one below the other."""

    def __init__(self, figures: Mapping[str, Figure]) -> None:
        self._figures = dict(figures)

    def __getitem__(self, name: str) -> Figure:
        return self._figures[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._figures)

    def __len__(self) -> int:
        return len(self._figures)

    def save(self, folder: str | Path = "figures") -> list[Path]:
        """Write all figures: see `Figure.save`."""
        return [path for figure in self.values() for path in figure.save(folder)]

    def _repr_html_(self) -> str:
        return "\n<br>\n".join(figure._repr_html_() for figure in self.values())

    def __repr__(self) -> str:
        return "\n".join(map(repr, self.values()))


Tables = Sequence[str | Path] | str | Path
"""One Parquet table of runs or several."""


@overload
def figure(
    study: StudyLike, name: str, *, store: str | Path | None = None, rows: Tables = (), **settings: object
) -> Figure: ...
@overload
def figure(
    study: StudyLike, name: None = None, *, store: str | Path | None = None, rows: Tables = (), **settings: object
) -> Figures: ...
def figure(
    study: StudyLike, name: str | None = None, *, store: str | Path | None = None, rows: Tables = (), **settings: object
) -> Figure | Figures:
    """Draw a figure of a study, such as `accuracy`, from its finished runs; without a name, draw all of them.

    `rows`: Parquet tables of runs to read in place of a store. Raises UserError if no run has finished, or if the study
    has no such figure.
    """
    advice = "`run` it first, with the same settings and the same store."
    source = runs.read_finished_runs(study, settings_to_overrides(settings), _path(store), expand_tables(rows), advice)
    for text in source.notices:
        warnings.warn(text, stacklevel=2)
    only = () if name is None else (name,)
    drawn = study_figures(source.plan, source.rows, source.store, only=only, find_rows=source.find_rows)
    figures = {key: Figure(rendered, figure_stem(source.plan.study.name, key)) for key, rendered in drawn.items()}
    return Figures(figures) if name is None else figures[name]


def expand_tables(rows: Tables) -> list[Path]:
    """Return the paths of one table or of several."""
    return [expand_path(path) for path in ([rows] if isinstance(rows, str | Path) else rows)]


def settings_to_overrides(settings: Mapping[str, object]) -> list[str]:
    """Convert keyword arguments to overrides `KEY=VALUE`, with the value as JSON, which is valid YAML.

    Raises UserError for a value that is not plain data.
    """
    overrides = []
    for key, value in settings.items():
        if key == "scale":
            overrides.append(f"scale={value}")
            continue
        try:
            text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_to_yaml_value)
        except (TypeError, ValueError):
            raise UserError(
                f"setting {quote(key)}: {quote(value)} is not a number, a string, a bool, or a list or dict of them."
            ) from None
        overrides.append(f"{key}={text}")
    return overrides


def _to_yaml_value(value: Any) -> Any:
    """Convert a range or a NumPy value to plain data."""
    if isinstance(value, range):
        return list(value)
    if type(value).__module__ == "numpy":
        return value.tolist()
    raise TypeError(value)


def _rows(study: StudyLike, store: str | Path | None, settings: Mapping[str, object]) -> tuple[Plan, list[Row]]:
    plan, rows, damaged = runs.study_rows(study, settings_to_overrides(settings), _path(store))
    for text in damaged:
        warnings.warn(text, stacklevel=3)  # 3: the line of the user that called `table` or `figure`
    return plan, rows


def _path(store: str | Path | None) -> Path | None:
    return None if store is None else expand_path(store).resolve()


def _progress_listener(plans: Sequence[Plan], scheduler: Scheduler) -> AbstractContextManager[TaskListener]:
    """In a Jupyter notebook show one line that is updated in place, elsewhere the display of the command line."""
    for text in scheduler.damaged:
        warnings.warn(text, stacklevel=2)
    name, labels, tasks = plans[0].study.name, run_labels(plans), scheduler.tasks_left
    if tasks and _in_notebook():
        return inline_progress_listener(name, _notebook_line(), labels, tasks)
    from rich.console import Console

    return progress_listener(name, Console(soft_wrap=True), labels, tasks)


def _in_notebook() -> bool:
    """True in a Jupyter kernel, which has imported IPython before it runs a cell."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


def _notebook_line() -> Any:
    """Display a line of text in the current cell; return the function that replaces it."""
    handle = import_module("IPython.display").display({"text/plain": "starting"}, raw=True, display_id=True)
    return lambda line: handle.update({"text/plain": line}, raw=True)


@contextmanager
def progress_display() -> Iterator[ListenerFactory]:
    """Yield the display of progress for `runs.run`, with one thread per worker process while it is used."""
    with _limit_threads(), survive_lost_output(raise_at_end=False):
        yield _progress_listener


@contextmanager
def _limit_threads() -> Iterator[None]:
    """Set one thread for worker processes, as the command line does; torch in the notebook keeps its threads."""
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        yield
    finally:
        if before is None:
            del os.environ["OMP_NUM_THREADS"]
