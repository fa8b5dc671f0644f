"""Checks of a ticket from its file alone, and evaluation of its network on test images."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite, prod
from typing import Literal, TypeGuard

from supermask.core.errors import UserError, quote
from supermask.core.masks import ALL_TENSORS, count_kept, ranked_groups
from supermask.core.types import InitialState
from supermask.datasets import ImageDataset
from supermask.datasets.images import split_data
from supermask.datasets.specs import DataOptions, DatasetSpec
from supermask.export.tickets.model import Ticket, get_fact, mask_mismatch, ticket_network
from supermask.networks.network import is_user_network
from supermask.networks.registry import named_network
from supermask.store.records import state_hash

MAX_LEVELS = 10_000
"""Bound on a ticket's level: counts are computed level by level, and a forged level must not make that slow."""

MAX_BATCH_PIXELS = 2**20
"""Number of pixels evaluated at once."""


@dataclass(frozen=True)
class Check:
    """Result of one check."""

    name: str
    status: Literal["held", "BROKEN", "not checked"]
    why: str = ""
    """Items that failed, what was noted of a check that passed, or the reason why nothing was checked."""


def check_ticket(ticket: Ticket) -> list[Check]:
    """Check a ticket that was read from a file. The first entry was checked by reading it."""
    return [
        Check("every bit is as it was written, and masks keep as many weights as they should", "held"),
        _check_recorded_certificate(ticket),
        _check_run_facts(ticket),
        _to_check("no layer is emptied", [name for name, count in count_kept(ticket.masks).items() if not count]),
        _check_counts(ticket),
        *_check_weights(ticket),
    ]


def _to_check(name: str, failed: list[str]) -> Check:
    return Check(name, "BROKEN", ", ".join(map(quote, failed))) if failed else Check(name, "held")


def _check_recorded_certificate(ticket: Ticket) -> Check:
    """Check the certificate that was made when the run ended. It includes the optimizer's state."""
    name = "the run's certificate held when it ended"
    held = get_fact(ticket, bool, "run", "certificate", "held")
    recorded = get_fact(ticket, dict, "run", "certificate", "checks")
    if held is None or recorded is None:
        return Check(name, "not checked", "the ticket names no run")
    broken = [str(name) for name, layers in recorded.items() if layers]
    check = _to_check(name, broken or ([] if held else ["held: false"]))
    notes = get_fact(ticket, dict, "run", "certificate", "notes")
    if not notes or check.status != "held":
        return check
    return replace(check, why=f"noted: {', '.join(quote(name) for name in notes)}")


def _check_run_facts(ticket: Ticket) -> Check:
    """Check that the run's facts describe these masks."""
    name = "network, seed and counts of its facts are those of its tensors"
    run = get_fact(ticket, dict, "run")
    if run is None:
        return Check(name, "not checked", "the ticket names no run")
    actual: dict[str, object] = {
        "kept": count_kept(ticket.masks),
        "weights": sum(mask.numel() for mask in ticket.masks.values()),
    }
    # A ticket of a user network names no network, data set and seed: only the user's code builds the network again.
    if not (ticket.network is None and _is_of_user_network(ticket)):
        actual |= {"network": ticket.network, "dataset": ticket.dataset, "seed": ticket.seed}
    return _to_check(name, [name for name, value in actual.items() if run.get(name) != value])


def _is_of_user_network(ticket: Ticket) -> bool:
    """Return whether the run's facts name a network by import path."""
    return is_user_network(get_fact(ticket, str, "run", "network") or "")


