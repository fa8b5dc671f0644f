# %% [markdown]
# # A ticket in another program
#
# A ticket is one file with the masks of a run and the weights that they keep. This tutorial packs one, loads it into a
# network written in plain PyTorch, checks its accuracy, and trains it further without moving the pruned weights.

# %%
from pathlib import Path

import torch
from torch import nn

import supermask as sm
from supermask.datasets import load

# %% [markdown]
# ## Train and pack
#
# One criterion, one seed, four levels. Ids of runs come from the table; a unique prefix is enough.

# %%
study = {
    "dataset": "digits",
    "seeds": 1,
    "train": {"epochs": 6, "evaluate_every": 20},
    "prune": {"levels": 4, "rates": {"hidden": 0.5, "output": 0.25}},
    "treatments": [{"criterion": "large_final"}],
}
sm.run(study)
run_id, density = sm.table(study).filter("level = 4").project("id, density").fetchall()[0]
ticket, path = sm.api.pack(run_id, "ticket.safetensors")
print(f"{path.name}: {path.stat().st_size:,} bytes, {100 * density:.1f}% of the weights, {ticket.facts['accuracy']}")

# %% [markdown]
# ## Load it into your own network
#
# `match="order"` matches the i-th mask with the i-th Linear or Conv layer. All shapes are compared first.

# %%
network = nn.Sequential(nn.Flatten(), nn.Linear(64, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10))
sm.load_ticket("ticket.safetensors").apply_to(network, match="order")
digits = load("digits")
images, labels = (torch.from_numpy(array) for array in (digits.test_images, digits.test_labels))


def accuracy():
    """Test accuracy in percent; pixels are divided by their maximum, as in the run."""
    with torch.no_grad():
        return 100 * (network(images / digits.facts.max_pixel).argmax(1) == labels).float().mean().item()


print(f"{accuracy():.2f}%")

# %% [markdown]
# ## Train it further
#
# Pruned weights stay where they are if their gradient is zero before the optimizer sees it, and the optimizer has no
# state and no weight decay for them.

# %%
layers = [module for module in network if isinstance(module, nn.Linear)]
for layer, mask in zip(layers, ticket.masks.values(), strict=True):
    layer.weight.register_hook(lambda gradient, mask=mask: gradient * mask)
optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
train_images = torch.from_numpy(digits.train_images)
train_labels = torch.from_numpy(digits.train_labels)
for _ in range(20):
    optimizer.zero_grad()
    nn.functional.cross_entropy(network(train_images / digits.facts.max_pixel), train_labels).backward()
    optimizer.step()
moved = sum(int((layer.weight[~mask] != 0).sum()) for layer, mask in zip(layers, ticket.masks.values(), strict=True))
print(f"{accuracy():.2f}%, {moved} pruned weights moved")

# %% [markdown]
# The file says what it is and where it came from; `inspect` checks it from the file alone.

# %%
inspection = sm.api.inspect_ticket(Path("ticket.safetensors"))
for check in inspection.checks:
    print(f"{check.status:12} {check.name}")
