"""Examination of a module: its prunable and unmasked tensors as plain data, and refusal of modules that cannot be used.

A module is used if a certificate can be given for its runs: its state is its `state_dict`, a forward pass changes
buffers only, and its logits have the shape `(batch, classes)`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

from supermask.core.errors import UserError, quote
from supermask.core.invariants import bitwise_equal
from supermask.core.types import PrunableTensor
from supermask.networks.gradient_passes import PROBE_IMAGES, generator_states, probe_images, run_gradient_passes
from supermask.networks.hidden_state import HiddenState, accumulates, hidden_state, is_equal, keeps_changing
from supermask.networks.layers import prunable_parameters, weight_names
from supermask.networks.module_output import compute_logits, probe_loss
from supermask.networks.network import (
    NetworkFacts,
    UnmaskedTensor,
    materialize,
    seeded_draws,
    shared_names,
    state_tensors,
    translate_errors,
)

OTHER_SEED = 2_718_281_828
"""A second seed, which no constructor is likely to choose."""
MEMORY_TOLERANCE = 1e-4
"""Difference of two passes' logits, relative to the largest, from which on it is no rounding (about 1e-6)."""
NOT_STORED = (
    "which is not in its state_dict, so it could be neither stored nor rewound: register it with register_buffer"
)
DTYPES = {torch.float32: "float32", torch.int64: "int64"}


def examine_module(
    make: Callable[[], nn.Module],
    image_shape: tuple[int, int, int],
    classes: int,
    name: str,
    batch_size: int | None = None,
) -> NetworkFacts:
    """Return the facts of a user's module. `name` is the network in messages, `batch_size` that of its trainings.

    Raises UserError for a module that cannot be used: wrong shape of the logits, logits that are not finite, a forward
    pass that changes parameters or other state outside the `state_dict`, a constructor that draws such state or seeds a
    global generator, weights computed from other tensors, tensors that are neither float32 nor int64, values that
    differ between two constructions under one seed, and errors in the module's code.
    """
    module, generators = _construct(make, image_shape, name, 0)
    # Before any pass, which may set requires_grad.
    frozen = frozenset(n for n, p in module.named_parameters() if not p.requires_grad)
    again, _ = _construct(make, image_shape, name, 0)
    other, other_generators = _construct(make, image_shape, name, OTHER_SEED)
    _check_generators(generators, other_generators, name)
    _check_tensors(module, name)
    _check_same_values(state_tensors(module), state_tensors(again), name)
    _check_constructor_draws(hidden_state(module), hidden_state(again), hidden_state(other), name)
    probe = _Probe(probe_images(image_shape, 2), min(batch_size or PROBE_IMAGES, PROBE_IMAGES), classes, name)
    drifting = _check_passes(module, image_shape, probe)
    remembers = _find_memory(module, again, probe)
    if drifting:
        fresh = [_construct(make, image_shape, name, 0)[0] for _ in range(2)]
        _check_counters(drifting, module, fresh, probe)
    if remembers:
        raise UserError(
            f"network {quote(name)}: its logits depend on {remembers} that earlier forward passes set, {NOT_STORED}."
        )
    return _facts(module, probe_images(image_shape), image_shape, classes, name, frozen)


def _construct(
    make: Callable[[], nn.Module], image_shape: tuple[int, int, int], name: str, seed: int
) -> tuple[nn.Module, tuple[bytes, Any, Any]]:
    """Return the module of a seed, and the states of the generators after its construction."""
    with translate_errors(name, "constructing it"), seeded_draws(seed):
        module = make()
        if not isinstance(module, nn.Module):
            raise UserError(f"network {quote(name)} gives {type(module).__name__}, not a torch.nn.Module.")
        materialize(module, image_shape)
        return module, generator_states()