def _check_counts(ticket: Ticket) -> Check:
    """Recompute kept counts from prune rates and level, beginning with the whole network."""
    name = "kept counts are what prune rates and level ask for"
    if get_fact(ticket, bool, "from_a_learned_mask"):
        return Check(name, "not checked", "its chain begins with a learned mask")
    if ticket.network is None and _is_of_user_network(ticket):
        return Check(name, "not checked", "the kinds of its layers are in the code of its network")
    level, rates = get_fact(ticket, int, "run", "level"), get_fact(ticket, dict, "run", "prune_rates")
    if level is None or rates is None or ticket.network is None or ticket.dataset is None or (level and not rates):
        return Check(name, "not checked", "no prune rates are known")
    if not 0 <= level <= MAX_LEVELS or not all(
        type(rate) in (int, float) and 0 <= rate <= 1 for rate in rates.values()
    ):
        return Check(name, "BROKEN", "its level or its prune rates are out of range")
    prunable = ticket_network(ticket.network, ticket.spec).tensors
    counts, sizes = count_kept(ticket.masks), {name: tensor.size for name, tensor in prunable.items()}
    kinds = {name: tensor.kind for name, tensor in prunable.items()}
    scope = get_fact(ticket, str, "run", "step", "scope")
    # A rate that the ticket does not name prunes nothing: it is not trusted to name all of them.
    rates = dict.fromkeys({*kinds.values(), "global"}, 0.0) | rates
    patterns = [get_fact(ticket, list, "run", "step", key) or [] for key in ("only", "exclude")]
    only, exclude = ([str(pattern) for pattern in part] for part in patterns)
    groups = ranked_groups(sizes, kinds, scope or "layer", rates, only, exclude)
    if scope == "global":
        counts[ALL_TENSORS] = sum(counts[name] for name in sizes if name not in groups)
    expected = {name: group.remaining(level) for name, group in groups.items()}
    return _to_check(
        name,
        [f"{name}: {counts[name]} kept, {count} asked" for name, count in expected.items() if counts[name] != count],
    )


def _check_weights(ticket: Ticket) -> list[Check]:
    """Check the network of the seed, the pruned weights, and the initial state of the run."""
    seed, zeros = "its seed gives the network that it was made of", "pruned weights are 0"
    start = "it is the start that was trained from, bit for bit"
    if ticket.seed is None:
        results = [Check(seed, "not checked", "no seed is known")]
    else:
        try:
            ticket.initial_weights()
            results = [Check(seed, "held")]
        except UserError as error:
            results = [Check(seed, "BROKEN", str(error))]
    if ticket.needs_seed and results[0].status == "BROKEN":
        reason = "the seed's weights are needed"
        return [*results, *(Check(name, "not checked", reason) for name in (zeros, start))]
    tensors = ticket.network_weights()
    nonzero = [name for name, mask in ticket.masks.items() if bool((tensors[name][~mask] != 0).any())]
    mask0 = get_fact(ticket, str, "run", "mask0")
    if nonzero and mask0 not in (None, "zero"):
        results.append(Check(zeros, "not checked", f"they are frozen by {quote(mask0)}"))
    else:
        results.append(_to_check(zeros, nonzero))
    content = get_fact(ticket, str, "run", "start_content")
    if get_fact(ticket, str, "weights") == "start" and content is not None:
        weights = {name: tensors.pop(name) for name in ticket.masks}
        same = state_hash(InitialState(weights, ticket.masks, tensors)) == content
        results.append(Check(start, "held") if same else Check(start, "BROKEN", "its hash differs"))
    return results


@dataclass(frozen=True)
class Evaluation:
    """Test accuracy of a ticket's network. Accuracies are shares of the test images."""

    correct: int
    images: int
    stored: float | None
    """Accuracy that the ticket stores, or None."""
    stored_source: str | None
    """Network of the stored accuracy, such as `final weights`."""
    same_data: bool | None
    """True if the ticket's run had the same images and labels; None if that is not known."""

    @property
    def accuracy(self) -> float:
        """correct / images."""
        return self.correct / self.images


def evaluate(ticket: Ticket, images: ImageDataset, device: str = "cpu") -> Evaluation:
    """Measure the accuracy of a ticket's network on the test images of a data set.

    Inputs are scaled and normalized as in the run. Among equal logits the lowest class wins.
    Raises UserError for a module without a known network, for data that does not fit, and if a tensor is missing.
    """
    check_fit(ticket, images.facts)
    stored, source = stored_accuracy(ticket) or (None, None)
    trained_on = get_fact(ticket, str, "run", "data", "fingerprint")
    return Evaluation(
        correct=_count_correct(ticket, images, device),
        images=len(images.test_labels),
        stored=stored,
        stored_source=source,
        same_data=None if trained_on is None else trained_on == images.fingerprint,
    )


