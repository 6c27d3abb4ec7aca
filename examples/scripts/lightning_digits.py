"""A LightningModule trained by Lightning's Trainer, with validation. Knows no relume.

relume run examples/scripts/lightning_digits.py [FILE]
"""

import logging
import sys
import warnings

import lightning
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

warnings.filterwarnings("ignore", category=UserWarning)  # few workers, small data
logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)


class LitDigits(lightning.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2))
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(128, 48), nn.ReLU(), nn.Linear(48, 10))

    def forward(self, x):
        return self.head(self.features(x))

    def training_step(self, batch, index):
        x, y = batch
        return F.cross_entropy(self(x), y)

    def validation_step(self, batch, index):
        x, y = batch
        self.log("right", (self(x).argmax(1) == y).float().mean())

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=1e-3)


def main() -> None:
    lightning.seed_everything(0, verbose=False)
    torch.set_num_threads(1)
    digits = load_digits()
    data = TensorDataset(
        torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(digits.target)
    )
    train, held_out = torch.utils.data.random_split(data, [1500, 297])
    trainer = lightning.Trainer(
        max_epochs=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    lit = LitDigits()
    trainer.fit(lit, DataLoader(train, 32, shuffle=True), DataLoader(held_out, 297))
    print(f"right {float(trainer.callback_metrics['right']):.4f}")
    if len(sys.argv) > 1:
        torch.save(lit.state_dict(), sys.argv[1])


if __name__ == "__main__":
    main()
