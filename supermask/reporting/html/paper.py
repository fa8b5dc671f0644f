"""How to cite the package and the paper: CITATION.cff's content, which an installed package has no file of.

Where published descriptions, or the authors' code, and this project part. Source: paper.md section 10.

The same table as docs/paper_map.md's, without its marks of code: a test compares the two.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

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
    def text(self) -> str:
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


class PaperDeviation(NamedTuple):
    """One point."""

    point: str
    paper: str
    """The authors' code, or what is published."""
    supermask: str


PAPER_DEVIATIONS: tuple[PaperDeviation, ...] = tuple(
    PaperDeviation(*texts)
    for texts in (
        (
            "reinit",
            "permutes the layer's initial values",
            "fresh draws from the initialiser, as the paper says; theirs is permute",
        ),
        (
            "randomness",
            "unseeded ties, shuffles, random criterion",
            "every draw from a named, seeded stream",
        ),
        (
            "validation of dense conv runs",
            "drops the last partial batch",
            "the same 5,000 images always",
        ),
        ("last row of the metrics", "not written for Conv4 and Conv6", "always written"),
        ("w_f from iteration k", "level 1 reads 100 iterations earlier", "iteration k everywhere"),
        (
            "snip, grad",
            "one-shot only",
            "both schedules: the gradient at each level's start, on its first batch",
        ),
        (
            "magnitude_increase_same_sign",
            "excluded weights score 0",
            "excluded weights rank below all included ones",
        ),
        ("prune count", "truncated float product (47,039)", "exact, round half to even (47,040)"),
        (
            "supermask model selection",
            "on the test set",
            "on the validation set: the logits at its lowest loss",
        ),
        ("learned masks: how long", "not published", "100 passes at scale=laptop, 500 at scale=paper"),
        (
            "their coins",
            "not said",
            "a hash of seed, layer, pass and weight, so that masks are the same in every engine",
        ),
        (
            "batches",
            "not said what happens to a last, partial batch",
            "passes follow each other without a gap: every batch is full",
        ),
        (
            "Adam",
            "TensorFlow's",
            "PyTorch's: epsilon is added to the square root of the bias-corrected second moment",
        ),
        ("CIFAR-10 from JPEG files", "", "accepted, and said so beside every figure (data_note)"),
    )
)