def stored_accuracy(ticket: Ticket) -> tuple[float, str] | None:
    """Return (test accuracy, network it was measured with) as the ticket stores them; None if it stores none."""
    test, source = get_fact(ticket, float, "accuracy", "test"), get_fact(ticket, str, "accuracy", "of")
    return None if test is None or source is None or not 0 <= test <= 1 else (test, source)


def check_fit(ticket: Ticket, spec: DatasetSpec | None) -> None:
    """Raise UserError if the ticket names no network, or if its network does not fit the images or classes."""
    if ticket.network is None or spec is None:
        own = get_fact(ticket, str, "run", "network") if _is_of_user_network(ticket) else None
        problem = "names no network that supermask can build" if own is None else f"is of your network {quote(own)}"
        raise UserError(
            f"this ticket {problem}: copy it into your module with Ticket.apply_to and evaluate that (docs/tickets.md)."
        )
    if mismatch := mask_mismatch(ticket.masks, ticket.network, spec):
        raise UserError(f"the ticket does not fit {spec.name}: {mismatch}. It was made for {ticket.dataset}.")


def input_statistics(ticket: Ticket, images: ImageDataset) -> tuple[list[float], list[float]] | None:
    """Return mean and standard deviation per channel by which the ticket's run normalized its inputs; None if by none.

    Raises UserError if the ticket's facts do not say which, or if its run was trained on more images than there are.
    """
    recipe = get_fact(ticket, dict, "run", "recipe") or {}
    normalize = recipe.get("normalize", "none")
    if normalize == "none":
        return None
    if normalize == "per_channel" and ticket.seed is not None:
        # Label noise changes no pixel; the other options say which images were trained on.
        stored = get_fact(ticket, dict, "run", "data_options") or {}
        counts = {key: stored[key] for key in ("train_images", "validation") if _is_count(stored.get(key))}
        options = DataOptions(**counts).resolve(images.facts)
        statistics = split_data(images, ticket.seed, options).channel_statistics
        return list(statistics.mean), list(statistics.std)
    mean, std = (normalize.get(key) for key in ("mean", "std")) if isinstance(normalize, dict) else (None, None)
    channels = images.facts.image_shape[0]
    if _is_per_channel(mean, channels) and _is_per_channel(std, channels):
        return mean, std
    raise UserError(
        f"the ticket's run normalized its inputs in a way that this version does not know: {quote(normalize)}."
    )


def _is_count(value: object) -> TypeGuard[int]:
    return type(value) is int and value > 0


def _is_per_channel(column: object, channels: int) -> TypeGuard[list[float]]:
    return (
        isinstance(column, list)
        and len(column) == channels
        and all(type(value) in (int, float) and isfinite(value) for value in column)
    )


def _count_correct(ticket: Ticket, images: ImageDataset, device: str) -> int:
    import torch

    assert ticket.network is not None
    module = named_network(ticket.network, images.facts.image_shape, images.facts.classes).build()
    missing = module.state_dict().keys() - ticket.network_weights().keys()
    if missing:
        raise UserError(f"the ticket has no tensor {quote(min(missing))}, which {ticket.network} needs.")
    ticket.apply_to(module.eval()).to(device)
    batch_size = max(1, MAX_BATCH_PIXELS // prod(images.facts.image_shape))
    statistics = input_statistics(ticket, images)
    correct = 0
    with torch.inference_mode():
        for first in range(0, len(images.test_labels), batch_size):
            pixels = torch.from_numpy(images.scale(images.test_images[first : first + batch_size])).to(device)
            if statistics is not None:
                mean, std = (torch.tensor(values, device=device)[:, None, None] for values in statistics)
                pixels.sub_(mean).div_(std)
            labels = torch.from_numpy(images.test_labels[first : first + batch_size].copy()).to(device)
            correct += int((module(pixels).argmax(1) == labels).sum())
    return correct
