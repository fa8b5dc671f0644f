"""What a ticket file says of itself, checked again from the file alone: the part of a certificate that travels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from supermask.errors import UserError
from supermask.masks import kept, kept_after
from supermask.networks import maskables
from supermask.records import start_content
from supermask.study.yaml_tree import shown
from supermask.tickets.model import Ticket, fact, network_layers
from supermask.types import Start

MOST_LEVELS = 10_000


@dataclass(frozen=True)
class Check:
    """One promise: whether it held, and what broke it, or why it cannot be checked here."""

    promise: str
    verdict: Literal["held", "BROKEN", "not checked"]
    why: str = ""


def checks(ticket: Ticket) -> list[Check]:
    """Every promise of a ticket that was read from a file: reading has checked the first.

    Source: paper.md section 11 ("every run carries its own certificate").
    """
    return [
        Check("every bit is as it was written, and masks keep as many weights as they should", "held"),
        _recorded(ticket),
        _same_run(ticket),
        _broken("no layer is emptied", [name for name, count in kept(ticket.masks).items() if not count]),
        _asked(ticket),
        *_weights(ticket),
    ]


def _broken(promise: str, layers: list[str]) -> Check:
    return Check(promise, "BROKEN", ", ".join(map(shown, layers))) if layers else Check(promise, "held")


def _recorded(ticket: Ticket) -> Check:
    """What the run's certificate said when the run ended, optimiser and all."""
    promise = "the run's certificate held when it ended"
    held = fact(ticket, bool, "run", "certificate", "held")
    told = fact(ticket, dict, "run", "certificate", "checks")
    if held is None or told is None:
        return Check(promise, "not checked", "the ticket is of no run")
    broken = [str(name) for name, layers in told.items() if layers]
    return _broken(promise, broken or ([] if held else ["held: false"]))


def _same_run(ticket: Ticket) -> Check:
    """The facts are about these masks."""
    promise = "network, seed and counts of its facts are those of its tensors"
    run = fact(ticket, dict, "run")
    if run is None:
        return Check(promise, "not checked", "the ticket is of no run")
    here = {
        "network": ticket.network,
        "dataset": ticket.dataset,
        "seed": ticket.seed,
        "kept": kept(ticket.masks),
        "weights": sum(mask.numel() for mask in ticket.masks.values()),
    }
    return _broken(promise, [name for name, value in here.items() if run.get(name) != value])


def _asked(ticket: Ticket) -> Check:
    """Counts by prune rates and level, from the whole network on."""
    promise = "kept counts are what prune rates and level ask for"
    if fact(ticket, bool, "from_a_learned_mask"):
        return Check(promise, "not checked", "its chain begins with a learned mask")
    level, rates = fact(ticket, int, "run", "level"), fact(ticket, dict, "run", "prune_rates")
    if level is None or rates is None or ticket.network is None or ticket.dataset is None or (level and not rates):
        return Check(promise, "not checked", "no prune rates are known")
    if not 0 <= level <= MOST_LEVELS or not all(
        type(rate) in (int, float) and 0 <= rate <= 1 for rate in rates.values()
    ):
        return Check(promise, "BROKEN", "its level or its prune rates cannot be")
    found = maskables(network_layers(ticket.network, ticket.dataset))
    counts, sizes = kept(ticket.masks), {name: maskable.size for name, maskable in found.items()}
    asked_of = {name: rates.get(maskable.kind, 0) for name, maskable in found.items()}
    if fact(ticket, str, "run", "step", "scope") == "global":
        counts, sizes = {"all": sum(counts.values())}, {"all": sum(sizes.values())}
        asked_of = {"all": rates.get("global", 0)}
    asked = {name: kept_after(size, asked_of[name], level) for name, size in sizes.items()}
    return _broken(
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
    if ticket.needs_seed and told[0].verdict == "BROKEN":
        return [*told, *(Check(promise, "not checked", "the seed's weights are needed") for promise in (zeros, start))]
    tensors = ticket.network_weights()
    nonzero = [name for name, mask in ticket.masks.items() if bool((tensors[name][~mask] != 0).any())]
    mask0 = fact(ticket, str, "run", "mask0")
    if nonzero and mask0 not in (None, "zero"):
        told.append(Check(zeros, "not checked", f"they are frozen by {shown(mask0)}"))
    else:
        told.append(_broken(zeros, nonzero))
    content = fact(ticket, str, "run", "start_content")
    if fact(ticket, str, "weights") == "start" and content is not None:
        weights = {name: tensors.pop(name) for name in ticket.masks}
        same = start_content(Start(weights, ticket.masks, tensors)) == content
        told.append(Check(start, "held") if same else Check(start, "BROKEN", "its hash is another"))
    return told
