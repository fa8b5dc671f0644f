"""What a ticket file says of itself, checked again from the file alone: the part of a certificate that travels.

The test accuracy of the network that a ticket is, measured now.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

from supermask.core.errors import UserError, quote
from supermask.core.masks import count_kept, remaining_after
from supermask.core.types import InitialState
from supermask.datasets import ImageDataset
from supermask.export.tickets.model import Ticket, get_fact, mask_mismatch, network_layers
from supermask.networks.sequential import architecture, build_module, prunable_tensors
from supermask.store.records import state_hash

MAX_LEVELS = 10_000


@dataclass(frozen=True)
class Check:
    """One promise: whether it held, and what broke it, or why it cannot be checked here."""

    promise: str
    status: Literal["held", "BROKEN", "not checked"]
    why: str = ""


def checks(ticket: Ticket) -> list[Check]:
    """Every promise of a ticket that was read from a file: reading has checked the first.

    Source: paper.md section 11 ("every run carries its own certificate").
    """
    return [
        Check("every bit is as it was written, and masks keep as many weights as they should", "held"),
        _check_recorded_certificate(ticket),
        _same_run(ticket),
        _failed_layers("no layer is emptied", [name for name, count in count_kept(ticket.masks).items() if not count]),
        _check_counts(ticket),
        *_weights(ticket),
    ]


def _failed_layers(promise: str, layers: list[str]) -> Check:
    return Check(promise, "BROKEN", ", ".join(map(quote, layers))) if layers else Check(promise, "held")


def _check_recorded_certificate(ticket: Ticket) -> Check:
    """What the run's certificate said when the run ended, optimiser and all."""
    promise = "the run's certificate held when it ended"
    held = get_fact(ticket, bool, "run", "certificate", "held")
    told = get_fact(ticket, dict, "run", "certificate", "checks")
    if held is None or told is None:
        return Check(promise, "not checked", "the ticket is of no run")
    broken = [str(name) for name, layers in told.items() if layers]
    return _failed_layers(promise, broken or ([] if held else ["held: false"]))


def _same_run(ticket: Ticket) -> Check:
    """The facts are about these masks."""
    promise = "network, seed and counts of its facts are those of its tensors"
    run = get_fact(ticket, dict, "run")
    if run is None:
        return Check(promise, "not checked", "the ticket is of no run")
    here = {
        "network": ticket.network,
        "dataset": ticket.dataset,
        "seed": ticket.seed,
        "kept": count_kept(ticket.masks),
        "weights": sum(mask.numel() for mask in ticket.masks.values()),
    }
    return _failed_layers(promise, [name for name, value in here.items() if run.get(name) != value])


def _check_counts(ticket: Ticket) -> Check:
    """Counts by prune rates and level, from the whole network on."""
    promise = "kept counts are what prune rates and level ask for"
    if get_fact(ticket, bool, "from_a_learned_mask"):
        return Check(promise, "not checked", "its chain begins with a learned mask")
    level, rates = get_fact(ticket, int, "run", "level"), get_fact(ticket, dict, "run", "prune_rates")
    if level is None or rates is None or ticket.network is None or ticket.dataset is None or (level and not rates):
        return Check(promise, "not checked", "no prune rates are known")
    if not 0 <= level <= MAX_LEVELS or not all(
        type(rate) in (int, float) and 0 <= rate <= 1 for rate in rates.values()
    ):
        return Check(promise, "BROKEN", "its level or its prune rates cannot be")
    found = prunable_tensors(network_layers(ticket.network, ticket.dataset))
    counts, sizes = count_kept(ticket.masks), {name: maskable.size for name, maskable in found.items()}
    asked_of = {name: rates.get(maskable.kind, 0) for name, maskable in found.items()}
    if get_fact(ticket, str, "run", "step", "scope") == "global":
        counts, sizes = {"all": sum(counts.values())}, {"all": sum(sizes.values())}
        asked_of = {"all": rates.get("global", 0)}
    asked = {name: remaining_after(size, asked_of[name], level) for name, size in sizes.items()}
    return _failed_layers(
        promise,
        [f"{name}: {counts[name]} kept, {count} asked" for name, count in asked.items() if counts[name] != count],
    )


