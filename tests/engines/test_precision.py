"""Number format and determinism on a pretended GPU: the reference engine uses neither TF32 nor varying kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.mask_trainings import METHODS, mask_job, recipes
from helpers.pretend_gpu import pretend_gpu
from helpers.trainings import RECIPES, bits, data, job
from torch import nn

from supermask.engines import mask_evaluation, reference, reference_masks

DATA = data()
MASK_JOB = mask_job(METHODS["bernoulli"], recipes(METHODS["bernoulli"])["sgd"])
INITIAL = MASK_JOB.start.state
REQUIRED = ("ieee", "ieee", True, False)
"""fp32_precision of matrix products and of convolutions; cuDNN deterministic; cuDNN benchmark."""


def settings() -> tuple[Any, ...]:
    cudnn: Any = torch.backends.cudnn
    matmul: Any = torch.backends.cuda.matmul
    return matmul.fp32_precision, cudnn.conv.fp32_precision, cudnn.deterministic, cudnn.benchmark


def settings_per_forward_pass(monkeypatch: pytest.MonkeyPatch, computation: Callable[[], object]) -> set[Any]:
    """Return the settings during all calls of linear layers."""
    seen = set()
    forward = nn.Linear.forward

    def recording_forward(self: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        seen.add(settings())
        return forward(self, x)

    monkeypatch.setattr(nn.Linear, "forward", recording_forward)
    computation()
    return seen


@pytest.mark.slow
@pytest.mark.parametrize(
    "computation",
    [
        lambda: reference.train([job(RECIPES["adam"])], [DATA], "cuda"),
        lambda: reference_masks.train([MASK_JOB], [DATA], "cuda"),
        lambda: mask_evaluation.evaluate_supermask(MASK_JOB, DATA, INITIAL, INITIAL, "cuda"),
    ],
    ids=["training", "mask learning", "mask evaluation"],
)
def test_products_on_a_gpu_are_float32_and_deterministic(
    computation: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = settings()
    with pretend_gpu():
        assert settings_per_forward_pass(monkeypatch, computation) == {REQUIRED}
    assert settings() == before


def test_settings_on_a_cpu_are_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = settings()
    assert settings_per_forward_pass(monkeypatch, lambda: reference.train([job(RECIPES["sgd"])], [DATA])) == {before}


@pytest.mark.slow
def test_a_pretended_gpu_is_bit_identical_to_the_cpu() -> None:
    small_job = job(RECIPES["momentum with weight decay"])
    on_cpu = bits(reference.train([small_job], [DATA])[0])
    with pretend_gpu():
        assert bits(reference.train([small_job], [DATA], "cuda")[0]) == on_cpu
