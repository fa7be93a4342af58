"""The main job on real scans, start to end: ``make demo``.

Fetches a real chest CT (slicerio 1.4.0, 0.8 MB) and a real T1 average (nilearn 0.14.1) from the
package registry, loads the encoder through torch.hub and through the package, embeds both scans,
leads a segmentation back to the CT's own grid, and writes ``report.html`` with pictures.

No weights are released yet: the encoder has its random start (seed 0), and everything that is shown
says so. The segmentation is a plain threshold, for the geometry's sake.
"""

import argparse
import base64
import html
import io
import json
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from torch import Tensor, nn

from training.corpora.packaged import load_packaged
from training.metrics import commit, hardware
from universal_model_hub import (
    Preprocessing,
    Volume,
    embed,
    list_models,
    load_encoder,
    load_segmenter,
    load_volume,
    predict,
    save_volume,
)
from universal_model_hub.errors import WeightsError
from universal_model_hub.features import FeatureMap, features
from universal_model_hub.resample import resample

matplotlib.use("Agg")
from matplotlib import pyplot as plt

ROOT = Path(__file__).parent.parent
SCANS = {"ct-chest-4": "CT", "mr-template-1": "MR"}
BONE_HU = 250.0
UNTRAINED = "random start, not trained: no weights are released yet"


@dataclass(frozen=True)
class Shown:
    """What the report says of one scan."""

    scan_id: str
    volume: Volume
    embedding: np.ndarray  # (F,)
    maps: FeatureMap
    seconds: float


class Threshold(nn.Module):
    """A segmenter without weights: one logit, positive above a HU value."""

    def __init__(self, threshold_hu: float) -> None:
        super().__init__()
        self.preprocessing = Preprocessing()
        low, high = self.preprocessing.ct_clip
        self.level = (threshold_hu - low) / (high - low)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, 1, X, Y, Z) in [0, 1] to logits of the same shape."""
        return x - self.level


def main() -> int:
    """Run the demo and write its folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("demo"))
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    name = list_models()[0]
    say(f"{name}: {UNTRAINED}")
    encoder = encoder_both_ways(name)
    shown = [show(scan_id, encoder) for scan_id in SCANS]
    refusal = refused_head(name, shown[0].volume)
    labels = segment_bone(shown[0].volume, options.output / "ct-chest-4-bone.nii.gz")
    write_report(options.output / "report.html", name, shown, labels, refusal)
    say(f"wrote {options.output / 'report.html'}")
    return 0


def say(text: str) -> None:
    """Print a line of progress."""
    print(f"demo: {text}", flush=True)


def encoder_both_ways(name: str) -> nn.Module:
    """Load the encoder through the package and through torch.hub, and see that they are one."""
    torch.manual_seed(0)
    encoder = load_encoder(name, pretrained=False)
    torch.manual_seed(0)
    through_hub = torch.hub.load(
        str(ROOT), "load_encoder", source="local", name=name, pretrained=False
    )
    assert isinstance(through_hub, nn.Module)
    other = through_hub.state_dict()
    if not all(torch.equal(value, other[key]) for key, value in encoder.state_dict().items()):
        raise SystemExit("torch.hub and the package gave different encoders")
    say("torch.hub and the package gave the same encoder")
    return encoder


def show(scan_id: str, encoder: nn.Module) -> Shown:
    """Embed a real scan and take its deepest feature map."""
    volume = load_packaged(scan_id, purpose="demo")
    started = time.perf_counter()
    embedding = embed(encoder, volume, modality=SCANS[scan_id])
    seconds = time.perf_counter() - started
    maps = features(encoder, volume, 1, modality=SCANS[scan_id])
    spacing = " x ".join(f"{side:.2f}" for side in volume.spacing)
    say(f"{scan_id}: {volume.shape} at {spacing} mm -> {embedding.shape} in {seconds:.1f} s")
    return Shown(scan_id, volume, embedding, maps, seconds)


def refused_head(name: str, volume: Volume) -> str:
    """Return what an untrained head answers when it is asked for labels."""
    torch.manual_seed(0)
    segmenter = load_segmenter(name, num_classes=2, pretrained=False)
    try:
        predict(segmenter, volume, modality="CT")
    except WeightsError as error:
        say(f"an untrained head is refused: {error}")
        return str(error)
    raise SystemExit("an untrained head was not refused")


def segment_bone(volume: Volume, path: Path) -> Volume:
    """Threshold bone at 1 mm, lead the labels back, and read the written file again."""
    labels = predict(Threshold(BONE_HU), volume, modality="CT")
    save_volume(labels, path, force=True)
    again = load_volume(path)
    same = np.array_equal(again.array, labels.array)
    if not same or not np.allclose(again.affine, volume.affine, atol=1e-4):
        raise SystemExit("the written labels do not lie on the scan's own grid")
    millilitres = labels.array.sum() * np.prod(volume.spacing) / 1000
    say(f"{path.name}: a threshold at {BONE_HU:.0f} HU, {millilitres:.0f} ml, on the scan's grid")
    return labels


