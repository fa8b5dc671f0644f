# %% [markdown]
# # Your own network
#
# A study names a network by import path: a function or a class that returns an `nn.Module`. This file writes a small
# residual network with batch normalization into `mynets.py`, prunes it on scikit-learn's digits, learns a supermask of
# it, and copies a ticket into a module of its own.
#
# It is a notebook: Jupyter (with jupytext), VS Code and Spyder open it as cells.

# %%
import os
import sys
import tempfile
from pathlib import Path

import supermask as sm

folder = Path(tempfile.mkdtemp())
os.chdir(folder)
sys.path.insert(0, str(folder))

# %% [markdown]
# ## The network
#
# Worker processes import it, so it is in a file. `image_shape` is (channels, height, width). Nothing of supermask is
# needed in it.

# %%
Path("mynets.py").write_text(
    """
import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x):
        return torch.relu(x + self.norm2(self.conv2(torch.relu(self.norm1(self.conv1(x))))))


class Residual(nn.Module):
    def __init__(self, image_shape, classes, width=8, depth=2):
        super().__init__()
        self.stem = nn.Conv2d(image_shape[0], width, 3, padding=1, bias=False)
        self.blocks = nn.Sequential(*[Block(width) for _ in range(depth)])
        self.head = nn.Linear(width, classes)

    def forward(self, images):
        return self.head(self.blocks(self.stem(images)).mean((2, 3)))
""",
    encoding="utf-8",
)

# %% [markdown]
# ## A study of it
#
# `make` and the keyword arguments are part of every run's id, and so is the source of the code. Biases, batch
# normalization and its running statistics rewind with the weights and are never masked.

# %%
study = {
    "title": "A residual network of my own",
    "network": {"make": "mynets:Residual", "width": 6},
    "dataset": "digits",
    "seeds": 2,
    "train": {"optimizer": "sgd", "lr": 0.03, "momentum": 0.9, "epochs": 12, "evaluate_every": 20},
    "learn": {"lr": 20.0, "batch_size": 60, "epochs": 10, "evaluate_every": 20, "samples": 3},
    "prune": {"levels": 2, "rates": {"conv": 0.4, "output": 0.2, "stem": 0}},
    "treatments": [
        {"name": "large_final", "rewind_to": 20},
        {"name": "random", "criterion": "random", "rewind_to": 20},
        {"name": "supermask", "supermask": {"rescaled": True}},
    ],
    "reference": {"name": "large_final"},
}
print(sm.run(study, store="runs"))

# %%
runs = sm.table(study, store="runs")
print(runs.aggregate("treatment, level, 100 * avg(early_stop_test_accuracy) AS accuracy", "treatment, level"))

# %% [markdown]
# ## A ticket
#
# `pack_run` gives masks and all tensors of a run; `apply_to` copies them into a module. Layers that the study spared
# have a mask of ones.

# %%
import mynets  # noqa: E402

run_id = runs.filter("treatment = 'large_final' AND level = 2").limit(1).fetchall()[0][0]
ticket = sm.pack_run(sm.Store(folder / "runs"), run_id)
module = ticket.apply_to(mynets.Residual((1, 8, 8), 10, width=6))
for name, mask in ticket.masks.items():
    print(f"{name:24} {int(mask.sum()):5} of {mask.numel():5} kept")