def shipped_module_facts(
    make: Callable[[], nn.Module], image_shape: tuple[int, int, int], classes: int, name: str, with_values: bool = False
) -> NetworkFacts:
    """Return the facts of a module of this package.

    Computed without values on PyTorch's `meta` device; `with_values`: with the measured `own_std` of its tensors.
    Raises UserError for images that are too small for it.
    """
    if with_values:
        module, _ = _construct(make, image_shape, name, 0)
        return _facts(module, probe_images(image_shape), image_shape, classes, name)
    with torch.device("meta"):
        module, images = make(), torch.zeros(PROBE_IMAGES, *image_shape)
    return _facts(module, images, image_shape, classes, name)


# --- checks ---


def _check_tensors(module: nn.Module, name: str) -> None:
    """Refuse modules whose state is not plain float32 and int64 tensors of the `state_dict`."""
    for prefix, layer in module.named_modules():
        where = f"its module {quote(prefix or type(layer).__name__)}"
        if is_parametrized(layer) or any(key not in layer._parameters for key in weight_names(layer)):
            raise UserError(
                f"network {quote(name)}: {where} computes its weight from other tensors (weight norm, spectral norm or "
                "another parametrization), so no weight can be masked: use it without."
            )
    for tensor_name, tensor in module.state_dict().items():
        if not isinstance(tensor, Tensor):
            raise UserError(
                f"network {quote(name)}: {quote(tensor_name)} in its state_dict is no tensor (extra state), which no "
                "run can store."
            )
        if tensor.dtype not in DTYPES:
            raise UserError(
                f"network {quote(name)}: {quote(tensor_name)} is {tensor.dtype}; allowed are float32 (parameters) and "
                "int64 (buffers)."
            )
        if tensor.layout is not torch.strided:
            raise UserError(
                f"network {quote(name)}: {quote(tensor_name)} is {tensor.layout}, which no run can store: register it "
                "with persistent=False, or dense."
            )
        if any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)):
            raise UserError(
                f"network {quote(name)}: {quote(tensor_name)} has entries that share memory (expand): register a copy, "
                "with .clone()."
            )
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise UserError(f"network {quote(name)} has no parameter that can be trained.")


def _check_generators(states: Sequence[object], other_states: Sequence[object], name: str) -> None:
    """Refuse modules after whose construction a generator has the same state under two seeds: it was seeded there."""
    calls = ("torch.manual_seed", "numpy.random.seed", "random.seed")
    for call, state, other in zip(calls, states, other_states, strict=True):
        if state == other:
            raise UserError(
                f"network {quote(name)}: its constructor seeds a global generator ({call}), so all seeds of a study "
                "would have the same initial weights: leave that out, as every run is seeded before it."
            )


def _check_same_values(first: dict[str, Tensor], second: dict[str, Tensor], name: str) -> None:
    if first.keys() != second.keys() or any(first[n].shape != second[n].shape for n in first):
        raise UserError(f"network {quote(name)} has other tensors each time it is constructed.")
    for tensor_name, tensor in first.items():
        if not bitwise_equal(tensor.numpy(), second[tensor_name].numpy()):
            raise UserError(
                f"network {quote(name)}: {quote(tensor_name)} has other values each time it is constructed under one "
                "seed: draw from the generators of torch, numpy.random or random, and do not seed them."
            )


@dataclass(frozen=True)
class _Probe:
    """Settings of the passes in which modules are compared."""

    images: Tensor
    batch_size: int
    """Images of a pass in training mode; one in evaluation mode has all of them."""
    classes: int
    name: str

    def logits(self, module: nn.Module, tensors: Mapping[str, Tensor], training: bool) -> Tensor:
        """Return the logits of a pass of the module with these tensors, under one seed."""
        _set_tensors(module, tensors)
        images = self.images[: self.batch_size] if training else self.images
        with seeded_draws(0), torch.set_grad_enabled(training):
            return compute_logits(module.train(training), images.clone(), self.classes, self.name, training).detach()


