"""Layers whose weights can be pruned, and the multiplications of each."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod
from typing import Any

from torch import Tensor, nn

from supermask.core.types import TensorKind
from supermask.networks.network import shared_names

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def prunable_parameters(module: nn.Module) -> dict[str, tuple[nn.Module, TensorKind, tuple[int, int]]]:
    """Return name -> (module, kind, fans) of the weights of Linear, Conv, attention and recurrent layers.

    In the order of the `state_dict`. A tensor that several modules share is listed once, under its first name, if any
    of them is such a layer; it has the kind and the fans of the first one. Linear layers have the kind `hidden`.
    """
    aliases = shared_names(module)
    prunable: dict[str, tuple[nn.Module, TensorKind, tuple[int, int]]] = {}
    for name, entry in layer_weights(module):
        prunable.setdefault(aliases.get(name, name), entry)
    return {name: prunable[name] for name in module.state_dict(keep_vars=True) if name in prunable}


def layer_weights(module: nn.Module) -> Iterator[tuple[str, tuple[nn.Module, TensorKind, tuple[int, int]]]]:
    """Yield (name, (module, kind, fans)) of the weights of each layer; a weight that two layers share twice."""
    for prefix, layer in module.named_modules():
        dot = f"{prefix}." if prefix else ""
        if isinstance(layer, nn.Linear):
            yield f"{dot}weight", (layer, "hidden", (layer.in_features, layer.out_features))
        elif isinstance(layer, (*CONVOLUTIONS, *TRANSPOSED)):
            window = prod(layer.kernel_size)
            fans = (layer.in_channels // layer.groups * window, layer.out_channels // layer.groups * window)
            yield f"{dot}weight", (layer, "conv", fans)
        else:
            for key in weight_names(layer):
                outputs, inputs = layer.get_parameter(key).shape
                yield f"{dot}{key}", (layer, "hidden", (inputs, outputs))


def weight_names(layer: nn.Module) -> list[str]:
    """Return the names of the weights that a layer's forward pass reads; empty for a layer without prunable ones."""
    if isinstance(layer, (nn.Linear, *CONVOLUTIONS, *TRANSPOSED)):
        return ["weight"]
    if isinstance(layer, nn.MultiheadAttention):
        return ["in_proj_weight"] if layer._qkv_same_embed_dim else ["q_proj_weight", "k_proj_weight", "v_proj_weight"]
    if isinstance(layer, nn.RNNBase):
        return [key for key in layer._flat_weights_names if key.startswith("weight_")]
    return []


def count_multiplications(layer: nn.Module, output: Any) -> int:
    """Return the multiplications of one call of a layer with its weight, for the whole batch."""
    values = output[0] if isinstance(output, tuple) else output
    if not isinstance(values, Tensor):
        return 0
    if isinstance(layer, TRANSPOSED):
        # Every input value meets the whole kernel of its channel; strides leave this many input positions.
        return values.numel() * layer.weight.numel() // layer.out_channels // prod(layer.stride)
    if isinstance(layer, CONVOLUTIONS):
        return values.numel() * layer.weight.numel() // layer.out_channels
    if isinstance(layer, nn.Linear):
        return values.numel() * layer.in_features
    weights = sum(p.numel() for p in layer.parameters(recurse=False) if p.ndim > 1)
    return weights * values.numel() // values.shape[-1]
