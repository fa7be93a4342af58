"""Fine-tuning in a loop of your own: the models are plain PyTorch modules.

    python -m examples.plain_pytorch SCAN LABELS

``LABELS`` lies on the scan's grid; 1 is the structure to find.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn import functional as F

import universal_model_hub as umh
from universal_model_hub.networks.unet3d import UNet3D
from universal_model_hub.preprocess.orientation import orient
from universal_model_hub.resample import resample


def train(scan: Path, labels: Path, *, weights: str = "unet3d-compact", steps: int = 20) -> UNet3D:
    """Fine-tune on random cubes of one labeled scan, and return the segmenter."""
    model = umh.load_segmenter(weights, num_classes=2)
    image, record = umh.preprocess(umh.load_volume(scan), model)  # (1, 1, X, Y, Z) in [0, 1]
    own = orient(umh.load_volume(labels).array, record.axes, record.flips)
    truth = resample(own, record.model_shape, record.scale, record.offset, 0)  # (X, Y, Z)

    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(steps):
        x, y, z = (
            slice(start := int(torch.randint(max(1, n - 31), (), generator=generator)), start + 32)
            for n in truth.shape
        )
        logits = model(image[:, :, x, y, z])  # (1, 2, 32, 32, 32)
        loss = F.cross_entropy(logits, truth[None, x, y, z].long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.head_trained = True  # or predict refuses it
    return model.train(False)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train on the scan, then segment it."""
    scan, labels = map(Path, (arguments or sys.argv[1:])[:2])
    model = train(scan, labels)
    umh.save_pretrained(model, "my-segmenter", labels={0: "background", 1: "structure"}, force=True)
    umh.save_volume(umh.predict(model, umh.load_volume(scan)), Path("predicted.nii.gz"), force=True)


if __name__ == "__main__":
    main()
