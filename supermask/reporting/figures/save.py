"""Rendered figures and their files: PDF, SVG, PNG and the CSV of the numbers, byte-identical for equal rows."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from supermask.analysis.stats import MeanInterval
from supermask.core.errors import SystemFailure, UserError, quote
from supermask.core.files import write_atomic
from supermask.core.text import Row, slugify
from supermask.reporting.figures.style import style_context
from supermask.reporting.tables import TextTable, format_latex, format_markdown, table_of_rows
from supermask.store.tables import to_csv

if TYPE_CHECKING:
    from matplotlib.figure import Figure

METADATA: dict[str, dict[str, None]] = {"pdf": {"CreationDate": None}, "svg": {"Date": None}, "png": {}}
"""Image format -> metadata to omit, so that files do not depend on the time of writing."""

DEFAULT_FORMATS = tuple(METADATA)
FORMATS = (*METADATA, "tex", "md")
"""File formats of a figure: images, and its numbers as a LaTeX or Markdown table."""

DPI = 200
"""Dots per inch of PNG files."""


@dataclass(frozen=True)
class RenderedFigure:
    """A figure, its caption and the numbers that it shows."""

    figure: Figure
    caption: str
    data_rows: list[Row]
    table: TextTable | None = None
    """Table for LaTeX and Markdown, if it is another one than `data_rows`."""


def mean_columns(mean: MeanInterval) -> Row:
    """Return the columns `n`, `mean`, `mean_low95` and `mean_high95` of a data row."""
    return {"n": mean.n, "mean": mean.mean, "mean_low95": mean.low, "mean_high95": mean.high}


def format_values(values: Mapping[int, float]) -> str:
    """Format values by seed for the column `values_by_seed`: `0=97.1 1=97.3`."""
    return " ".join(f"{seed}={value:.6g}" for seed, value in sorted(values.items()))


MAX_STEM = 60
"""Length of a file name without suffix, as `slugify` cuts it."""


def figure_stem(group: str, name: str) -> str:
    """Return the file name without suffix of the figure `name` of a study or of another `group`.

    A group that is too long is cut, the name is not: figures of one group never share a file name. A group that is
    cut, or that has no letter of a file name, gets a checksum, so that two such groups differ.
    """
    end, start = slugify(name), slugify(group)
    room = MAX_STEM - len(end) - 1
    if len(start) > room or (start == slugify("") and start != group):
        checksum = f"{zlib.crc32(group.encode('utf-8', 'replace')):08x}"
        start = f"{start[: max(0, room - len(checksum) - 1)]}-{checksum}"
    return slugify(f"{start}-{end}")


def save_figure(
    drawn: RenderedFigure, out_dir: Path, stem: str, formats: Sequence[str] = DEFAULT_FORMATS
) -> list[Path]:
    """Write a figure as STEM.FORMAT for each of `formats`, its data rows as STEM.csv and its caption as STEM.txt.

    STEM is `slugify(stem)`; `out_dir` is created if missing. Returns the paths. Raises UserError for an unknown format
    or if `out_dir` is not a folder, SystemFailure if it cannot be written.
    """
    check_formats(formats)
    paths = [Path(out_dir) / f"{slugify(stem)}.{suffix}" for suffix in dict.fromkeys(formats)]
    with _output_dir(out_dir), style_context():
        for path in paths:
            write_atomic(path, _render(drawn, path.suffix[1:]))
        caption_path = Path(out_dir) / f"{slugify(stem)}.txt"
        write_atomic(caption_path, f"{drawn.caption}\n".encode("utf-8", "backslashreplace"))
    return [*paths, save_table(drawn.data_rows, out_dir, stem), caption_path]


def check_formats(formats: Sequence[str]) -> None:
    """Raise UserError for a file format that figures do not have."""
    for name in formats:
        if name not in FORMATS:
            raise UserError(f"{quote(name)} is not a format of figures; allowed: {', '.join(FORMATS)}.")


def _render(drawn: RenderedFigure, suffix: str) -> bytes:
    if suffix in METADATA:
        buffer = io.BytesIO()
        drawn.figure.savefig(buffer, format=suffix, dpi=DPI, metadata=METADATA[suffix])
        return buffer.getvalue()
    titles, rows = drawn.table or table_of_rows(drawn.data_rows)
    write = format_latex if suffix == "tex" else format_markdown
    return write(titles, rows, drawn.caption).encode()


def to_png(drawn: RenderedFigure) -> bytes:
    """Return the PNG that `save_figure` writes."""
    with style_context():
        return _render(drawn, "png")


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
