"""A drawn figure, and its files: PDF, SVG, PNG and the CSV behind them, the same bytes for the same rows."""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from supermask.errors import MachineError, UserError
from supermask.figures.style import styled
from supermask.tables import Row, to_csv

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
class Drawn:
    """A figure, the sentence below it, and the numbers it shows."""

    figure: Figure
    caption: str
    data_rows: list[Row]


def save(drawn: Drawn, out_dir: Path, stem: str) -> list[Path]:
    """Write STEM.pdf, .svg, .png and .csv into `out_dir`, which is made where it is missing; STEM is `slug(stem)`.

    Raises UserError where `out_dir` is no folder, MachineError where it cannot be written.
    """
    paths = [Path(out_dir) / f"{slug(stem)}.{suffix}" for suffix in FORMATS]
    with _writing(out_dir), styled():
        for path, (suffix, metadata) in zip(paths, FORMATS.items(), strict=True):
            drawn.figure.savefig(path, format=suffix, dpi=DPI, metadata=metadata)
    return [*paths, save_table(drawn.data_rows, out_dir, stem)]


def png(drawn: Drawn) -> bytes:
    """The PNG that `save` writes."""
    data = io.BytesIO()
    with styled():
        drawn.figure.savefig(data, format="png", dpi=DPI, metadata=FORMATS["png"])
    return data.getvalue()


def save_table(rows: Sequence[Row], out_dir: Path, stem: str) -> Path:
    """Write rows, of which there is at least one, as STEM.csv; errors as those of `save`."""
    path = Path(out_dir) / f"{slug(stem)}.csv"
    with _writing(out_dir):
        path.write_text(to_csv(rows, list(rows[0])), encoding="utf-8")
    return path


@contextmanager
def _writing(out_dir: Path) -> Iterator[None]:
    """Makes the folder, and says what is wrong with it."""
    try:
        Path(out_dir).mkdir(parents=True, exist_ok=True)
        yield
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{out_dir} is not a folder: figures need a folder to be written to") from error
    except OSError as error:
        raise MachineError(f"the figure cannot be written to {out_dir}: {error.strerror or error}") from error


def slug(text: str) -> str:
    """A file name from any text: [a-z0-9-]{1,60}, never a path; `figure` where nothing is left."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:60].strip("-") or "figure"
