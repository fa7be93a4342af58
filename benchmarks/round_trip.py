"""What survives the way to the 1 mm grid and back: Dice of small shapes by spacing and size.

    python -m benchmarks.round_trip [--output results/round_trip.json]

A synthetic shape on the scan's own grid is preprocessed to 1 mm, a model that thresholds intensity
answers, and the labels on the own grid are compared with the threshold there.
"""

import argparse
import json
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.record import stamp
from universal_model_hub import Preprocessing, Volume, predict
from universal_model_hub.files import write_json

ROOT = Path(__file__).parent.parent
SPACINGS = [(1, 1, 1), (1, 1, 3), (0.9, 0.9, 2), (0.8, 0.8, 2.5), (0.7, 0.7, 5), (0.5, 0.5, 0.5)]
SIZES = (4, 6, 8)  # voxels of the own grid
SEEDS = range(4)
LOW_HU, HIGH_HU, THRESHOLD_HU = -600.0, 400.0, -100.0


class Threshold(nn.Module):
    """One logit, positive above a HU value; no weights."""

    stride, halo = 1, 0

    def __init__(self) -> None:
        super().__init__()
        self.preprocessing = Preprocessing()
        low, high = self.preprocessing.ct_clip
        self.level = (THRESHOLD_HU - low) / (high - low)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 1, X, Y, Z) in [0, 1] to logits of the same shape."""
        return x - self.level


def dice_and_shift(
    spacing: tuple[float, ...], kind: str, size: int, seed: int
) -> tuple[float, float]:
    """Return Dice, and the centroid's largest shift in own voxels, of one sharp shape."""
    rng = np.random.default_rng(seed)
    shape = (40, 36, 20)
    center = np.array(shape) / 2 + rng.uniform(-0.5, 0.5, 3)
    offset = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) - center
    reach = np.abs(offset).max(-1) if kind == "box" else np.linalg.norm(offset, axis=-1)
    truth = reach <= size / 2
    volume = Volume(np.where(truth, HIGH_HU, LOW_HU).astype(np.float32), np.diag([*spacing, 1.0]))
    labels = predict(Threshold(), volume, modality="CT").array > 0
    dice = 2 * (labels & truth).sum() / (labels.sum() + truth.sum())
    shift = np.abs(np.argwhere(labels).mean(0) - np.argwhere(truth).mean(0)).max()
    return float(dice), float(shift)


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=ROOT / "results" / "round_trip.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    rows = []
    for spacing in SPACINGS:
        for kind in ("ball", "box"):
            for size in SIZES:
                values = np.array([dice_and_shift(spacing, kind, size, seed) for seed in SEEDS])
                rows.append(
                    {
                        "spacing_mm": spacing,
                        "shape": f"sharp {kind}",
                        "size_voxels": size,
                        "dice_lowest": round(float(values[:, 0].min()), 3),
                        "dice_mean": round(float(values[:, 0].mean()), 3),
                        "shift_voxels": round(float(values[:, 1].max()), 3),
                    }
                )
                print(json.dumps(rows[-1]))
    write_json(options.output, {**stamp(), "seeds": list(SEEDS), "rows": rows})


if __name__ == "__main__":
    main()
