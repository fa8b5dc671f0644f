"""The stacked engine: many runs of one network and recipe as one computation, with a leading axis of replicas.

It computes what the reference engine computes, up to the order of sums, on a GPU or a CPU. Measured speeds:
docs/performance.md.

Files: `training` (jobs to results), `replica` (one network of a stack, as the training loop sees it), `stack` (the
tensors and one training step), `forward` (the forward pass), `modules` (that of any module), `masked_pass` (learned
masks), `bias_relu` (of hidden layers, on a GPU), `convolutions`, `optimizer`, `cuda_graph`, `device` (precision, cached
measurements), `autotune` (the size of a stack).
"""

from __future__ import annotations

from typing import Any

import torch

from supermask.core.learned_masks import MaskLearning
from supermask.core.recipe import Recipe
from supermask.engines.selection import MatmulPrecision
from supermask.engines.stacked.autotune import choose_stack_size
from supermask.engines.stacked.bias_relu import make_bias_relu
from supermask.engines.stacked.convolutions import choose_conv_algorithms
from supermask.engines.stacked.masked_pass import is_masked_pass_compiled
from supermask.engines.stacked.optimizer import is_optimizer_compiled
from supermask.engines.stacked.training import ConvAlgorithms, JobSource, train, train_stream

__all__ = [
    "ConvAlgorithms",
    "JobSource",
    "choose_conv_algorithms",
    "choose_stack_size",
    "compiled_facts",
    "environment_facts",
    "train",
    "train_stream",
]


def environment_facts(
    algorithms: ConvAlgorithms,
    precision: MatmulPrecision,
    alone: bool,
    recipe: Recipe,
    device: str = "cpu",
    learning: MaskLearning | None = None,
) -> dict[str, Any]:
    """Facts that bits depend on besides machine and PyTorch, for the run's record.

    Precision of products, algorithm of each convolution, what is compiled, stack of one or of several.
    Bit-identical results are promised for runs that were alone in their stack. The number of neighbors is not part of
    the facts: a checkpoint may be resumed among other neighbors.
    """
    return {
        "precision": precision,
        "convolutions": dict(algorithms),
        "stack": "alone" if alone else "shared",
        **compiled_facts(recipe, device, learning),
    }


def compiled_facts(recipe: Recipe, device: str, learning: MaskLearning | None) -> dict[str, bool]:
    """Facts about the parts of a training step that PyTorch compiles. They depend on this machine's compilers."""
    facts = {"optimizer_compiled": is_optimizer_compiled(recipe, device)}
    # Named only where they are: the fingerprints of all other environments stay as they are.
    if is_masked_pass_compiled(learning, device):
        facts["masked_pass_compiled"] = True
    if make_bias_relu(torch.device(device)) is not None:
        facts["bias_relu_compiled"] = True
    return facts
