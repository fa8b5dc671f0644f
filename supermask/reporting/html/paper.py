"""Citations of the package and of the paper, and the points where this project differs from the paper.

CITATION.cff and the page on the paper in the docs have the same content; an installed package has neither file.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from supermask import __version__


@dataclass(frozen=True)
class Citation:
    """Citation of one work, as text and as BibTeX."""

    authors: tuple[str, ...]
    """`Family, Given`, or the name of a group, per author."""
    title: str
    year: int
    venue: str
    url: str
    bibtex: str

    @property
    def text(self) -> str:
        """Authors and year: `Zhou, Hattie; Lan, Janice (2019).`"""
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
    """One deviation of this project from the paper."""

    point: str
    paper: str
    """The authors' code, or the published description; empty if there is none."""
    supermask: str
    """This project."""


PAPER_DEVIATIONS: tuple[PaperDeviation, ...] = tuple(
    PaperDeviation(*texts)
    for texts in (
        (
            "reinit",
            "permutes the layer's initial values",
            "fresh draws from the initializer, as the paper says; the authors' variant is permute",
        ),
        (
            "randomness",
            "ties, shuffles and the random criterion are not seeded",
            "every draw is from a named, seeded stream",
        ),
        (
            "validation of dense conv runs",
            "drops the last partial batch",
            "the same 5,000 images always",
        ),
        ("last row of the metrics", "not written for Conv4 and Conv6", "always written"),
        ("w_f from iteration k", "100 iterations earlier at level 1", "iteration k at every level"),
        (
            "snip, grad",
            "one-shot only, with the gradient of the dense network",
            "both schedules: the gradient at the start of each level, on its first batch",
        ),
        (
            "magnitude_increase_same_sign",
            "excluded weights score 0, so a shrinking included weight ranks below them",
            "excluded weights rank below all included ones; the authors' is magnitude_increase_same_sign_literal",
        ),
        (
            "signed_reshuffle",
            "permutes the magnitudes of all kept weights; each weight keeps its sign",
            "permutes the kept weights of each sign among themselves; the numerical difference is negligible",
        ),
        (
            "zero_random",
            "random places among all pruned weights, so the share of zeros falls over the levels",
            "as many zeros as zero_if_shrunk at each level",
        ),
        (
            "validation split",
            "one fixed split of 5,000 images for all seeds",
            "5,000 random images per seed; treatments of one seed share the split",
        ),
        (
            "bimodal draws",
            "",
            "same root mean square as the initializer, so the mean magnitude is 18% larger; "
            "a gain needs a Gaussian with that magnitude as control",
        ),
        ("prune count", "truncated float product (47,039)", "exact, round half to even (47,040)"),
        (
            "supermask model selection",
            "on the test set",
            "on the validation set: the logits at its lowest loss",
        ),
        (
            "learned masks: epochs",
            "2,000 for FC (published command); not published for convolutional networks",
            "100 at scale=laptop; at scale=paper 2,000 in table-one and learned-curve, 500 in the other studies",
        ),
        (
            "learned masks: random numbers",
            "not described",
            "a hash of seed, layer, forward pass and weight, so masks are equal in every engine",
        ),
        (
            "batches",
            "last, partial batch not described",
            "epochs are concatenated, so every batch is full",
        ),
        (
            "Adam",
            "TensorFlow's",
            "PyTorch's: epsilon is added to the square root of the bias-corrected second moment",
        ),
        ("CIFAR-10 from JPEG files", "", "accepted, with a note under every figure (data_note)"),
    )
)
