"""`TicketCallback`: the lottery ticket algorithm around `Trainer.fit`, one level per fit."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from supermask.core.actions import MASK0_ACTIONS
from supermask.core.certificate import Certificate, certify
from supermask.core.criteria import CRITERIA, NEEDS_GRADIENT, Criterion
from supermask.core.errors import RunsRefused, UserError, check_one_of, quote
from supermask.core.pruning import ParentRun, PruneStep, Scope, prune_and_reset
from supermask.core.rng import child_streams
from supermask.core.types import (
    InitialState,
    LearningCurve,
    Masks,
    NetworkState,
    PrunableTensor,
    TrainingResult,
    Weights,
)
from supermask.export.tickets.holding import hold
from supermask.export.tickets.model import Ticket
from supermask.export.tickets.modules import (
    Match,
    copy_into,
    kernel_kinds,
    match_tensors,
    module_tensors,
    name_stripper,
)

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError:
    try:
        from pytorch_lightning import Callback, LightningModule, Trainer
    except ImportError as missing:
        raise ImportError("Lightning is not installed: pip install 'supermask[lightning]'.") from missing

if TYPE_CHECKING:
    from torch import nn

NOT_CHECKED = ("optimizer_holds_nothing_frozen",)
"""Checks of a certificate that hold for the engines here, but not for every optimizer and layer of others."""


class TicketCallback(Callback):  # type: ignore[misc]
    """Mask, rewind, hold and certify around `Trainer.fit`.

    Without a ticket every fit is a level of iterative pruning. The first one trains the dense network. Each later one
    first prunes the weights of the last (`criterion`, `rates`), sets every kept weight, bias and buffer back to where
    the first fit started, and freezes pruned weights (`mask0`). So rewinding cannot be forgotten:

        callback = TicketCallback(rates=0.2)
        for level in range(4):
            Trainer(max_epochs=5, callbacks=[callback]).fit(module, data)
        save_ticket(callback.ticket(), "ticket.safetensors")

    With a ticket every fit starts from the ticket: `TicketCallback(load_ticket("ticket.safetensors"))`.

    Pruned weights do not move during a fit, under any optimizer (`supermask.hold`). When a fit ends, its invariants are
    checked from the tensors; `certificate` has the result, and one that fails raises `RunsRefused`. A fit that is
    interrupted or fails is no level: the next one starts like it again.

    Differs from the paper: data order and learning rate are those of the trainer; weights are rewound to iteration 0.
    """

    def __init__(
        self,
        ticket: Ticket | None = None,
        *,
        rates: float | Mapping[str, float] = 0.2,
        criterion: str | Criterion = "large_final",
        mask0: str = "zero",
        scope: Scope = "layer",
        seed: int = 0,
        names: Mapping[str, str] | None = None,
        match: Match = "name",
    ) -> None:
        """Check the settings. Raises UserError.

        `rates`: share of the surviving weights that a level prunes, for all layers or by kind (`conv`, `hidden`,
        `output`: the last layer). `criterion`: a name, or a function `score(layer, rng)`. `seed`: random criteria, ties
        and random actions. `names`, `match`: of a ticket, as for `Ticket.apply_to`.
        """
        self._given = ticket
        self._names, self._match = names, match
        self._seed = seed
        self._step = _check_step(rates, criterion, mask0, scope)
        self._parent: ParentRun | None = None
        self._start: InitialState | None = None
        # Level and certificate of the fit that ended as `_parent`.
        self._result: tuple[int, Certificate] | None = None
        self._hold = ExitStack()
        self.level = 0
        """Level of the fit that runs or ran last: 0 is the dense network. With a ticket it stays 0."""
        self.certificate: Certificate | None = None
        """Checks of the last fit that ended."""

    @property
    def masks(self) -> Masks:
        """Masks of the last fit, by the module's tensor names. Raises UserError before the first fit."""
        if self._start is None:
            raise UserError("there is no mask yet: call Trainer.fit with this callback first.")
        return self._start.masks

    def ticket(self, **facts: Any) -> Ticket:
        """Return the ticket of the last fit that ended: its masks and trained weights. `facts`: plain JSON to store.

        A fit that was interrupted, that failed, or whose certificate does not hold has no ticket. Raises UserError
        before the end of the first fit.
        """
        if self._parent is None or self._result is None:
            raise UserError("there is no ticket yet: call Trainer.fit with this callback first.")
        end = self._parent.state_at("end")
        frozen = {
            n: end.weights[n] for n, m in self._parent.start.masks.items() if bool((end.weights[n][~m] != 0).any())
        }
        level, certificate = self._result
        levels = {"level": level, "certificate": certificate.to_data()}
        return Ticket(
            self._parent.start.masks,
            dict(end.weights),
            dict(end.unmasked),
            frozen=dict(frozen),
            facts={"weights": "final", "lightning": levels, **facts},
        )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Prune and rewind, or apply the ticket; hold the pruned weights from here on. Raises UserError."""
        self._hold.close()
        if trainer.ckpt_path is not None:
            raise UserError(
                "a level starts from rewound weights, not from a checkpoint: leave out ckpt_path, and call fit again "
                "to repeat an interrupted level."
            )
        self._start = self._next_start(pl_module)
        tensors = {**self._start.weights, **self._start.unmasked}
        copy_into(pl_module, tensors, match_tensors(pl_module, tensors, self._start.masks))
        self._hold = ExitStack()
        self._hold.enter_context(hold(pl_module, self._start.masks))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the state that training really starts from, which the certificate is about."""
        state = _read_state(pl_module, _prunable(pl_module))
        self._start = InitialState(state.weights, self.masks, state.unmasked)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check the invariants of the fit. Raises RunsRefused if one is broken."""
        self._hold.close()
        if self._start is None or trainer.interrupted:
            return
        prunable = _prunable(pl_module)
        end = _read_state(pl_module, prunable)
        self.certificate = self._certify(prunable, TrainingResult("finished", end, {}, LearningCurve(), {}))
        if not self.certificate.passed:
            failed = {name: items for name, items in self.certificate.checks.items() if items}
            raise RunsRefused(f"the certificate of level {self.level} does not hold: {failed}. It is not a result.")
        self._parent, self._result = ParentRun(self._start, {"end": end}, prunable), (self.level, self.certificate)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Release the weights; the next fit repeats this level."""
        self._hold.close()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Release the weights."""
        self._hold.close()

    def _next_start(self, module: nn.Module) -> InitialState:
        """Return the state that the next fit starts from."""
        import torch

        prunable = _prunable(module)
        if self._given is not None:
            return _ticket_start(self._given, module, prunable, self._names, self._match)
        if self._parent is None:
            # After an interrupted first fit the start is known, and the module has moved on.
            state = _read_state(module, prunable) if self._start is None else self._start.state
            dense = {name: torch.ones(tensor.shape, dtype=torch.bool) for name, tensor in prunable.items()}
            return InitialState(state.weights, dense, state.unmasked)
        if self._parent.prunable != prunable:
            raise UserError("this callback has pruned another network: use a new TicketCallback for each network.")
        if self._start is self._parent.start:
            self.level += 1
        return prune_and_reset(self._parent, self._step_for(prunable), child_streams(self._seed, "level", self.level))

    def _step_for(self, prunable: Mapping[str, PrunableTensor]) -> PruneStep:
        return replace(self._step, rates=_select_rates(self._step, prunable))

    def _certify(self, prunable: dict[str, PrunableTensor], result: TrainingResult) -> Certificate:
        assert self._start is not None
        parent = None if self._given is not None else self._parent
        step = None if parent is None else self._step_for(prunable)
        # With weight decay `biases_train` is left out: in networks of others a bias may be frozen or unused on purpose.
        certificate = certify(prunable, self._start, result, parent, step, weight_decay=1.0)
        left_out = {*NOT_CHECKED, *(() if self._given is None else ("dense",))}
        checks = {name: items for name, items in certificate.checks.items() if name not in left_out}
        return Certificate(checks, certificate.notes)


def _check_step(rates: float | Mapping[str, float], criterion: str | Criterion, mask0: str, scope: Scope) -> PruneStep:
    if isinstance(criterion, str):
        check_one_of("a criterion", criterion, [name for name in CRITERIA if name not in NEEDS_GRADIENT])
    elif not callable(criterion):
        raise UserError(f"criterion={quote(criterion)}: give a name or a function score(layer, rng).")
    check_one_of("a mask-0 action", mask0, list(MASK0_ACTIONS))
    check_one_of("a scope", scope, ["layer", "global"])
    by_kind = (
        dict(rates) if isinstance(rates, Mapping) else dict.fromkeys(("conv", "hidden", "output", "global"), rates)
    )
    for kind, rate in by_kind.items():
        check_one_of("a kind of layer", kind, ["conv", "hidden", "output", "global"])
        if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 <= rate < 1:
            raise UserError(f"rates: {quote(rate)} is not a share in [0, 1).")
    return PruneStep(criterion, "rewind", mask0, by_kind, scope)


def _select_rates(step: PruneStep, prunable: Mapping[str, PrunableTensor]) -> dict[str, float]:
    """Return the rates of the kinds that the network has. Raises UserError for a kind without a rate."""
    kinds = ["global"] if step.scope == "global" else list(dict.fromkeys(t.kind for t in prunable.values()))
    if missing := [kind for kind in kinds if kind not in step.rates]:
        raise UserError(f"rates has no rate for {', '.join(missing)}: give one rate for all, or one for each kind.")
    return {kind: step.rates[kind] for kind in kinds}


def _prunable(module: nn.Module) -> dict[str, PrunableTensor]:
    """Return the kernels that can be pruned, by their names without prefixes, in order. Raises UserError for none."""
    strip, state = name_stripper(module), module_tensors(module)
    kinds = kernel_kinds(module)
    if not kinds:
        raise UserError("the module has no Linear or Conv layer that trains, so nothing can be pruned.")
    return {strip(name): PrunableTensor(strip(name), tuple(state[name].shape), kind) for name, kind in kinds.items()}


def _read_state(module: nn.Module, prunable: Mapping[str, PrunableTensor]) -> NetworkState:
    """Copy the tensors of a module to the CPU, in float32 and int64. Raises UserError for float64."""
    import torch

    strip = name_stripper(module)
    weights: Weights = {}
    unmasked: Weights = {}
    seen: set[int] = set()
    for name, tensor in module_tensors(module).items():
        if id(tensor) in seen:
            continue  # Tied tensors are read once, under their first name.
        seen.add(id(tensor))
        if tensor.dtype == torch.float64:
            raise UserError(f"{quote(name)} is float64, and tickets hold float32: convert the module with .float().")
        copy = tensor.detach().to("cpu", torch.float32 if tensor.is_floating_point() else torch.int64, copy=True)
        (weights if strip(name) in prunable else unmasked)[strip(name)] = copy.contiguous()
    return NetworkState({name: weights[name] for name in prunable}, unmasked)


def _ticket_start(
    ticket: Ticket,
    module: nn.Module,
    prunable: Mapping[str, PrunableTensor],
    names: Mapping[str, str] | None,
    match: Match,
) -> InitialState:
    """Return the module's state with a ticket applied; kernels without a mask are whole."""
    import torch

    ticket.apply_to(module, names, match)
    strip = name_stripper(module)
    targets = match_tensors(module, ticket.network_weights(), ticket.masks, names, match)
    masks = {name: torch.ones(tensor.shape, dtype=torch.bool) for name, tensor in prunable.items()}
    for name, mask in ticket.masks.items():
        if (target := strip(targets[name])) not in masks:
            raise UserError(
                f"{quote(target)} is not the kernel of a Linear or Conv layer that trains: leave out its mask."
            )
        masks[target] = mask
    state = _read_state(module, prunable)
    return InitialState(state.weights, masks, state.unmasked)
