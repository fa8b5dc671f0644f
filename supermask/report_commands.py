"""The Python API behind `supermask report`: it gathers, writes one file, and prints nothing."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from pathlib import Path

from supermask.claims import ClaimFinding, evaluate
from supermask.commands import default_store, rows
from supermask.errors import MachineError, UserError
from supermask.plan import Plan
from supermask.report import Report, gather, page
from supermask.store import Store
from supermask.study import shipped_studies
from supermask.study.yaml_tree import shown
from supermask.tables import Row

StudyRows = tuple[Plan, list[Row], list[str]]


def report(
    studies: Sequence[str], overrides: Sequence[str] = (), out: Path = Path("report.html"), store: Path | None = None
) -> Path:
    """Writes the report on studies, shipped ones or files, as one HTML file that needs nothing else; returns its path.

    Raises UserError where no study is given, where none of their runs has ended, or `out` cannot be a file;
    MachineError where it cannot be written.
    """
    return write(gathered(studies, overrides, store, out), out)


def gathered(
    studies: Sequence[str], overrides: Sequence[str] = (), store: Path | None = None, out: Path = Path("report.html")
) -> Report:
    """What the report says; `out` is there for the command that makes it again."""
    if not studies:
        known = ", ".join(study.name for study in shipped_studies())
        raise UserError(f"no study was given to report on: give one or more of {known}; or paths to .yaml files.")
    found = [rows(study, overrides, store) for study in dict.fromkeys(studies)]
    if all(row["status"] == "to_do" for _, all_rows, _ in found for row in all_rows):
        named = ", ".join(shown(made.study.name) for made, _, _ in found)
        raise UserError(
            f"no run of {named} with these settings is in {store or default_store()} yet: `supermask run` "
            f"{'it' if len(found) == 1 else 'them'} first, with the same settings and the same --store."
        )
    scales = [word.partition("=")[2] for word in overrides if word.startswith("scale=")]
    at = Store(store or default_store())
    return report_on(found, at, _command(studies, overrides, out), scales[-1] if scales else "")


def report_on(
    found: Sequence[StudyRows], store: Store, made_by: str, scale: str = "", whole_paper: bool = False
) -> Report:
    """The report on studies whose rows are there. `whole_paper`: with the claims that no study can decide yet."""
    return gather(found, claims_about(found, whole_paper), store, made_by, scale)


def claims_about(found: Sequence[StudyRows], whole_paper: bool = False) -> list[ClaimFinding]:
    """What the runs say of the claims about these studies."""
    return evaluate([(made.study, all_rows) for made, all_rows, _ in found], whole_paper)


def write(made: Report, out: Path) -> Path:
    """Writes the page, whole or not at all. Raises UserError, MachineError."""
    text = page(made).encode("utf-8", errors="replace")
    check_writable(out)
    staged = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        staged.write_bytes(text)
        staged.replace(out)
    except OSError as error:
        staged.unlink(missing_ok=True)
        raise MachineError(f"the report cannot be written to {out}: {error.strerror or error}") from error
    return out


def check_writable(out: Path) -> None:
    """Makes the folder of a file that is to be written. Raises UserError, MachineError."""
    if out.is_dir():
        raise UserError(f"{out} is a folder: give --out the name of a file, such as {out / 'report.html'}.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise UserError(f"{out.parent} is not a folder: give --out a file in one.") from error
    except OSError as error:
        raise MachineError(f"the report cannot be written to {out}: {error.strerror or error}") from error


def _command(studies: Sequence[str], overrides: Sequence[str], out: Path) -> str:
    """As it is typed; without the folder of the store, which is the machine's."""
    words = ["supermask", "report", *studies, *overrides]
    return shlex.join(words if out == Path("report.html") else [*words, "--out", out.name])
