"""The test accuracy of the network that a ticket is, measured now."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from supermask.datasets import Images
from supermask.errors import UserError
from supermask.networks import architecture, build
from supermask.study.yaml_tree import shown
from supermask.tickets.model import Ticket, fact, misfit

PIXELS_AT_ONCE = 2**20


@dataclass(frozen=True)
class Evaluation:
    """Accuracies are shares of the test images."""

    right: int
    images: int
    stored: float | None
    """The accuracy in the ticket; None where none is known of the network that it is."""
    of: str | None
    """What the stored one was measured with, such as `final weights`."""
    same_data: bool | None
    """Whether the images and labels are those that the ticket's run had; None where that is not known."""

    @property
    def accuracy(self) -> float:
        """right / images"""
        return self.right / self.images


def evaluate(ticket: Ticket, images: Images, device: str = "cpu") -> Evaluation:
    """Measures a ticket of one of supermask's networks on the test images of a data set.

    Pixels are scaled and the first of equal logits counts, as when a run is measured. Raises UserError as `check_fit`
    does, and for a ticket that lacks a tensor.
    """
    check_fit(ticket, images.facts.name)
    stored, of = stored_accuracy(ticket) or (None, None)
    trained_on = fact(ticket, str, "run", "data", "fingerprint")
    return Evaluation(
        right=_right(ticket, images, device),
        images=len(images.test_labels),
        stored=stored,
        of=of,
        same_data=None if trained_on is None else trained_on == images.fingerprint,
    )


def stored_accuracy(ticket: Ticket) -> tuple[float, str] | None:
    """(test accuracy, what it was measured with) of the network in the ticket; None where that is not known."""
    test, of = fact(ticket, float, "accuracy", "test"), fact(ticket, str, "accuracy", "of")
    return None if test is None or of is None or not 0 <= test <= 1 else (test, of)


def check_fit(ticket: Ticket, dataset: str) -> None:
    """Raises UserError for a ticket of somebody's own module, and for images or classes that do not fit."""
    if ticket.network is None:
        raise UserError(
            "this ticket is of no network of supermask's: give it to your module with Ticket.apply_to, and measure it."
        )
    if wrong := misfit(ticket.masks, ticket.network, dataset):
        raise UserError(f"the ticket does not fit {dataset}: {wrong}. It was made for {ticket.dataset}.")


def _right(ticket: Ticket, images: Images, device: str) -> int:
    import torch

    assert ticket.network is not None
    module = build(architecture(ticket.network, images.facts.image_shape, images.facts.classes))
    lacking = module.state_dict().keys() - ticket.network_weights().keys()
    if lacking:
        raise UserError(f"the ticket has no tensor {shown(min(lacking))}, which {ticket.network} needs.")
    ticket.apply_to(module.eval()).to(device)
    at_once = max(1, PIXELS_AT_ONCE // prod(images.facts.image_shape))
    right = 0
    with torch.inference_mode():
        for first in range(0, len(images.test_labels), at_once):
            pixels = torch.from_numpy(images.scaled(images.test_images[first : first + at_once])).to(device)
            labels = torch.from_numpy(images.test_labels[first : first + at_once].copy()).to(device)
            right += int((module(pixels).argmax(1) == labels).sum())
    return right
