"""From jobs to outcomes: which are stacked, and how they go on together until each is done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from supermask.engines.choice import check_precision
from supermask.engines.job import Data, Job
from supermask.engines.loop import Training
from supermask.engines.reference import tiny_is_zero
from supermask.engines.stacked.convolutions import ways_here
from supermask.engines.stacked.precision import products_in
from supermask.engines.stacked.replica import Replica, Together, outcome_on_cpu
from supermask.engines.stacked.stack import Stack
from supermask.types import Outcome

Ways = Mapping[str, str]
"""How each convolution is computed, by its layer's name."""


def train(
    jobs: Sequence[Job], data: Sequence[Data], device: str = "cpu", precision: str = "float32", ways: Ways | None = None
) -> list[Outcome]:
    """Trains all jobs to their outcomes, those of one network and recipe at once; `data[i]` is the data of `jobs[i]`.

    Jobs of one seed share their batches if they have the same `Data` object. `precision`: of products, see
    `choice.Precision`. `ways`: how convolutions are computed (default: the fastest, as measured here).
    Raises UserError for a precision that the device does not have.
    Source: paper.md section 1 (steps 2 and 6), section 2.
    """
    place = torch.device(device)
    known = check_precision(precision, place.type)
    outcomes: dict[int, Outcome] = {}
    with tiny_is_zero(), products_in(known, place):
        for numbers in _stacks(jobs, data):
            some, of = [jobs[i] for i in numbers], [data[i] for i in numbers]
            layers, batch = some[0].layers, some[0].recipe.batch_size
            chosen = ways_here(layers, batch, len(some), device, known) if ways is None else ways
            found = _trained(Stack(some, of, place, known, chosen), some, of)
            outcomes |= dict(zip(numbers, found, strict=True))
    return [outcomes[i] for i in range(len(jobs))]


def _stacks(jobs: Sequence[Job], data: Sequence[Data]) -> list[list[int]]:
    """Which jobs go together; in each stack, those next to each other that see the same batches."""
    stacks: dict[Any, list[int]] = {}
    for i, (job, d) in enumerate(zip(jobs, data, strict=True)):
        stacks.setdefault((job.layers, job.recipe, job.learning, d.pixel_maximum), []).append(i)
    return [
        sorted(stack, key=lambda i: (jobs[i].seed, id(data[i]), jobs[i].start.first_iteration))
        for stack in stacks.values()
    ]


def _trained(stack: Stack, jobs: Sequence[Job], data: Sequence[Data]) -> list[Outcome]:
    together = Together(stack)
    made = [(together.add(job, d), job, d) for job, d in zip(jobs, data, strict=True)]
    trainings = {replica: Training(replica, job, d) for replica, job, d in made}
    together.pausing = list(trainings)
    for training in trainings.values():
        training.begin()
    outcomes: dict[Replica, Outcome] = {}
    while together.replicas:
        ended = [replica for replica in together.replicas if not trainings[replica].left]
        if ended:
            together.pausing = ended
            outcomes |= {replica: _outcome(trainings[replica], replica) for replica in ended}
            together.leave(ended)
        else:
            _go_on(together, [trainings[replica] for replica in together.replicas])
    return [outcomes[replica] for replica in trainings]


def _go_on(together: Together, trainings: list[Training]) -> None:
    """To the next pause of one of them."""
    steps = min(training.left for training in trainings)
    together.pausing = [r for r, t in zip(together.replicas, trainings, strict=True) if t.left == steps]
    losses = together.train([training.iteration for training in trainings], steps)
    raised: BaseException | None = None
    for training, own in zip(trainings, losses, strict=True):
        try:
            training.passed(own)
        except BaseException as error:  # one was told to stop when it saved its checkpoint: the others save theirs
            raised = raised or error
    if raised is not None:
        raise raised


def _outcome(training: Training, replica: Replica) -> Outcome:
    # First: its weights are then put back to those of the lowest validation loss.
    passed = replica.last_pass() if training.job.learning is not None else {}
    return replace(outcome_on_cpu(training.outcome()), last_pass=passed)
