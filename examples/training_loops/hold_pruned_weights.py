# %% [markdown]
# # A ticket in a training loop of your own
#
# `supermask.hold` keeps pruned weights where they are, whatever the optimizer: momentum, weight decay, Adam, fused and
# foreach steps. The rest of the loop is plain PyTorch.

# %%
import torch
from sklearn.datasets import load_digits
from torch import nn

import supermask as sm

images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)

torch.manual_seed(0)
network = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))
start = {name: tensor.clone() for name, tensor in network.state_dict().items()}


def train(module: nn.Module) -> float:
    """Train for 200 steps; return the accuracy on the training images."""
    optimizer = torch.optim.AdamW(module.parameters(), lr=3e-3, weight_decay=0.01)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(x), y).backward()
        optimizer.step()
    return float((module(x).argmax(1) == y).float().mean())


print(f"dense: {train(network):.3f}")

# %% [markdown]
# Keep the fifth of each layer's weights with the largest final values, set them back to where they started, and train
# again. The masks and the initial values are a ticket.

# %%
final = network.state_dict()
masks = {}
for name in ("0.weight", "2.weight"):
    sizes = final[name].abs()
    masks[name] = sizes > sizes.flatten().kthvalue(int(0.8 * sizes.numel())).values
ticket = sm.Ticket(
    masks,
    {name: start[name] for name in masks},
    {name: tensor for name, tensor in start.items() if name not in masks},
)

compiled = torch.compile(network, backend="eager")  # names of a compiled or parallel module need no mapping
ticket.apply_to(compiled)
with sm.hold(compiled, ticket.masks):
    print(f"a fifth of the weights: {train(compiled):.3f}")
print(f"pruned weights that moved: {sum(int(final[name][~mask].count_nonzero()) for name, mask in masks.items())}")
