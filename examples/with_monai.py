"""In MONAI's pipelines: our preprocessing and network, MONAI's crops, loss, inferer and metric.

    python -m examples.with_monai IMAGES LABELS     # folders with files of the same names

Needs ``pip install monai``.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from monai.data import DataLoader, Dataset
from monai.inferers import sliding_window_inference
from monai.losses import DiceCELoss
from monai.metrics import DiceMetric
from monai.networks.utils import one_hot
from monai.transforms import Compose, MapTransform, RandCropByPosNegLabeld, ToTensord

import universal_model_hub as umh
from universal_model_hub.networks.unet3d import UNet3D
from universal_model_hub.preprocess.orientation import orient
from universal_model_hub.resample import resample


class ScanAndLabels(MapTransform):
    """Loads a scan and its labels onto the grid that the weights ask for, (1, X, Y, Z) each."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__(keys=("image", "label"))
        self.preprocessing = model.preprocessing

    def __call__(self, data: dict[str, Path]) -> dict[str, torch.Tensor]:
        """Load one case."""
        image, record = umh.preprocess(umh.load_volume(data["image"]), self.preprocessing)
        own = orient(umh.load_volume(data["label"]).array, record.axes, record.flips)
        label = resample(own, record.model_shape, record.scale, record.offset, 0)
        return {"image": image[0], "label": label[None].to(torch.int64)}


def train(images: Path, labels: Path, *, epochs: int = 2) -> tuple[UNet3D, float]:
    """Fine-tune on all cases; return the segmenter and the Dice on the same cases."""
    model = umh.load_segmenter("unet3d-compact", num_classes=2)
    files = [{"image": path, "label": labels / path.name} for path in sorted(images.iterdir())]
    load = ScanAndLabels(model)
    crop = RandCropByPosNegLabeld(
        keys=("image", "label"), label_key="label", spatial_size=(32, 32, 32), num_samples=2
    )
    data = Dataset(files, Compose([load, crop, ToTensord(keys=("image", "label"))]))
    loss_function = DiceCELoss(to_onehot_y=True, softmax=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model.train()
    for _ in range(epochs):
        for batch in DataLoader(data, batch_size=1, shuffle=True):
            loss = loss_function(model(batch["image"]), batch["label"])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    model.train(False)
    dice = DiceMetric(include_background=False)
    with torch.inference_mode():
        for case in map(load, files):
            logits = sliding_window_inference(case["image"][None], (32, 32, 32), 2, model)
            dice(one_hot(logits.argmax(1, keepdim=True), 2), one_hot(case["label"][None], 2))
    return model, float(dice.aggregate())


def main(arguments: Sequence[str] | None = None) -> None:
    """Train on the folders, tell the Dice, and save the segmenter."""
    images, labels = map(Path, (arguments or sys.argv[1:])[:2])
    model, dice = train(images, labels)
    print(f"Dice on the training cases: {dice:.3f}")
    model.head_trained = True
    umh.save_pretrained(model, "my-segmenter", force=True)


if __name__ == "__main__":
    main()
