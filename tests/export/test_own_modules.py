"""A vision transformer, a recurrent network and a network of several heads, from the study to a ticket in a module."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from supermask.core.errors import UserError
from supermask.datasets import load
from supermask.execution.run import RunOptions, run_plans
from supermask.export.tickets.checks import check_ticket
from supermask.export.tickets.packing import pack_run
from supermask.store import Store
from supermask.store.planning import plan_study
from supermask.store.rows import plan_rows
from supermask.store.verify import verify_store
from supermask.study import study_from_dict
from supermask.study.run import Run

MODULES = '''
import torch
from torch import nn


class ViT(nn.Module):
    """Patches of 4x4 pixels, a class token, learned positions, one encoder layer with dropout."""

    def __init__(self, image_shape, classes, width=8):
        super().__init__()
        channels, height, side = image_shape
        self.patches = nn.Conv2d(channels, width, 4, stride=4)
        self.token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.randn(1, 1 + height * side // 16, width) / 10)
        self.encoder = nn.TransformerEncoderLayer(width, 2, 2 * width, dropout=0.1, batch_first=True)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, classes)

    def forward(self, images):
        x = self.patches(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(len(x), -1, -1), x], 1) + self.positions
        return self.head(self.norm(self.encoder(x))[:, 0])


class Rows(nn.Module):
    """A recurrent network that reads an image row by row."""

    def __init__(self, image_shape, classes, kind="LSTM"):
        super().__init__()
        self.body = getattr(nn, kind)(image_shape[0] * image_shape[2], 8, num_layers=2, dropout=0.1, batch_first=True)
        self.head = nn.Linear(8, classes)

    def forward(self, images):
        rows, _ = self.body(images.permute(0, 2, 1, 3).flatten(2))
        return self.head(rows[:, -1])


class Heads(nn.Module):
    """Two heads, of which one gives the logits."""

    def __init__(self, image_shape, classes):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.LazyLinear(8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.1))
        self.side, self.head = nn.Linear(8, 3), nn.Linear(8, classes)

    def forward(self, images):
        x = self.body(images)
        return {"side": self.side(x), "logits": self.head(x)}


class OnlyTuples(Heads):
    def forward(self, images):
        return tuple(super().forward(images).values())
'''
PRUNABLE = {
    "ViT": {
        "patches.weight",
        "encoder.self_attn.in_proj_weight",
        "encoder.self_attn.out_proj.weight",
        "encoder.linear1.weight",
        "encoder.linear2.weight",
        "head.weight",
    },
    "Rows": {*(f"body.weight_{kind}_l{layer}" for kind in ("ih", "hh") for layer in (0, 1)), "head.weight"},
    "Heads": {"body.1.weight", "head.weight"},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "modules_of_mine.py").write_text(MODULES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "modules_of_mine", raising=False)
    return tmp_path


def study(network: str) -> Any:
    return study_from_dict(
        {
            "network": f"modules_of_mine:{network}",
            "seeds": 1,
            "train": {"optimizer": "adamw", "lr": 0.01, "weight_decay": 0.01, "epochs": 0.6, "evaluate_every": 4},
            "learn": {"lr": 5.0, "batch_size": 60, "epochs": 0.4, "evaluate_every": 4, "samples": 2},
            "prune": {"levels": 1, "rates": {"conv": 0.3, "hidden": 0.4, "output": 0.2}},
            "treatments": [{"name": "late", "rewind_to": 5}, {"name": "supermask", "supermask": {"rescaled": True}}],
        }
    )


@pytest.mark.slow
@pytest.mark.parametrize("network", PRUNABLE)
def test_modules_of_every_kind_from_the_study_to_a_ticket(folder: Path, network: str) -> None:
    store, images = Store(folder / "store"), load("digits")
    run_plans([plan_study(study(network), store)], RunOptions(store.root, 1))
    plan = plan_study(study(network), store)
    assert plan.network.tensors.keys() >= PRUNABLE[network]
    rows, _ = plan_rows(plan, store)
    assert {(row["status"], row["certificate"]) for row in rows} == {("finished", "held")}
    assert {result.verdict for result in verify_store(store)} == {"held"}
    import modules_of_mine  # type: ignore[import-not-found]

    for row in rows:
        run = Run.from_data(store.facts(str(row["id"])))
        ticket = pack_run(store, run.id)
        assert not [check for check in check_ticket(ticket) if check.status == "BROKEN"]
        module = getattr(modules_of_mine, network)((1, 8, 8), 10)
        module(torch.zeros(2, 1, 8, 8))
        ticket.apply_to(module)
        for name, mask in ticket.masks.items():
            assert not module.get_parameter(name)[~mask].any()
        assert (run.level == 0) == all(bool(mask.all()) for mask in ticket.masks.values())
        metric = "thresholded_test_accuracy" if run.learning else "final_test_accuracy"
        with torch.no_grad():
            output = module.eval()(torch.from_numpy(images.test_images).float() / images.facts.max_pixel)
        logits = output["logits"] if isinstance(output, dict) else output
        accuracy = float((logits.argmax(1) == torch.from_numpy(images.test_labels)).float().mean())
        assert accuracy == pytest.approx(row[metric], abs=1.5 / len(images.test_labels))


def test_a_tuple_of_heads_is_refused_with_what_to_return(folder: Path) -> None:
    with pytest.raises(UserError, match=r"logits"):
        run_plans([plan_study(study("OnlyTuples"), Store(folder / "store"))], RunOptions(folder / "store", 1))
    assert not (folder / "store").exists()
