"""The training recipe of a study file: keys of `train`, and which of them have an effect beside the others."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, model_validator

from supermask.core.errors import quote
from supermask.core.recipe import CROSS_ENTROPY
from supermask.study.fields import (
    Betas,
    Bool,
    Count,
    EpochCount,
    Epochs,
    Factor,
    Fraction,
    LearningRateSchedule,
    Loss,
    NotNegative,
    NumberFormat,
    OptimizerName,
    PixelCount,
    Positive,
    PositiveFloat,
    Smoothing,
    StrictModel,
    WarmupEpochs,
    validation_error,
)


class Augment(StrictModel):
    """Random changes of training images; 0 and false change nothing. Sources: He et al. 2016; DeVries & Taylor 2017."""

    crop: PixelCount = 0
    """Zero padding on every side of the image, out of which a window of its size is cut."""
    flip: Bool = False
    cutout: PixelCount = 0
    """Side of a square that is set to 0."""


class Statistics(StrictModel):
    """Statistics that normalize the inputs: one number per channel, as shares of the largest pixel value."""

    mean: tuple[float, ...]
    std: tuple[float, ...]


NORMALIZATION = "a normalization. Allowed: none, per_channel, or {mean: [...], std: [...]} with a number per channel"


def _check_normalization(value: Any) -> Any:
    """Return none, per_channel or the statistics of a map."""
    if isinstance(value, Statistics) or value in ("none", "per_channel"):
        return value
    if isinstance(value, Mapping):
        columns = {key: value.get(key) for key in ("mean", "std")}
        if all(_is_list_of_numbers(column) for column in columns.values()) and len(value) == 2:
            statistics = Statistics(**{key: tuple(map(float, column or ())) for key, column in columns.items()})
            if len(statistics.mean) == len(statistics.std) and min(statistics.std) > 0:
                return statistics
            raise validation_error("mean and std need as many numbers as each other, and those of std are above 0.")
    raise validation_error(f"{quote(value)} is not {NORMALIZATION}.")


def _is_list_of_numbers(value: object) -> bool:
    return (
        isinstance(value, list | tuple)
        and len(value) > 0
        and all(isinstance(n, int | float) and not isinstance(n, bool) and abs(n) <= MAX_STATISTIC for n in value)
    )


MAX_STATISTIC = 1e6
"""Bound on a channel's mean and standard deviation; pixels are shares in [0, 1]."""


class Train(StrictModel):
    """The training recipe. The defaults are the paper's for FC on MNIST. Source: Zhou et al. 2019, Table S1."""

    optimizer: OptimizerName = "adam"
    lr: Positive = 1.2e-3
    batch_size: Count = 60
    epochs: EpochCount = 55.0
    evaluate_every: Count = 100
    """Iterations between two evaluations of the validation loss."""
    momentum: Fraction = 0.9
    """Used by SGD; Adam has `betas`."""
    weight_decay: NotNegative = 0.0
    lr_drops: Epochs = ()
    """Epochs at which the learning rate is multiplied by `lr_drop_factor`; those after the end are ignored."""
    lr_drop_factor: Factor = 0.1
    warmup_epochs: WarmupEpochs = 0.0
    schedule: LearningRateSchedule = "constant"
    """The default is `step` where `lr_drops` are given. `cosine` and `linear` fall to 0 after the warm-up."""
    nesterov: Bool = False
    betas: Betas = (0.9, 0.999)
    eps: PositiveFloat = 1e-8
    label_smoothing: Smoothing = 0.0
    loss: Loss = CROSS_ENTROPY
    """Loss of training; evaluations are always plain cross-entropy."""
    augment: Annotated[Augment, BeforeValidator(lambda value: {} if value == "none" else value)] = Augment()
    normalize: Annotated[Literal["none", "per_channel"] | Statistics, BeforeValidator(_check_normalization)] = "none"
    precision: NumberFormat = "float32"
    channels_last: Bool = False
    compile: Bool = False

    @model_validator(mode="before")
    @classmethod
    def _name_schedule(cls, data: Any) -> Any:
        if isinstance(data, Mapping) and "schedule" not in data:
            return {**data, "schedule": "step" if data.get("lr_drops") else "constant"}
        return data

    @model_validator(mode="after")
    def _check_no_unused_keys(self) -> Train:
        for key, reason in unused_train_keys(dict(self)).items():
            if getattr(self, key) != type(self).model_fields[key].default:
                raise validation_error(f"{key} has no effect {reason}; leave it out.")
        if self.schedule == "step" and not self.lr_drops:
            raise validation_error("schedule: step needs lr_drops, the epochs at which the learning rate drops.")
        return self


def unused_train_keys(train: Mapping[str, Any]) -> dict[str, str]:
    """Return the keys of a `train` section that have no effect beside its other values, each with the reason."""
    is_sgd = train.get("optimizer") == "sgd"
    drops, loss = train.get("lr_drops"), train.get("loss", CROSS_ENTROPY)
    schedule = train.get("schedule") or ("step" if drops else "constant")
    unused: dict[str, str] = {}
    if not is_sgd:
        unused |= dict.fromkeys(("momentum", "nesterov"), f"with optimizer: {train.get('optimizer', 'adam')}")
    elif train.get("momentum") == 0:
        unused["nesterov"] = "with momentum: 0"
    if is_sgd:
        unused |= dict.fromkeys(("betas", "eps"), "with optimizer: sgd")
    if schedule != "step":
        unused |= dict.fromkeys(("lr_drops", "lr_drop_factor"), f"with schedule: {schedule}")
    if not drops and schedule in ("constant", "step"):
        unused["lr_drop_factor"] = "without lr_drops"
    if loss != CROSS_ENTROPY:
        unused["label_smoothing"] = f"with loss: {loss}"
    return unused


def inherited_train_keys(train: Train, changes: Collection[str], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys that a treatment's `train` takes over from the study's.

    Those that have no effect beside the treatment's own `values` (of the keys `changes`) are left out, as is a schedule
    that follows from the study's `lr_drops` where the treatment gives others.
    """
    inherited = {key: value for key, value in train.model_dump(mode="json").items() if key not in changes}
    if "lr_drops" in changes and inherited.get("schedule") in ("constant", "step"):
        del inherited["schedule"]
    return {key: value for key, value in inherited.items() if key not in unused_train_keys({**inherited, **values})}
