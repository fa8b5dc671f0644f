"""`TicketCallback`: pruning, rewinding, holding and certificates around Lightning's `Trainer.fit`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from supermask import Ticket, UserError, load_ticket, save_ticket
from supermask.core.errors import RunsRefused

pytest.importorskip("lightning")

from lightning.pytorch import LightningModule, Trainer

from supermask.integrations.lightning import TicketCallback

EXAMPLES = Path(__file__).parents[2] / "examples" / "training_loops"

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


class Net(LightningModule):
    """A network with a convolution, batch normalization and two Linear layers."""

    def __init__(self, momentum: float = 0.9) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(4 * 16, 12),
            nn.ReLU(),
            nn.Linear(12, 3),
        )
        self.momentum = momentum

    def training_step(self, batch: Any, index: int) -> Any:
        images, labels = batch
        return nn.functional.cross_entropy(self.body(images), labels)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=self.momentum, weight_decay=0.01)


def keep_highest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Keep the highest scores, one after another."""
    kept = torch.zeros(scores.numel(), dtype=torch.bool)
    for index in sorted(range(scores.numel()), key=lambda i: -float(scores.flatten()[i]))[:count]:
        kept[index] = True
    return kept.reshape(scores.shape)


KERNELS = ("body.0.weight", "body.4.weight", "body.6.weight")


def data() -> DataLoader[Any]:
    rng = torch.Generator().manual_seed(3)
    images, labels = torch.randn(48, 1, 6, 6, generator=rng), torch.randint(3, (48,), generator=rng)
    return DataLoader(TensorDataset(images, labels), batch_size=16)


def fit(module: LightningModule, callback: Any, **options: Any) -> None:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    Trainer(**{"max_epochs": 2, "accelerator": "cpu", "callbacks": [callback], **quiet, **options}).fit(module, data())