def _check_passes(module: nn.Module, image_shape: tuple[int, int, int], probe: _Probe) -> dict[str, Any]:
    """Evaluate, train and evaluate as an engine does; refuse wrong logits, and passes that change parameters.

    Returns the attributes that keep changing, with their values at the start.
    """
    name, classes = probe.name, probe.classes
    parameters = {n: p.detach().clone() for n, p in module.named_parameters()}
    start, states = hidden_state(module), []
    for seed in (0, 1):
        images = probe_images(image_shape, seed)
        # The last images of an evaluation may be any number.
        passes = [(False, images), (True, images[: probe.batch_size]), (False, images), (False, images[:1])]
        for training, batch in passes:
            _check_pass(module.train(training), batch, classes, name)
            if seed:
                states.append(hidden_state(module))
    for parameter_name, parameter in module.named_parameters():
        if not torch.equal(parameter.detach(), parameters[parameter_name]):
            raise UserError(
                f"network {quote(name)}: its forward pass changes its parameter {quote(parameter_name)}: only the "
                "optimizer may, or no certificate could hold."
            )
    # What the first passes compute may stay as it is.
    return {
        n: value
        for n, value in start.items()
        if any(keeps_changing(value, first.get(n), second.get(n)) for first, second in pairwise(states))
    }


def _find_memory(module: nn.Module, unused: nn.Module, probe: _Probe) -> str:
    """Return what the logits of a module depend on beside its `state_dict`, set by earlier passes; empty if nothing.

    `unused`: the same module without any pass. Both get the tensors of `module`, with other parameters: a value
    computed from earlier ones is seen too.
    """
    values = {n: t.clone() for n, t in module.state_dict().items()}
    start = hidden_state(unused)
    try:
        is_equal_to_unused = _has_equal_logits(module, unused, values | _perturbed_parameters(module), probe)
    except UserError:
        # The module does not take these parameters, which no training gave it.
        is_equal_to_unused = _has_equal_logits(module, unused, values, probe)
    _set_tensors(module, values)
    if is_equal_to_unused:
        return ""
    used, expected = hidden_state(module), hidden_state(unused)
    # What the same passes set to the same values is a record of them.
    names = [n for n, value in used.items() if not is_equal(value, expected.get(n))]
    names += [n for n, value in used.items() if not is_equal(value, start.get(n))]
    return f"its attribute {quote(names[0])}" if names else "something"


def _has_equal_logits(module: nn.Module, unused: nn.Module, tensors: Mapping[str, Tensor], probe: _Probe) -> bool:
    expected = {training: probe.logits(unused, tensors, training) for training in (False, True)}
    # Several passes, so that values that alternate are seen.
    for training in (False, True, True, False, True):
        logits = probe.logits(module, tensors, training)
        tolerance = MEMORY_TOLERANCE * float(expected[training].abs().nan_to_num().max())
        if not torch.allclose(logits, expected[training], rtol=0, atol=tolerance, equal_nan=True):
            return False
    return True


def _check_counters(drifting: Mapping[str, Any], module: nn.Module, fresh: Sequence[nn.Module], probe: _Probe) -> None:
    """Refuse attributes that each pass computes from their former values, even if no logits depend on them yet.

    After the same passes, those of a used module differ from those of two fresh ones, which are equal. Records of the
    last pass are equal in all three; times of day and durations differ in all three.
    """
    values = {n: t.clone() for n, t in module.state_dict().items()}
    counters = dict(drifting)
    for training in (False, True, True, False):
        for tested in (module, *fresh):
            probe.logits(tested, values, training)
        used, first, second = (hidden_state(tested) for tested in (module, *fresh))
        counters = {
            n: start for n, start in counters.items() if accumulates(start, used.get(n), first.get(n), second.get(n))
        }
    _set_tensors(module, values)
    for attribute in counters:
        raise UserError(
            f"network {quote(probe.name)}: its forward pass changes its attribute {quote(attribute)}, {NOT_STORED}."
        )