def _weights(ticket: Ticket) -> list[Check]:
    """The seed's network, zeros at pruned weights, and the start that was trained from."""
    seed, zeros = "its seed gives the network that it was made of", "pruned weights are 0"
    start = "it is the start that was trained from, bit for bit"
    if ticket.seed is None:
        told = [Check(seed, "not checked", "no seed is known")]
    else:
        try:
            ticket.initial_weights()
            told = [Check(seed, "held")]
        except UserError as error:
            told = [Check(seed, "BROKEN", str(error))]
    if ticket.needs_seed and told[0].status == "BROKEN":
        return [*told, *(Check(promise, "not checked", "the seed's weights are needed") for promise in (zeros, start))]
    tensors = ticket.network_weights()
    nonzero = [name for name, mask in ticket.masks.items() if bool((tensors[name][~mask] != 0).any())]
    mask0 = get_fact(ticket, str, "run", "mask0")
    if nonzero and mask0 not in (None, "zero"):
        told.append(Check(zeros, "not checked", f"they are frozen by {quote(mask0)}"))
    else:
        told.append(_failed_layers(zeros, nonzero))
    content = get_fact(ticket, str, "run", "start_content")
    if get_fact(ticket, str, "weights") == "start" and content is not None:
        weights = {name: tensors.pop(name) for name in ticket.masks}
        same = state_hash(InitialState(weights, ticket.masks, tensors)) == content
        told.append(Check(start, "held") if same else Check(start, "BROKEN", "its hash is another"))
    return told


EVALUATION_PIXELS = 2**20


@dataclass(frozen=True)
class Evaluation:
    """Accuracies are shares of the test images."""

    correct: int
    images: int
    stored: float | None
    """The accuracy in the ticket; None where none is known of the network that it is."""
    stored_source: str | None
    """What the stored one was measured with, such as `final weights`."""
    same_data: bool | None
    """Whether the images and labels are those that the ticket's run had; None where that is not known."""

    @property
    def accuracy(self) -> float:
        """right / images"""
        return self.correct / self.images


def evaluate(ticket: Ticket, images: ImageDataset, device: str = "cpu") -> Evaluation:
    """Measures a ticket of one of supermask's networks on the test images of a data set.

    Pixels are scaled and the first of equal logits counts, as when a run is measured. Raises UserError as `check_fit`
    does, and for a ticket that lacks a tensor.
    """
    check_fit(ticket, images.facts.name)
    stored, of = stored_accuracy(ticket) or (None, None)
    trained_on = get_fact(ticket, str, "run", "data", "fingerprint")
    return Evaluation(
        correct=_count_correct(ticket, images, device),
        images=len(images.test_labels),
        stored=stored,
        stored_source=of,
        same_data=None if trained_on is None else trained_on == images.fingerprint,
    )


def stored_accuracy(ticket: Ticket) -> tuple[float, str] | None:
    """(test accuracy, what it was measured with) of the network in the ticket; None where that is not known."""
    test, of = get_fact(ticket, float, "accuracy", "test"), get_fact(ticket, str, "accuracy", "of")
    return None if test is None or of is None or not 0 <= test <= 1 else (test, of)


def check_fit(ticket: Ticket, dataset: str) -> None:
    """Raises UserError for a ticket of somebody's own module, and for images or classes that do not fit."""
    if ticket.network is None:
        raise UserError(
            "this ticket is of no network of supermask's: give it to your module with Ticket.apply_to, and measure it."
        )
    if wrong := mask_mismatch(ticket.masks, ticket.network, dataset):
        raise UserError(f"the ticket does not fit {dataset}: {wrong}. It was made for {ticket.dataset}.")


def _count_correct(ticket: Ticket, images: ImageDataset, device: str) -> int:
    import torch

    assert ticket.network is not None
    module = build_module(architecture(ticket.network, images.facts.image_shape, images.facts.classes))
    lacking = module.state_dict().keys() - ticket.network_weights().keys()
    if lacking:
        raise UserError(f"the ticket has no tensor {quote(min(lacking))}, which {ticket.network} needs.")
    ticket.apply_to(module.eval()).to(device)
    at_once = max(1, EVALUATION_PIXELS // prod(images.facts.image_shape))
    right = 0
    with torch.inference_mode():
        for first in range(0, len(images.test_labels), at_once):
            pixels = torch.from_numpy(images.scaled(images.test_images[first : first + at_once])).to(device)
            labels = torch.from_numpy(images.test_labels[first : first + at_once].copy()).to(device)
            right += int((module(pixels).argmax(1) == labels).sum())
    return right
