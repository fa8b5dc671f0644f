"""How to cite the package and the paper: CITATION.cff's content, which an installed package has no file of."""

from __future__ import annotations

from dataclasses import dataclass

from supermask import __version__


@dataclass(frozen=True)
class Citation:
    """One work, in words and as BibTeX."""

    authors: tuple[str, ...]
    """`Family, Given`, or the name of a group."""
    title: str
    year: int
    where: str
    url: str
    bibtex: str

    @property
    def words(self) -> str:
        """Authors and year; title and place are set apart on the page."""
        return f"{'; '.join(self.authors)} ({self.year})."


SUPERMASK = Citation(
    ("The supermask authors",),
    "supermask: lottery tickets and supermasks, with proof of every run",
    2026,
    f"Version {__version__}",
    "",
    f"""@software{{supermask,
  author  = {{{{The supermask authors}}}},
  title   = {{supermask: lottery tickets and supermasks, with proof of every run}},
  version = {{{__version__}}},
  year    = {{2026}}
}}""",
)

PAPER = Citation(
    ("Zhou, Hattie", "Lan, Janice", "Liu, Rosanne", "Yosinski, Jason"),
    "Deconstructing Lottery Tickets: Zeros, Signs, and the Supermask",
    2019,
    "Advances in Neural Information Processing Systems 32",
    "https://arxiv.org/abs/1905.01067",
    """@inproceedings{zhou2019deconstructing,
  author    = {Zhou, Hattie and Lan, Janice and Liu, Rosanne and Yosinski, Jason},
  title     = {Deconstructing Lottery Tickets: Zeros, Signs, and the Supermask},
  booktitle = {Advances in Neural Information Processing Systems 32},
  year      = {2019}
}""",
)

CITATIONS = (SUPERMASK, PAPER)
