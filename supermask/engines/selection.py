"""Selection of the engine that trains a run, of its precision, and of the costs that choose its kernels."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

from supermask.core.errors import UserError, quote
from supermask.core.learned_masks import MaskLearning
from supermask.core.recipe import UNTRAINED, Recipe
from supermask.networks.network import Network
from supermask.networks.sequential import Conv, Dense, Pool

ENGINES = ("auto", "sparse", "stacked", "reference")
SPARSE_MASK_METHODS = ("bernoulli", "rounded")
"""Methods of mask learning that the sparse engine has."""

MatmulPrecision = Literal["float32", "tf32", "bfloat16"]
"""Number format of the stacked engine's matrix products."""
PRECISIONS: tuple[MatmulPrecision, ...] = get_args(MatmulPrecision)

MEASURE_VARIABLE = "SUPERMASK_MEASURE_COSTS"
"""Environment variable: 1 makes the sparse engine measure its costs on this machine; the default is a shipped table."""


@dataclass(frozen=True)
class EngineChoice:
    """An engine and the reason for it, as the run's record states it."""

    engine: str
    reason: str


def select_engine(
    requested: str,
    network: Network,
    device: str,
    learning: MaskLearning | None = None,
    recipe: Recipe | None = None,
    check_module: Callable[[Network, str], str] | None = None,
) -> EngineChoice:
    """Return the engine that trains a network, or learns its mask, on a device.

    `auto` is the sparse engine on a CPU and the stacked engine on a GPU; the reference engine where that one cannot
    train this network, learn this mask or follow this recipe (None: any that all engines have). `check_module(network,
    device)`: the check that the stacked engine makes of a module (`stacked.modules.module_obstacle`); the reference
    engine takes a module that fails it. Without it, as in planning, a module is assumed to pass.
    Raises UserError if an engine is requested that cannot. The exception: the stacked engine that is requested for a
    module becomes `reference`, with that reason, where nothing is trained or where `check_module` finds an obstacle.
    """
    if requested == "reference":
        return EngineChoice("reference", "it was asked for")
    engine = ("sparse" if device == "cpu" else "stacked") if requested == "auto" else requested
    assert engine in ("sparse", "stacked"), engine
    if engine == "stacked" and network.layers is None and recipe is not None and not recipe.iterations:
        return EngineChoice("reference", "nothing is trained: the reference engine measures modules")
    obstacle = _unsupported_reason(engine, network, device, learning, recipe)
    if not obstacle and engine == "stacked" and network.layers is None and check_module is not None:
        module_obstacle = check_module(network, device)
        if module_obstacle:
            return EngineChoice("reference", f"the stacked engine cannot train {network.name}: it {module_obstacle}")
    if requested == engine:
        if obstacle:
            raise UserError(f"the {engine} engine {obstacle}: use --engine auto or --engine reference.")
        return EngineChoice(engine, "it was asked for")
    if obstacle:
        return EngineChoice("reference", f"auto: the {engine} engine {obstacle}")
    if engine == "stacked":
        return EngineChoice("stacked", "auto: a GPU trains many runs at once")
    if learning is not None:
        return EngineChoice("sparse", "auto: it learns masks of fully connected layers faster")
    return EngineChoice("sparse", "auto: its cost falls with the mask")


def validate_precision(name: str, device: str) -> MatmulPrecision:
    """Return the precision of this name. Raises UserError if there is none, or if the device does not have it."""
    for precision in PRECISIONS:
        if precision == name and (precision != "tf32" or device == "cuda"):
            return precision
    # Here the precision exists, but not on this device.
    if name in PRECISIONS:
        raise UserError(f"tf32 is a number format of GPUs: on {device} allowed are float32 and bfloat16.")
    raise UserError(f"{quote(name)} is not a precision. Allowed: {', '.join(PRECISIONS)}.")


def is_measuring_costs() -> bool:
    """Return True if `SUPERMASK_MEASURE_COSTS` is 1, False for 0 or unset. Raises UserError for other values."""
    setting = os.environ.get(MEASURE_VARIABLE, "")
    if setting in ("", "0", "1"):
        return setting == "1"
    raise UserError(
        f"{MEASURE_VARIABLE}: {quote(setting)} is not allowed. Allowed: 1 (measure the costs of this machine), "
        "0 or unset (use the costs shipped with supermask)."
    )


def unsupported_settings(engine: str, recipe: Recipe) -> list[str]:
    """Return the settings of a recipe that the sparse or the stacked engine does not have, as a study names them."""
    names = REFERENCE_ONLY if engine == "stacked" else REFERENCE_ONLY + NOT_SPARSE
    stored, plain = recipe.to_data(), replace(recipe, **{name: getattr(UNTRAINED, name) for name in names})
    settings = ["optimizer: adamw"] if recipe.optimizer == "adamw" else []
    return settings + sorted(stored.keys() - plain.to_data().keys() - {"loss_source"})


NOT_SPARSE = ("label_smoothing", "augment", "normalize")
"""Fields of a recipe that the sparse engine does not have, unless they are at their default; the others have them."""

REFERENCE_ONLY = (
    "nesterov",
    "betas",
    "eps",
    "loss",
    "loss_source",
    "precision",
    "channels_last",
    "compile",
)
"""Fields of a recipe that only the reference engine has, unless they are at their default."""


def _unsupported_reason(
    engine: str, network: Network, device: str, learning: MaskLearning | None, recipe: Recipe | None
) -> str:
    """Reason for which the engine cannot train this, as the end of a sentence; empty if it can."""
    # The device comes first: it excludes an engine for every network, and the message should say so.
    if engine == "sparse" and device != "cpu":
        return f"trains on the CPU alone, not on {device}"
    layers = network.layers
    if layers is None and engine == "sparse":
        return f"does not train {network.name}, only fully connected networks and conv2 to conv8"
    if layers is not None and not all(isinstance(layer, Conv | Pool | Dense) for layer in layers):
        return "trains networks of convolutions, poolings and fully connected layers alone"
    if engine == "sparse" and learning is not None and not all(isinstance(layer, Dense) for layer in layers or ()):
        return "learns masks of fully connected layers alone"
    if engine == "sparse" and learning is not None and learning.method not in SPARSE_MASK_METHODS:
        return f"learns masks by {' and '.join(SPARSE_MASK_METHODS)} alone"
    if learning is not None and learning.others_lr:
        return "trains masks alone, not biases beside them (others_lr)"
    if learning is not None and (learning.only or learning.exclude):
        return "learns masks of all tensors alone, without prune.only and prune.exclude"
    if recipe is not None and (settings := unsupported_settings(engine, recipe)):
        return f"does not have {', '.join(settings)}"
    return ""
