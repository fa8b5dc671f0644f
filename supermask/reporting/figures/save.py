"""Rendered figures and their files: PDF, SVG, PNG and the CSV of the numbers, byte-identical for equal rows."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from supermask.analysis.stats import MeanInterval
from supermask.core.errors import SystemFailure, UserError
from supermask.core.files import write_atomic
from supermask.core.text import Row, slugify
from supermask.reporting.figures.style import style_context
from supermask.store.tables import to_csv

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMATS: dict[str, dict[str, None]] = {
    "pdf": {"CreationDate": None},
    "svg": {"Date": None},
    "png": {},
}
"""File format -> metadata to omit, so that files do not depend on the time of writing."""

DPI = 200
"""Dots per inch of PNG files."""


@dataclass(frozen=True)
class RenderedFigure:
    """A figure, its caption and the numbers that it shows."""

    figure: Figure
    caption: str
    data_rows: list[Row]


def mean_columns(mean: MeanInterval) -> Row:
    """Return the columns `n`, `mean`, `mean_low95` and `mean_high95` of a data row."""
    return {"n": mean.n, "mean": mean.mean, "mean_low95": mean.low, "mean_high95": mean.high}


def format_values(values: Mapping[int, float]) -> str:
    """Format values by seed for the column `values_by_seed`: `0=97.1 1=97.3`."""
    return " ".join(f"{seed}={value:.6g}" for seed, value in sorted(values.items()))


def save_figure(drawn: RenderedFigure, out_dir: Path, stem: str) -> list[Path]:
    """Write STEM.pdf, .svg, .png and .csv into `out_dir`, which is created if missing; STEM is `slugify(stem)`.

    Returns the paths. Raises UserError if `out_dir` is not a folder, SystemFailure if it cannot be written.
    """
    paths = [Path(out_dir) / f"{slugify(stem)}.{suffix}" for suffix in FORMATS]
    with _output_dir(out_dir), style_context():
        for path, (suffix, metadata) in zip(paths, FORMATS.items(), strict=True):
            data = io.BytesIO()
            drawn.figure.savefig(data, format=suffix, dpi=DPI, metadata=metadata)
            write_atomic(path, data.getvalue())
    return [*paths, save_table(drawn.data_rows, out_dir, stem)]


def to_png(drawn: RenderedFigure) -> bytes:
    """Return the PNG that `save_figure` writes."""
    buffer = io.BytesIO()
    with style_context():
        drawn.figure.savefig(buffer, format="png", dpi=DPI, metadata=FORMATS["png"])
    return buffer.getvalue()


def save_table(rows: Sequence[Row], out_dir: Path, stem: str) -> Path:
    """Write at least one row as STEM.csv into `out_dir` and return the path. Raises as `save_figure` does."""
    path = Path(out_dir) / f"{slugify(stem)}.csv"
    with _output_dir(out_dir):
        write_atomic(path, to_csv(rows, list(rows[0])).encode())
    return path


@contextmanager
def _output_dir(out_dir: Path) -> Iterator[None]:
    """Create the folder; turn errors of the file system within the context into UserError or SystemFailure."""
    try:
        Path(out_dir).mkdir(parents=True, exist_ok=True)
        yield
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{out_dir} is not a folder: give a folder to write figures to") from error
    except OSError as error:
        raise SystemFailure(f"the figure cannot be written to {out_dir}: {error.strerror or error}") from error
