"""Fine-tuning with Lightning: an encoder of the hub and a head, on embeddings of whole scans.

    python -m examples.with_lightning FOLDER     # a folder a class, scans in them

Needs ``pip install lightning``.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import lightning
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset

import universal_model_hub as umh


class LabeledScans(Dataset[tuple[Tensor, int]]):
    """Scans of a folder a class, preprocessed as the weights ask for."""

    def __init__(self, folder: Path, model: torch.nn.Module) -> None:
        self.names = sorted(path.name for path in folder.iterdir() if path.is_dir())
        self.targets, paths = [], []
        for number, name in enumerate(self.names):
            for path in sorted((folder / name).iterdir()):
                self.targets.append(number)
                paths.append(path)
        self.scans = umh.VolumeDataset(paths, model)

    def __len__(self) -> int:
        return len(self.scans)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.scans[index]["volume"], self.targets[index]


class ScanClassifier(lightning.LightningModule):
    """A classifier of the hub as a Lightning module."""

    def __init__(self, num_classes: int, weights: str = "unet3d-compact") -> None:
        super().__init__()
        self.network = umh.load_classifier(weights, num_classes=num_classes).train()

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of (1, 1, X, Y, Z) scans and their classes."""
        scans, targets = batch
        loss = F.cross_entropy(self.network(scans), targets)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return the optimizer of all parameters."""
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def train(folder: Path, *, epochs: int = 2) -> ScanClassifier:
    """Train on all scans of a folder; scans differ in size, so a batch holds one."""
    num_classes = sum(path.is_dir() for path in folder.iterdir())
    module = ScanClassifier(num_classes)
    scans = LabeledScans(folder, module.network)
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accumulate_grad_batches=2,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        accelerator="cpu",
    )
    trainer.fit(module, DataLoader(scans, batch_size=1, shuffle=True))
    return module


def main(arguments: Sequence[str] | None = None) -> None:
    """Train on the folder and save the classifier."""
    module = train(Path((arguments or sys.argv[1:])[0]))
    module.network.head_trained = True
    umh.save_pretrained(module.network, "my-classifier", force=True)


if __name__ == "__main__":
    main()
