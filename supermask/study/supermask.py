"""The keys of a study that learns supermasks: how long and with what (`learn`), and which kind (`supermask`)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import model_validator

from supermask.learned import METHODS, SIGMOID, Learning
from supermask.study.values import (
    Confidence,
    Count,
    Criterion,
    Fraction,
    Keys,
    Level,
    Logit,
    Moderate,
    NotNegative,
    OptimizerName,
    Positive,
    Share,
    Shares,
    Switch,
    fault,
    rule,
)

Method = Annotated[
    Literal["bernoulli", "rounded", "edge_popup", "signed"],
    rule(f"a way to learn a mask. Allowed: {', '.join(METHODS)}"),
]
Base = Annotated[
    Literal["init", "signed_constant", "constant"],
    rule("what a mask can be put on. Allowed: init, signed_constant, constant"),
]


class Learn(Keys):
    """How masks are trained: the paper's settings for FC on MNIST; the length is not published.

    Source: paper.md section 6 (SGD, momentum 0.9, batch 250, learning rate 100; 10 single samples).
    """

    optimizer: OptimizerName = "sgd"
    lr: Positive = 100.0
    batch_size: Count = 250
    epochs: Positive = 100.0
    evaluate_every: Count = 220
    """Iterations between two measurements of the validation loss, on `samples` masks each."""
    momentum: Fraction = 0.9
    weight_decay: NotNegative = 0.0
    samples: Count = 10
    hardened_at: Shares = (0.5, 0.2, 0.1)
    """Densities at which the mask of each layer's highest logits is measured."""


class Supermask(Keys):
    """One way to learn a mask over weights that stay. Source: paper.md section 6."""

    method: Method = "bernoulli"
    weights: Base = "init"
    multiplier: Moderate = 1.0
    rescaled: Switch = False
    """Dynamic weight rescaling."""
    start_logit: Logit = 0.0
    start_from: Criterion | None = None
    """A criterion: logits start from its mask on the trained dense network, instead of from `start_logit`."""
    start_level: Level = 1
    """How many levels that mask is pruned by, in one shot."""
    confidence: Confidence = 2.0
    """c: logits are +c where it keeps, -c elsewhere."""
    graded: Switch = False
    """Logits by rank of its scores instead: 2 c (rank - share pruned)."""
    density: Share = 0.5
    threshold: Moderate = 0.01
    optimizer: OptimizerName | None = None
    """Another than `learn.optimizer`; so too below."""
    lr: Positive | None = None
    weight_decay: NotNegative | None = None

    @model_validator(mode="after")
    def _all_is_used(self) -> Supermask:
        """What a method does not look at is not to be given, and `rounded` has to begin on one side of the cut."""
        unused = {
            "start_from": self.method not in SIGMOID,
            "start_logit": self.method not in SIGMOID or self.start_from is not None,
            **dict.fromkeys(("start_level", "confidence", "graded"), self.start_from is None),
            "density": self.method != "edge_popup",
            "threshold": self.method != "signed",
        }
        for key, is_unused in unused.items():
            if is_unused and getattr(self, key) != type(self).model_fields[key].default:
                start = f"start_from: {self.start_from}" if self.start_from else "no start_from"
                raise fault(f"{key} has no meaning with method {self.method} and {start}; leave it out.")
        if self.method == "rounded" and self.start_logit <= 0 and self.start_from is None:
            raise fault(
                f"start_logit: {self.start_logit:g} with method rounded prunes everything at once, and nothing learns; "
                "give one above 0."
            )
        return self

    def learning(self, learn: Learn) -> Learning:
        """As a run has it: what is not used, at its default."""
        return Learning(
            method=self.method,
            weights=self.weights,
            multiplier=self.multiplier,
            rescaled=self.rescaled,
            start_logit=self.start_logit,
            confidence=self.confidence if self.start_from else 0.0,
            graded=self.graded,
            density=self.density,
            threshold=self.threshold,
            samples=learn.samples,
            hardened_at=learn.hardened_at,
        )

    def trained_as(self, learn: Learn) -> dict[str, Any]:
        """`learn`'s keys of a `train` section, with this mask's own."""
        keys = ("optimizer", "lr", "batch_size", "epochs", "evaluate_every", "momentum", "weight_decay")
        own = {key: getattr(self, key) for key in ("optimizer", "lr", "weight_decay") if getattr(self, key) is not None}
        return {key: getattr(learn, key) for key in keys} | own
