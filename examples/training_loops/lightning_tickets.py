# %% [markdown]
# # Lottery tickets in Lightning
#
# Every fit with a `TicketCallback` is a level of iterative pruning: it prunes the weights of the last fit, rewinds the
# rest to their initial values, holds the pruned ones, and checks all of that when the fit ends. Needs the extra
# `lightning`.

# %%
import torch
from lightning.pytorch import LightningModule, Trainer
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import supermask as sm
from supermask.integrations.lightning import TicketCallback


class Digits(LightningModule):
    """A small network for scikit-learn's digits."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 10))

    def training_step(self, batch, index):
        """Return the loss of a batch."""
        images, labels = batch
        return nn.functional.cross_entropy(self.net(images), labels)

    def configure_optimizers(self):
        """Return Adam, as the paper's networks have it."""
        return torch.optim.Adam(self.parameters(), lr=2e-3)


images, labels = load_digits(return_X_y=True)
x, y = torch.tensor(images, dtype=torch.float32) / 16, torch.tensor(labels)
data = DataLoader(TensorDataset(x, y), batch_size=60)

# %%
torch.manual_seed(0)
module, callback = Digits(), TicketCallback(rates=0.5)
quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
for _ in range(3):
    Trainer(max_epochs=5, accelerator="cpu", callbacks=[callback], **quiet).fit(module, data)
    accuracy = float((module.net(x).argmax(1) == y).float().mean())
    kept = sum(int(mask.sum()) for mask in callback.masks.values())
    print(
        f"level {callback.level}: {kept:,} weights, accuracy {accuracy:.3f}, certificate {callback.certificate.passed}"
    )

# %%
path = sm.save_ticket(callback.ticket(), "digits.safetensors", force=True)
print(sm.load_ticket(path))
