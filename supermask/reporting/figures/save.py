"""A drawn figure, and its files: PDF, SVG, PNG and the CSV behind them, the same bytes for the same rows."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

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
"""Format -> the metadata to leave out, so that no file says when it was made."""

DPI = 200


@dataclass(frozen=True)
class RenderedFigure:
    """A figure, the sentence below it, and the numbers it shows."""

    figure: Figure
    caption: str
    data_rows: list[Row]


def save_figure(drawn: RenderedFigure, out_dir: Path, stem: str) -> list[Path]:
    """Write STEM.pdf, .svg, .png and .csv into `out_dir`, which is made where it is missing; STEM is `slug(stem)`.

    Raises UserError where `out_dir` is no folder, MachineError where it cannot be written.
    """
    paths = [Path(out_dir) / f"{slugify(stem)}.{suffix}" for suffix in FORMATS]
    with _output_dir(out_dir), style_context():
        for path, (suffix, metadata) in zip(paths, FORMATS.items(), strict=True):
            data = io.BytesIO()
            drawn.figure.savefig(data, format=suffix, dpi=DPI, metadata=metadata)
            write_atomic(path, data.getvalue())
    return [*paths, save_table(drawn.data_rows, out_dir, stem)]


def to_png(drawn: RenderedFigure) -> bytes:
    """The PNG that `save` writes."""
    data = io.BytesIO()
    with style_context():
        drawn.figure.savefig(data, format="png", dpi=DPI, metadata=FORMATS["png"])
    return data.getvalue()


def save_table(rows: Sequence[Row], out_dir: Path, stem: str) -> Path:
    """Write rows, of which there is at least one, as STEM.csv; errors as those of `save`."""
    path = Path(out_dir) / f"{slugify(stem)}.csv"
    with _output_dir(out_dir):
        write_atomic(path, to_csv(rows, list(rows[0])).encode())
    return path


@contextmanager
def _output_dir(out_dir: Path) -> Iterator[None]:
    """Makes the folder, and says what is wrong with it."""
    try:
        Path(out_dir).mkdir(parents=True, exist_ok=True)
        yield
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{out_dir} is not a folder: figures need a folder to be written to") from error
    except OSError as error:
        raise SystemFailure(f"the figure cannot be written to {out_dir}: {error.strerror or error}") from error