def state(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


class Recorder(TicketCallback):
    """Keeps the state that every fit really starts from."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        self.starts = [*getattr(self, "starts", []), state(pl_module)]


def test_each_fit_is_a_level_from_the_same_start() -> None:
    """Masks are recomputed here: the largest final weights of each layer, among those still alive."""
    module, rates = Net(), {"conv": 0.25, "hidden": 0.5, "output": 0.25}
    initial, callback = state(module), Recorder(rates=rates)
    alive = {name: torch.ones_like(initial[name], dtype=torch.bool) for name in KERNELS}
    end: dict[str, torch.Tensor] = {}
    for level in range(3):
        fit(module, callback)
        assert callback.level == level
        for name, rate in zip(KERNELS, rates.values(), strict=True):
            if level:
                count = int(alive[name].sum())
                scores = torch.where(alive[name], end[name].abs(), -1.0)
                alive[name] = keep_highest(scores, count - round(count * rate))
        start = callback.starts[level]
        expected = {n: t * alive[n] if n in alive else t for n, t in initial.items()}
        assert all(torch.equal(start[name], tensor) for name, tensor in expected.items())
        assert all(torch.equal(callback.masks[name], mask) for name, mask in alive.items())
        assert callback.certificate is not None and callback.certificate.passed
        end = state(module)
        assert all(not end[name][~mask].any() and (end[name] != start[name]).any() for name, mask in alive.items())
    assert {"kept_count", "frozen_is_frozen", "mask1_promise", "others_rewound"} <= callback.certificate.checks.keys()


def test_ticket_of_the_last_level(tmp_path: Path) -> None:
    module, callback = Net(), TicketCallback(rates=0.5)
    for _ in range(2):
        fit(module, callback)
    ticket = load_ticket(save_ticket(callback.ticket(note="mine"), tmp_path / "ticket"))
    assert (ticket.facts["note"], ticket.facts["lightning"]["level"]) == ("mine", 1)
    assert ticket.facts["lightning"]["certificate"]["held"]
    other = ticket.apply_to(Net())
    assert all(torch.equal(a, b) for a, b in zip(state(module).values(), state(other).values(), strict=True))


def test_every_fit_starts_from_a_given_ticket() -> None:
    module = Net()
    masks = {name: torch.rand(state(module)[name].shape) < 0.5 for name in KERNELS[:2]}
    weights = {name: torch.randn(mask.shape) * mask for name, mask in masks.items()}
    callback = Recorder(Ticket(masks, weights, {}))
    for _ in range(2):
        fit(module, callback)
    assert callback.level == 0
    for start in callback.starts:
        assert all(torch.equal(start[name], values) for name, values in weights.items())
    assert all(not state(module)[name][~mask].any() for name, mask in masks.items())
    assert callback.masks["body.6.weight"].all()
    assert callback.certificate is not None and callback.certificate.passed


@pytest.mark.parametrize("mask0", ["zero", "freeze_init"])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_mask_0_actions_and_scopes(mask0: str, scope: Any) -> None:
    module, callback = Net(), TicketCallback(rates=0.5, mask0=mask0, scope=scope, criterion="magnitude_increase")
    initial = state(module)
    for _ in range(3):
        fit(module, callback, max_epochs=1)
    for name, mask in callback.masks.items():
        expected = torch.zeros(()) if mask0 == "zero" else initial[name][~mask]
        assert bool((state(module)[name][~mask] == expected).all())


def test_criterion_is_a_plain_function() -> None:
    def score(layer: Any, rng: Any) -> torch.Tensor:
        return torch.arange(layer.w_final.numel()).reshape(layer.w_final.shape).float()

    module, callback = Net(), TicketCallback(rates=0.5, criterion=score)
    for _ in range(2):
        fit(module, callback, max_epochs=1)
    mask = callback.masks["body.6.weight"].flatten()
    assert mask.tolist() == [False] * 18 + [True] * 18


class Breaker(TicketCallback):
    """Releases the weights too early, as a fault would."""

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        super().on_train_start(trainer, pl_module)
        self._hold.close()


def test_broken_invariant_is_no_result() -> None:
    module, callback = Net(), Breaker(rates=0.5, mask0="freeze_init")
    fit(module, callback)
    with pytest.raises(RunsRefused, match=r"the certificate of level 1 does not hold: \{'frozen_is_frozen'"):
        fit(module, callback)
    facts = callback.ticket().facts["lightning"]
    assert (facts["level"], facts["certificate"]["held"]) == (0, True), "the ticket is that of level 0"


class Stopped(Net):
    """Fails in the second epoch, once."""

    fails = False

    def training_step(self, batch: Any, index: int) -> Any:
        if self.fails and self.trainer.current_epoch == 1:
            raise ArithmeticError
        return super().training_step(batch, index)


@pytest.mark.parametrize("at", [0, 1])
def test_level_that_failed_is_repeated(at: int) -> None:
    module, callback = Stopped(), Recorder(rates=0.5)
    for _ in range(at):
        fit(module, callback)
    module.fails = True
    with pytest.raises(ArithmeticError):
        fit(module, callback)
    assert not module._forward_pre_hooks
    if at:
        ticket = callback.ticket()
        assert all(bool(mask.all()) for mask in ticket.masks.values())
        assert ticket.facts["lightning"]["level"] == 0, "the level of the ticket's masks, not of the fit that failed"
    module.fails = False
    fit(module, callback)
    assert callback.level == at
    first, second = callback.starts[-2:]
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_checkpoints_are_refused(tmp_path: Path) -> None:
    module, callback = Net(), TicketCallback()
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=False, enable_progress_bar=False, default_root_dir=tmp_path
    )
    trainer.fit(module, data())
    trainer.save_checkpoint(tmp_path / "c.ckpt")
    again = Trainer(max_epochs=2, accelerator="cpu", logger=False, enable_progress_bar=False, callbacks=[callback])
    with pytest.raises(UserError, match="leave out ckpt_path"):
        again.fit(module, data(), ckpt_path=tmp_path / "c.ckpt")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"criterion": "large_finl"}, "did you mean 'large_final'"),
        ({"criterion": "snip"}, "'snip' is not a criterion"),
        ({"criterion": 3}, "give a name or a function"),
        ({"mask0": "one"}, "is not a mask-0 action"),
        ({"scope": "all"}, "is not a scope"),
        ({"rates": 1.0}, r"rates: 1\.0 is not a share"),
        ({"rates": {"fc": 0.1}}, "'fc' is not a kind of layer"),
    ],
)
def test_settings_are_checked(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TicketCallback(**settings)


def test_faults_of_use_are_named() -> None:
    callback = TicketCallback(rates={"conv": 0.5})
    for read in (callback.ticket, lambda: callback.masks):
        with pytest.raises(UserError, match=r"call Trainer\.fit"):
            read()
    module = Net()
    fit(module, callback, max_epochs=1)
    with pytest.raises(UserError, match="rates has no rate for hidden, output"):
        fit(module, callback, max_epochs=1)


def test_the_face_names_only_what_export_defines() -> None:
    from supermask.export.integrations import lightning

    assert TicketCallback is lightning.TicketCallback


@pytest.mark.slow
def test_missing_library_is_named() -> None:
    hidden = "sys.modules.update({'lightning': None, 'pytorch_lightning': None})"
    code = f"import sys; {hidden}; import supermask.integrations.lightning"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    message = "ImportError: Lightning is not installed: pip install 'supermask[lightning]'."
    assert ended.stderr.splitlines()[-1] == message


@pytest.mark.slow
def test_the_example_runs(tmp_path: Path) -> None:
    command = [sys.executable, str(EXAMPLES / "lightning_tickets.py")]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    kept = ["7,400 weights", "3,700 weights", "1,850 weights"]
    levels = [line for line in lines if line.startswith("level ")]
    assert [line.partition(", accuracy")[0] for line in levels] == [f"level {i}: {text}" for i, text in enumerate(kept)]
    assert all(line.endswith("certificate True") for line in levels)
    assert lines[-1] == "Ticket(2 tensors, 1,850 of 7,400 weights kept)"
