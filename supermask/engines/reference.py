"""The reference engine: plain PyTorch, any module, CPU or one GPU. What it computes is the definition of correct.

Pruned weights are held by their gradient: it is set to zero before the optimiser sees it, so that their optimiser
state stays zero and their values stay bit-equal to what they were frozen at.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from supermask.engines.job import Array, BatchOrder, Data, Job, Watch, stops
from supermask.networks import build
from supermask.types import Outcome, Point, State

EVALUATION_BATCH = 500


def train(jobs: Sequence[Job], data: Sequence[Data], device: str = "cpu") -> list[Outcome]:
    """Trains each job to its outcome, one after another; `data[i]` is the data of `jobs[i]`."""
    return [train_module(build(job.layers), job, d, device) for job, d in zip(jobs, data, strict=True)]


def train_module(module: nn.Module, job: Job, data: Data, device: str = "cpu") -> Outcome:
    """Trains any module whose `state_dict` has the names of the job's start.

    The loss is the mean cross-entropy; the optimiser Adam or SGD. Test accuracy is measured with the weights of lowest
    validation loss and with those of the end, once each, after training.
    Source: paper.md section 1 (steps 2 and 6), section 2.
    """
    return _Training(module.to(device), job, data, torch.device(device)).run()


class _Training:
    """One training in progress: module, optimiser, and what has been seen so far."""

    def __init__(self, module: nn.Module, job: Job, data: Data, device: torch.device) -> None:
        self.module, self.job, self.recipe, self.device = module, job, job.recipe, device
        self.images, self.labels = _on(data.train_images, device), _on(data.train_labels, device)
        self.validation = _on(data.validation_images, device), _on(data.validation_labels, device)
        self.test = data.test_images, data.test_labels
        self.maximum = torch.tensor(float(data.pixel_maximum), device=device)
        self.order = BatchOrder(job.seed, data.train_indices, job.recipe.batch_size)
        self.parameters = list(module.parameters())
        self._load(job.start.state)
        named = dict(module.named_parameters())
        self.held = [(named[n], m.to(device).float()) for n, m in job.start.masks.items() if not bool(m.all())]
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
                self._evaluate(float(losses.mean()))
                if self.job.checkpoints.due():
                    self._save()
        return self._outcome()

    def _begin(self) -> None:
        if "gradient" in self.job.points:
            self._backward()
            named = self.module.named_parameters()
            masks = self.job.start.masks
            gradients = {n: p.grad.cpu().clone() for n, p in named if p.grad is not None and n in masks}
            self.points["gradient"] = State(gradients, {})
        self._evaluate(float("nan"))

    def _backward(self) -> Tensor:
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
                    assert parameter.grad is not None
                    parameter.grad.add_(parameter.detach(), alpha=recipe.weight_decay)
            for parameter, mask in self.held:
                assert parameter.grad is not None
                parameter.grad.mul_(mask)
            self.optimizer.param_groups[0]["lr"] = recipe.learning_rate(self.iteration)
            self.optimizer.step()
            self.iteration += 1
        return torch.stack(losses).cpu().numpy() if losses else np.zeros(0)

    def _evaluate(self, training_loss: float) -> None:
        loss, accuracy = self._measure(*self.validation)
        if self.watch.saw_validation(self.iteration, training_loss, loss, accuracy):
            self.points["lowest_validation_loss"] = self._state()

    def _measure(self, images: Tensor, labels: Tensor) -> tuple[float, float]:
        """Mean cross-entropy and accuracy, summed in float64."""
        self.module.eval()
        loss, hits = 0.0, 0
        with torch.inference_mode():
            for first in range(0, len(labels), EVALUATION_BATCH):
                some = labels[first : first + EVALUATION_BATCH]
                logits = self.module(self._scaled(images[first : first + EVALUATION_BATCH]))
                loss += cross_entropy(logits, some, reduction="none").double().sum().item()
                hits += int((logits.argmax(1) == some).sum())
        self.module.train()
        return loss / len(labels), hits / len(labels)

    def _outcome(self) -> Outcome:
        end = self._state()
        if self.watch.diverged_at is not None:
            return Outcome("diverged", end, {}, self.watch.curve, self.watch.metrics(None, None))
        test = _on(self.test[0], self.device), _on(self.test[1], self.device)
        end_test = self._measure(*test)
        best = self.points["lowest_validation_loss"]
        self._load(best)
        metrics = self.watch.metrics(self._measure(*test), end_test)
        wanted = {point: state for point, state in self.points.items() if point in self.job.points}
        return Outcome("finished", end, wanted, self.watch.curve, metrics, self._optimizer_state())

    def _state(self) -> State:
        masks = self.job.start.masks
        tensors = {n: t.detach().cpu().clone() for n, t in self.module.state_dict().items()}
        return State({n: tensors[n] for n in masks}, {n: t for n, t in tensors.items() if n not in masks})

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
        tensors = {f"module/{n}": t.detach().cpu().numpy() for n, t in self.module.state_dict().items()}
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
        """Goes back to the last checkpoint, if there is one; the order of batches needs no state."""
        saved = self.job.checkpoints.load()
        if saved is None:
            return False
        facts, tensors = saved
        self.iteration, self.watch.best = facts["iteration"], facts["best"]
        for column in vars(self.watch.curve):
            getattr(self.watch.curve, column).extend(tensors[f"curve/{column}"].tolist())
        own = self.module.state_dict()
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(torch.from_numpy(tensors[f"module/{name}"]))
        masks = self.job.start.masks
        points: dict[Point, dict[str, Any]] = {}
        for key, array in tensors.items():
            part, _, rest = key.partition("/")
            if part == "optimizer":
                i, _, name = rest.partition("/")
                self.optimizer.state[self.parameters[int(i)]][name] = torch.from_numpy(array.copy()).to(self.device)
            elif part == "point":
                point, _, name = rest.partition("/")
                points.setdefault(int(point) if point.isdigit() else point, {})[name] = torch.from_numpy(array.copy())  # type: ignore[call-overload]
        for at, named in points.items():
            weights = {n: t for n, t in named.items() if n in masks}
            self.points[at] = State(weights, {n: t for n, t in named.items() if n not in masks})
        return True


def _optimizer(parameters: list[nn.Parameter], job: Job) -> torch.optim.Optimizer:
    recipe = job.recipe
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=recipe.lr, momentum=recipe.momentum, fused=True)
    return torch.optim.Adam(parameters, lr=recipe.lr, betas=(0.9, 0.999), eps=1e-8, fused=True)


def _on(array: Array, device: torch.device) -> Tensor:
    # Through DLPack a read-only memory map, shared by all workers, is taken without a copy and without a warning.
    return torch.from_dlpack(array).to(device)  # type: ignore[attr-defined]