def write_report(path: Path, name: str, shown: list[Shown], labels: Volume, refusal: str) -> None:
    """Write one self-contained page."""
    facts = {"commit": commit(), "seed": 0, **hardware(torch.device("cpu"))}
    ct, mr = shown
    sections = [
        f"<p class='note'>{html.escape(name)}: {UNTRAINED}. The features below are those of a "
        "random network; they show that the way from a scan to features works, and nothing else."
        "</p>",
        "<h2>Two real scans and their features</h2>",
        figure(
            lambda: draw_features(ct, (-1000.0, 400.0)),
            "ct-chest-4, and the first three principal components of its features (level 1)",
        ),
        figure(lambda: draw_features(mr, None), "mr-template-1 (MNI152), likewise"),
        "<h2>Labels on the scan's own grid</h2>",
        figure(lambda: draw_labels(ct.volume, labels), f"threshold at {BONE_HU:.0f} HU, no model"),
        f"<p>A network with an untrained head is refused: <code>{html.escape(refusal)}</code></p>",
        "<h2>What ran</h2>",
        table(shown),
        f"<pre>{html.escape(json.dumps(facts, indent=2))}</pre>",
    ]
    page = (
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        "<title>universal_model_hub demo</title><style>"
        "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
        "img{max-width:100%}.note{background:#fff3cd;padding:.75rem 1rem;border-radius:.4rem}"
        "td,th{padding:.25rem 1rem .25rem 0;text-align:left}pre,code{font-size:.85rem;"
        "white-space:pre-wrap}figcaption{color:#555}</style>"
        "<h1>universal_model_hub: from real scans to features</h1>" + "".join(sections)
    )
    path.write_text(page)


def table(shown: list[Shown]) -> str:
    """Return the scans and how long each took as an HTML table."""
    rows = "".join(
        f"<tr><td>{s.scan_id}<td>{' x '.join(map(str, s.volume.shape))}"
        f"<td>{' x '.join(f'{x:.2f}' for x in s.volume.spacing)}"
        f"<td>{len(s.embedding)}<td>{s.seconds:.1f}"
        for s in shown
    )
    head = "<tr><th>scan<th>voxels<th>mm<th>features<th>embed, s"
    return f"<table>{head}{rows}</table>"


def figure(draw: Callable[[], Any], caption: str) -> str:
    """Draw with matplotlib and return the picture as an HTML figure."""
    drawn = draw()
    stream = io.BytesIO()
    drawn.savefig(stream, format="png", dpi=110, bbox_inches="tight")
    plt.close(drawn)
    data = base64.b64encode(stream.getvalue()).decode()
    text = html.escape(caption)
    return (
        f"<figure><img alt='{text}' src='data:image/png;base64,{data}'>"
        f"<figcaption>{text}</figcaption></figure>"
    )


def draw_features(shown: Shown, window: tuple[float, float] | None) -> Any:
    """Three planes of a scan, and below them its features' first three principal components."""
    volume = isotropic(shown.volume)
    drawn, axes = plt.subplots(2, 3, figsize=(9, 6))
    low, high = window or (float(volume.array.min()), float(np.percentile(volume.array, 99.5)))
    for axis, plane in zip(axes[0], three_planes(volume.array), strict=True):
        axis.imshow(plane.T, cmap="gray", origin="lower", vmin=low, vmax=high)
    for axis, plane in zip(
        axes[1], three_planes(principal_components(shown.maps.array)), strict=True
    ):
        axis.imshow(plane.transpose(1, 0, 2), origin="lower")
    for axis in axes.flat:
        axis.axis("off")
    axes[0, 0].set_title("sagittal")
    axes[0, 1].set_title("coronal")
    axes[0, 2].set_title("axial")
    return drawn


def draw_labels(volume: Volume, labels: Volume) -> Any:
    """Three planes of a scan with a mask laid over."""
    gray = isotropic(volume).array
    mask = isotropic(Volume(labels.array.astype(np.float32), labels.affine)).array > 0.5
    drawn, axes = plt.subplots(1, 3, figsize=(9, 3))
    for axis, plane, over in zip(axes, three_planes(gray), three_planes(mask), strict=True):
        axis.imshow(plane.T, cmap="gray", origin="lower", vmin=-1000, vmax=400)
        painted = np.ma.masked_where(~over.T, over.T)
        axis.imshow(painted, cmap="autumn", origin="lower", alpha=0.6)
        axis.axis("off")
    return drawn


def isotropic(volume: Volume, spacing: float = 2.0) -> Volume:
    """Return a scan in RAS+ orientation at ``spacing`` mm, for pictures."""
    import nibabel as nib

    image = nib.as_closest_canonical(nib.Nifti1Image(volume.array, volume.affine))
    array, affine = np.asarray(image.dataobj), np.asarray(image.affine)
    scale = [spacing / step for step in np.linalg.norm(affine[:3, :3], axis=0)]
    size = [max(1, round(n / s)) for n, s in zip(array.shape, scale, strict=True)]
    return Volume(resample(array, size, scale, (0, 0, 0), 1).numpy(), affine)


def three_planes(array: np.ndarray) -> list[np.ndarray]:
    """Return the middle sagittal, coronal and axial planes of (X, Y, Z, ...)."""
    x, y, z = (n // 2 for n in array.shape[:3])
    return [array[x], array[:, y], array[:, :, z]]


def principal_components(maps: np.ndarray) -> np.ndarray:
    """Map features (C, X, Y, Z) to colors (X, Y, Z, 3) in [0, 1]: their first three components."""
    C = maps.shape[0]
    flat = torch.from_numpy(maps.reshape(C, -1).T)
    centered = flat - flat.mean(dim=0)
    _, _, components = torch.pca_lowrank(centered[:: max(1, len(flat) // 50_000)], q=3, niter=4)
    colors = (centered @ components).numpy()
    low, high = np.percentile(colors, [1, 99], axis=0)
    colors = np.clip((colors - low) / np.maximum(high - low, 1e-9), 0, 1)
    return colors.reshape(*maps.shape[1:], 3)


if __name__ == "__main__":
    warnings.simplefilter("default")
    sys.exit(main())
