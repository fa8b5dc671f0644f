"""Learned masks of a study file: keys of `learn` and of a treatment's `supermask`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import model_validator

from supermask.core.learned_masks import METHODS, SIGMOID, MaskLearning
from supermask.study.fields import (
    Bool,
    Confidence,
    Count,
    CriterionName,
    Densities,
    Density,
    EpochCount,
    Fraction,
    Level,
    Logit,
    MaskOptimizerName,
    NotNegative,
    Positive,
    PositiveFloat,
    StrictModel,
    validation_error,
    with_message,
)
from supermask.study.prune_settings import Prune

Method = Annotated[
    Literal["bernoulli", "rounded", "edge_popup", "signed"],
    with_message(f"a way to learn a mask. Allowed: {', '.join(METHODS)}"),
]
Base = Annotated[
    Literal["init", "signed_constant", "constant"],
    with_message("a set of weights for a mask. Allowed: init, signed_constant, constant"),
]


class LearnSettings(StrictModel):
    """Settings for learning masks; the defaults are the paper's for FC on MNIST, except `epochs`.

    Source: Zhou et al. 2019, Sec. 5 (SGD, momentum 0.9, batch 250, learning rate 100; mean of 10 single samples).
    Differs from the paper: 100 epochs by default, not 2,000; model selection is on the validation set, where the
    authors' code uses the test set.
    """

    optimizer: MaskOptimizerName = "sgd"
    lr: Positive = 100.0
    batch_size: Count = 250
    epochs: EpochCount = 100.0
    evaluate_every: Count = 220
    """Iterations between two evaluations of the validation loss, on `samples` masks each."""
    momentum: Fraction = 0.9
    weight_decay: NotNegative = 0.0
    samples: Count = 10
    hardened_at: Densities = (0.5, 0.2, 0.1)
    """Densities at which the mask of each layer's highest logits is evaluated."""


class Supermask(StrictModel):
    """Settings of a learned mask over weights that are not trained. Source: Zhou et al. 2019, Sec. 5."""

    method: Method = "bernoulli"
    weights: Base = "init"
    multiplier: PositiveFloat = 1.0
    rescaled: Bool = False
    """Dynamic weight rescaling: weights are multiplied by (weights in layer / ones in the sampled mask)."""
    start_logit: Logit = 0.0
    start_from: CriterionName | None = None
    """A criterion. Logits start from its mask on the trained dense network, instead of at `start_logit`."""
    start_level: Level = 1
    """Number of levels that this mask is pruned by, in one shot."""
    confidence: Confidence = 2.0
    """c: logits start at +c for kept weights, at -c for the others."""
    graded: Bool = False
    """True: logits start at 2 c (rank of the score - share pruned), with ranks in (0, 1]."""
    density: Density = 0.5
    threshold: PositiveFloat = 0.01
    others_lr: NotNegative = 0.0
    """Learning rate of biases and normalization parameters; 0 leaves them at their initial values."""
    optimizer: MaskOptimizerName | None = None
    """Replaces `learn.optimizer` if given; `lr` and `weight_decay` likewise."""
    lr: Positive | None = None
    weight_decay: NotNegative | None = None

    @model_validator(mode="after")
    def _check_no_unused_keys(self) -> Supermask:
        """Refuse keys that the method does not use, and a start of `rounded` at which it cannot learn."""
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
                raise validation_error(f"{key} has no meaning with method {self.method} and {start}; leave it out.")
        if self.method == "rounded" and self.start_logit <= 0 and self.start_from is None:
            raise validation_error(
                f"start_logit: {self.start_logit:g} with method rounded prunes every weight at once, and nothing "
                "learns; give one above 0."
            )
        return self

    def learning(self, learn: LearnSettings, prune: Prune) -> MaskLearning:
        """Return the settings as a run has them; unused ones are at their defaults, so that equal runs have one id."""
        return MaskLearning(
            method=self.method,
            weights=self.weights,
            multiplier=self.multiplier,
            rescaled=self.rescaled,
            start_logit=self.start_logit,
            confidence=self.confidence if self.start_from else 0.0,
            graded=self.graded,
            density=self.density,
            threshold=self.threshold,
            others_lr=self.others_lr,
            only=prune.only,
            exclude=prune.exclude,
            samples=learn.samples,
            hardened_at=learn.hardened_at,
        )

    def train_settings(self, learn: LearnSettings) -> dict[str, Any]:
        """Return the keys of a `train` section: those of `learn`, replaced by this mask's own where given."""
        keys = ("optimizer", "lr", "batch_size", "epochs", "evaluate_every", "momentum", "weight_decay")
        replaced = {key: getattr(self, key) for key in ("optimizer", "lr", "weight_decay")}
        replaced = {key: value for key, value in replaced.items() if value is not None}
        settings = {key: getattr(learn, key) for key in keys} | replaced
        if settings["optimizer"] != "sgd":
            del settings["momentum"]
        return settings