def _set_tensors(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy tensors into a module; one that layers share has the value under its first name."""
    aliases = shared_names(module)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            tensor.copy_(tensors[aliases.get(name, name)])


def _perturbed_parameters(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters that can be trained, each entry reduced by up to 10%: signs, zeros and bounds are kept."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: parameter.detach() * (1 - 0.1 * torch.rand(parameter.shape, generator=generator))
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }


def _check_constructor_draws(state: HiddenState, again: HiddenState, other: HiddenState, name: str) -> None:
    """Refuse attributes that are equal under one seed and differ under two: the constructor draws them."""
    for attribute, value in state.items():
        if is_equal(value, again.get(attribute)) and not is_equal(value, other.get(attribute)):
            raise UserError(
                f"network {quote(name)}: its constructor draws its attribute {quote(attribute)}, {NOT_STORED} "
                "(persistent); layers belong in an nn.ModuleList."
            )


def _check_pass(module: nn.Module, images: Tensor, classes: int, name: str) -> None:
    """Run a forward pass, and a backward pass in training mode; refuse wrong logits."""
    mode = "training" if module.training else "evaluation"
    with seeded_draws(0), torch.set_grad_enabled(module.training):
        # A copy: as in training, every pass gets images that the module may change.
        logits = compute_logits(module, images.clone(), classes, name, module.training)
        if not logits.is_floating_point() or not logits.isfinite().all():
            raise UserError(
                f"network {quote(name)} gives logits that are not finite numbers for random images in [0, 1] in {mode} "
                "mode."
            )
        if not module.training:
            return
        if not logits.requires_grad:
            raise UserError(f"network {quote(name)}: its logits do not depend on its parameters (no gradient).")
        with translate_errors(name, "its backward pass"):
            probe_loss(logits).backward()  # type: ignore[no-untyped-call]


# --- facts ---


def _facts(
    module: nn.Module,
    images: Tensor,
    image_shape: tuple[int, int, int],
    classes: int,
    name: str,
    frozen: Collection[str] = (),
) -> NetworkFacts:
    """Return the facts of a module. `frozen`: its parameters with requires_grad=False after construction."""
    prunable = prunable_parameters(module)
    passes = list(run_gradient_passes(module, images, image_shape, name))
    trained = frozenset[str]().union(*(one.trained for one in passes))
    output_layer = next((one.output_layer for one in passes if one.output_layer is not None), None)
    tensors = []
    parameters = dict(module.named_parameters())
    for tensor_name, (layer, kind, fans) in prunable.items():
        if tensor_name not in trained:
            continue
        parameter = parameters[tensor_name]
        tensors.append(
            PrunableTensor(
                tensor_name,
                tuple(parameter.shape),
                "output" if layer is output_layer else kind,
                *fans,
                own_std=0.0 if parameter.is_meta else _root_mean_square(parameter),
            )
        )
    if not tensors:
        reason = (
            "none of its Linear, Conv, attention and recurrent layers gets a gradient."
            if prunable
            else "it has no Linear, Conv, attention or recurrent layer. Parameters of layers that you wrote yourself "
            "are trained but never pruned: make their matrices nn.Linear layers."
        )
        raise UserError(f"network {quote(name)} has no prunable weight: {reason}")
    names, aliases = {t.name for t in tensors}, shared_names(module)
    unmasked = [
        UnmaskedTensor(
            n, tuple(t.shape), DTYPES[t.dtype], n in trained, n not in parameters, n in frozen and n not in trained
        )
        for n, t in module.state_dict().items()
        if n not in names and n not in aliases
    ]
    multiplications = max(one.multiplications for one in passes)
    return NetworkFacts(
        image_shape, classes, tuple(tensors), tuple(unmasked), tuple(sorted(aliases.items())), multiplications
    )


def _root_mean_square(tensor: Tensor) -> float:
    return float(tensor.detach().double().square().mean().sqrt())
