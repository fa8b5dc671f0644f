"""The reference engine: plain PyTorch, any module, CPU or one GPU. What it computes is the definition of correct.

Pruned weights are held by their gradient: it is set to zero before the optimiser sees it, so that their optimiser
state stays zero and their values stay bit-equal to what they were frozen at.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from supermask.engines.job import Array, BatchOrder, Data, Job, Watch, stops
from supermask.networks import build
from supermask.rng import stream
from supermask.types import Outcome, Point, State

EVALUATION_PIXELS = {"cpu": 2**18, "cuda": 2**22}
"""Pixels evaluated at once. On a CPU a convolution's activations should stay near its cache: Conv2 takes 1.4 times as
long with 500 images at once as with 50; FC is as fast from 250 on."""


def train(jobs: Sequence[Job], data: Sequence[Data], device: str = "cpu") -> list[Outcome]:
    """Trains each job to its outcome, one after another; `data[i]` is the data of `jobs[i]`."""
    return [train_module(build(job.layers), job, d, device) for job, d in zip(jobs, data, strict=True)]


def train_module(module: nn.Module, job: Job, data: Data, device: str = "cpu") -> Outcome:
    """Trains any module whose `state_dict` has the names of the job's start; the module itself is used up.

    The loss is the mean cross-entropy; the optimiser Adam or SGD. Test accuracy is measured with the weights of lowest
    validation loss and with those of the end, once each, after training. What a module draws from torch's generator
    (dropout) depends on the seed and the iteration alone; the generator is left as it was.
    Source: paper.md section 1 (steps 2 and 6), section 2.
    """
    place = torch.device(device)
    module = module.to(place)
    with _own_draws(_generator(place)), _tiny_is_zero():
        return _Training(module, job, data, place).run()


class _Training:
    """One training in progress: module, optimiser, and what has been seen so far."""

    def __init__(self, module: nn.Module, job: Job, data: Data, device: torch.device) -> None:
        self.module, self.job, self.recipe, self.device = module.train(), job, job.recipe, device
        self.images, self.labels = _on(data.train_images, device), _on(data.train_labels, device)
        self.validation = _on(data.validation_images, device), _on(data.validation_labels, device)
        self.test = data.test_images, data.test_labels
        self.maximum = torch.tensor(float(data.pixel_maximum), device=device)
        self.order = BatchOrder(job.seed, data.train_indices, job.recipe.batch_size)
        self.generator = _generator(device)
        self.draws = int(stream(job.seed, "module").integers(2**31))
        self.parameters = list(module.parameters())
        self._load(job.start.state)
        named = dict(module.named_parameters())
        self.held = [(named[n], _bits(m).to(device)) for n, m in job.start.masks.items() if not bool(m.all())]
        self.optimizer = _optimizer(self.parameters, job)
        self.iteration = job.start.first_iteration
        self.watch = Watch()
        self.points: dict[Point, State] = {}

    def run(self) -> Outcome:
        if not self._resumed():
            self._begin()
        for stop, evaluated in stops(self.recipe, self.iteration, self.job.points):
            if self.watch.diverged_at is not None:
                break
            losses = self._train_until(stop)
            if not self.watch.saw_training(losses, stop - len(losses)):
                break
            if stop in self.job.points:
                self.points[stop] = self._state()
            if evaluated:
                self._evaluate()
                if self.watch.diverged_at is None and self.job.checkpoints.due():
                    self._save()
        return self._outcome()

    def _begin(self) -> None:
        if self.iteration in self.job.points:
            self.points[self.iteration] = self._state()
        if "gradient" in self.job.points:
            self._backward()
            named = self.module.named_parameters()
            masks = self.job.start.masks
            gradients = {n: p.grad.to("cpu", copy=True) for n, p in named if p.grad is not None and n in masks}
            self.points["gradient"] = State(gradients, {})
            self._load(self.job.start.state)  # a batch normalisation has counted this batch
        self._evaluate()

    def _backward(self) -> Tensor:
        self.generator.manual_seed(self.draws + self.iteration)
        batch = torch.from_numpy(self.order.batch(self.iteration)).to(self.device)
        logits = self.module(self._scaled(self.images.index_select(0, batch)))
        loss = cross_entropy(logits, self.labels.index_select(0, batch))
        for parameter in self.parameters:
            parameter.grad = None
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def _scaled(self, pixels: Tensor) -> Tensor:
        # By a tensor: a GPU may turn a division by a Python number into a product with its rounded reciprocal.
        return pixels.float().div_(self.maximum)

    def _train_until(self, stop: int) -> Array:
        """Trains up to iteration `stop`; the losses stay on the device until then, so that a GPU is not waited for."""
        recipe, losses = self.recipe, []
        while self.iteration < stop:
            losses.append(self._backward())
            if recipe.weight_decay:
                for parameter in self.parameters:
                    if parameter.grad is not None:
                        parameter.grad.add_(parameter.detach(), alpha=recipe.weight_decay)
            for parameter, bits in self.held:
                if parameter.grad is not None:
                    parameter.grad.view(torch.int32).bitwise_and_(bits)
            self.optimizer.param_groups[0]["lr"] = recipe.learning_rate(self.iteration)
            self.optimizer.step()
            self.iteration += 1
        return torch.stack(losses).cpu().numpy()

    def _evaluate(self) -> None:
        if self.watch.saw_validation(self.iteration, *self._measure(*self.validation)):
            self.points["lowest_validation_loss"] = self._state()

    def _measure(self, images: Tensor, labels: Tensor) -> tuple[float, float]:
        """Mean cross-entropy and accuracy, summed in float64."""
        self.generator.manual_seed(self.draws + self.iteration)
        self.module.eval()
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        hits = torch.zeros((), dtype=torch.int64, device=self.device)
        at_once = max(1, EVALUATION_PIXELS[self.device.type] // images[0].numel())
        with torch.inference_mode():
            for first in range(0, len(labels), at_once):
                some = labels[first : first + at_once]
                logits = self.module(self._scaled(images[first : first + at_once]))
                loss += cross_entropy(logits, some, reduction="none").double().sum()
                hits += (logits.argmax(1) == some).sum()
        self.module.train()
        return loss.item() / len(labels), int(hits) / len(labels)

    def _outcome(self) -> Outcome:
        end = self._state()
        if self.watch.diverged_at is not None:
            return Outcome("diverged", end, {}, self.watch.curve, self.watch.metrics(None, None))
        test = _on(self.test[0], self.device), _on(self.test[1], self.device)
        end_test = self._measure(*test)
        self._load(self.points["lowest_validation_loss"])
        metrics = self.watch.metrics(self._measure(*test), end_test)
        wanted = {point: state for point, state in self.points.items() if point in self.job.points}
        return Outcome("finished", end, wanted, self.watch.curve, metrics, self._optimizer_state())

    def _state(self) -> State:
        return self._as_state({n: t.to("cpu", copy=True) for n, t in self.module.state_dict().items()})

    def _as_state(self, tensors: dict[str, Tensor]) -> State:
        masks = self.job.start.masks
        weights = {n: t for n, t in tensors.items() if n in masks}
        return State(weights, {n: t for n, t in tensors.items() if n not in masks})

    def _load(self, state: State) -> None:
        own = self.module.state_dict()
        given = {**state.weights, **state.others}
        assert own.keys() == given.keys(), own.keys() ^ given.keys()
        with torch.no_grad():
            for name, tensor in given.items():
                own[name].copy_(tensor)

    def _optimizer_state(self) -> dict[str, dict[str, Tensor]]:
        named = dict(self.module.named_parameters())
        state = {n: self.optimizer.state.get(named[n], {}) for n in self.job.start.masks}
        return {
            n: {k: v.cpu() for k, v in s.items() if isinstance(v, Tensor) and v.shape == named[n].shape}
            for n, s in state.items()
        }

    def _save(self) -> None:
        tensors = {f"module/{n}": t.cpu().numpy() for n, t in self.module.state_dict().items()}
        for i, parameter in enumerate(self.parameters):
            for key, value in self.optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):
                    tensors[f"optimizer/{i}/{key}"] = value.cpu().numpy()
        for point, state in self.points.items():
            for name, tensor in {**state.weights, **state.others}.items():
                tensors[f"point/{point}/{name}"] = tensor.numpy()
        for column, values in vars(self.watch.curve).items():
            tensors[f"curve/{column}"] = np.array(values, dtype=np.int64 if column == "iterations" else np.float64)
        self.job.checkpoints.save({"iteration": self.iteration, "best": self.watch.best}, tensors)

    def _resumed(self) -> bool:
        """Goes back to the last checkpoint, if there is one that has every point it has passed.

        The order of batches, the learning rate and the module's draws need no state: the iteration decides them.
        """
        saved = self.job.checkpoints.load()
        if saved is None:
            return False
        facts, arrays = saved
        parts: dict[str, dict[str, Any]] = {"module": {}, "optimizer": {}, "point": {}, "curve": {}}
        for key, array in arrays.items():
            part, _, name = key.partition("/")
            parts[part][name] = torch.from_numpy(array.copy())
        points = _nested(parts["point"])
        passed = {p for p in self.job.points if p == "gradient" or (isinstance(p, int) and p <= facts["iteration"])}
        if not {str(p) for p in passed} <= points.keys():
            return False
        self.points = {int(p) if p.isdigit() else p: self._as_state(t) for p, t in points.items()}  # type: ignore[misc]
        self._load(self._as_state(parts["module"]))
        for i, state in _nested(parts["optimizer"]).items():
            self.optimizer.state[self.parameters[int(i)]] = {k: t.to(self.device) for k, t in state.items()}
        for column, values in parts["curve"].items():
            getattr(self.watch.curve, column).extend(values.tolist())
        self.iteration, self.watch.best = facts["iteration"], facts["best"]
        return True


def _optimizer(parameters: list[nn.Parameter], job: Job) -> torch.optim.Optimizer:
    recipe = job.recipe
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=recipe.lr, momentum=recipe.momentum, fused=True)
    return torch.optim.Adam(parameters, lr=recipe.lr, betas=(0.9, 0.999), eps=1e-8, fused=True)


def _bits(mask: Tensor) -> Tensor:
    """All bits set where a weight is kept, none where it is pruned. AND with a gradient leaves it or makes it +0.

    As fast as a product with the mask, which would leave NaN, and -0: minus that, a weight frozen at -0 becomes +0.
    """
    return mask.to(torch.int32).neg()


def _nested(named: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """`{"a/b": t}` as `{"a": {"b": t}}`."""
    found: dict[str, dict[str, Tensor]] = {}
    for key, tensor in named.items():
        first, _, rest = key.partition("/")
        found.setdefault(first, {})[rest] = tensor
    return found


def _on(array: Array, device: torch.device) -> Tensor:
    # Through DLPack a read-only memory map, shared by all workers, is taken without a copy and without a warning.
    return torch.from_dlpack(array).to(device)  # type: ignore[attr-defined]


def _generator(device: torch.device) -> torch.Generator:
    """The generator that modules on this device draw from."""
    if device.type == "cpu":
        return torch.default_generator
    return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]


@contextmanager
def _own_draws(generator: torch.Generator) -> Iterator[None]:
    """Puts the generator back to where it was."""
    state = generator.get_state()
    try:
        yield
    finally:
        generator.set_state(state)


@contextmanager
def _tiny_is_zero() -> Iterator[None]:
    """Counts numbers below 1.2e-38 (denormal ones) as zero, where one thread does all the work.

    Adam's means of a weight whose gradient has long been zero decay into them, and a processor is slow there: 6% of
    FC's first layer on MNIST after 3,000 steps, which then take 1.5 to 2 times as long. Other threads would keep their
    own mode, so that bits would depend on which did what.
    """
    before = torch.full((1,), 1e-40).mul(1.0).item() == 0.0
    torch.set_flush_denormal(before or torch.get_num_threads() == 1)
    try:
        yield
    finally:
        torch.set_flush_denormal(before)
