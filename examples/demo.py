"""The main job on real scans, start to end: ``make demo``.

Fetches a real chest CT (slicerio 1.4.0, 0.8 MB) and a real T1 average (nilearn 0.14.1) from the
package registry, loads the encoder through torch.hub and through the package, embeds both scans,
segments the CT on its own grid, fine-tunes gray and white matter with the weights and without, and
writes ``report.html`` with curves and pictures.

Without weights in the package the encoder has its random start (seed 0), nothing is fine-tuned, and
everything that is shown says so. Without a segmenter in it the labels are a plain threshold.
"""

import argparse
import html
import json
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from examples.drawing import draw_labels, figure
from examples.tissue import Comparison, compare, draw_curves
from training.corpora.packaged import load_packaged
from training.metrics import commit
from training.release.feature_planes import draw_features
from universal_model_hub import (
    Preprocessing,
    Volume,
    embed,
    get_weights,
    list_models,
    load_encoder,
    load_segmenter,
    load_volume,
    predict,
    save_volume,
)
from universal_model_hub.errors import WeightsError
from universal_model_hub.features import FeatureMap, features
from universal_model_hub.fit.training.hardware import hardware

ROOT = Path(__file__).parent.parent
SCANS = {"ct-chest-4": "CT", "mr-template-1": "MR"}
BONE_HU = 250.0
UNTRAINED = "random start, not trained: no weights are in this package"


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
    trained = get_weights(name).available
    encoder = encoder_both_ways(name, pretrained=trained)
    state = f"{name}: {state_of(encoder) if trained else UNTRAINED}"
    say(state)
    shown = [show(scan_id, encoder) for scan_id in SCANS]
    labels, what = segment(shown[0].volume, options.output / "ct-chest-4-labels.nii.gz")
    refusal = refused_head(name, shown[0].volume)
    comparison = compare(name, say) if trained else None
    if comparison is not None:
        print(comparison)
    sections = [
        f"<p class='note'>{html.escape(state)}.</p>",
        *scan_sections(shown, labels, what, refusal),
        *(() if comparison is None else tissue_sections(comparison)),
        *facts_sections(shown),
    ]
    write_page(options.output / "report.html", sections)
    say(f"wrote {options.output / 'report.html'}")
    return 0


def say(text: str) -> None:
    """Print a line of progress."""
    print(f"demo: {text}", flush=True)


def encoder_both_ways(name: str, *, pretrained: bool) -> nn.Module:
    """Load the encoder through the package and through torch.hub, and see that they are one."""
    torch.manual_seed(0)
    encoder = load_encoder(name, pretrained=pretrained)
    torch.manual_seed(0)
    through_hub = torch.hub.load(
        str(ROOT), "load_encoder", source="local", name=name, pretrained=pretrained
    )
    assert isinstance(through_hub, nn.Module)
    other = through_hub.state_dict()
    if not all(torch.equal(value, other[key]) for key, value in encoder.state_dict().items()):
        raise SystemExit("torch.hub and the package gave different encoders")
    say("torch.hub and the package gave the same encoder")
    return encoder


def state_of(model: Any) -> str:
    """Say what the weights of a loaded model are."""
    report = model.load_report
    return f"trained weights, sha256 {str(report.sha256)[:12]}, verified: {report.verified}"


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


def segment(volume: Volume, path: Path) -> tuple[Volume, str]:
    """Segment the CT, write the labels, read them again; return them and what they are."""
    names = [row for row in list_models() if get_weights(row).kind == "segmenter"]
    ready = [row for row in names if get_weights(row).available]
    model: nn.Module = Threshold(BONE_HU)
    what = f"threshold at {BONE_HU:.0f} HU, no model"
    if ready:
        model = load_segmenter(ready[0])
        what = f"{ready[0]}: {', '.join(list(model.config.labels.values())[1:])}"
    labels = predict(model, volume, modality="CT")
    save_volume(labels, path, force=True)
    again = load_volume(path)
    same = np.array_equal(again.array, labels.array)
    if not same or not np.allclose(again.affine, volume.affine, atol=1e-4):
        raise SystemExit("the written labels do not lie on the scan's own grid")
    milliliters = np.count_nonzero(labels.array) * np.prod(volume.spacing) / 1000
    say(f"{path.name}: {what}; {milliliters:.0f} ml in all, on the scan's grid")
    return labels, what


def scan_sections(shown: list[Shown], labels: Volume, what: str, refusal: str) -> list[str]:
    """Return the report's parts on features and labels."""
    ct, mr = shown
    return [
        "<h2>Two real scans and their features</h2>",
        figure(
            lambda: draw_features(ct.volume, {"features": ct.maps.array}, (-1000.0, 400.0)),
            "ct-chest-4, and the first three principal components of its features (level 1)",
        ),
        figure(
            lambda: draw_features(mr.volume, {"features": mr.maps.array}, None),
            "mr-template-1 (MNI152), likewise",
        ),
        "<h2>Labels on the scan's own grid</h2>",
        figure(lambda: draw_labels(ct.volume, labels), what),
        f"<p>A network with an untrained head is refused: <code>{html.escape(refusal)}</code></p>",
    ]


def tissue_sections(comparison: Comparison) -> list[str]:
    """Return the report's parts on fine-tuning."""
    return [
        "<h2>Gray and white matter from a few slabs</h2>",
        f"<pre>{html.escape(str(comparison))}</pre>",
        figure(lambda: draw_curves(comparison), "loss while fine-tuning, mean of five steps"),
        "<p>One scan, one seed, few steps: a demonstration; the measured comparison is in the "
        "model card.</p>",
    ]


def facts_sections(shown: list[Shown]) -> list[str]:
    """Return the report's last part: what ran, on what."""
    facts = {"commit": commit(), "seed": 0, **hardware(torch.device("cpu"))}
    return [
        "<h2>What ran</h2>",
        table(shown),
        f"<pre>{html.escape(json.dumps(facts, indent=2))}</pre>",
    ]


def write_page(path: Path, sections: list[str]) -> None:
    """Write one self-contained page."""
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


if __name__ == "__main__":
    warnings.simplefilter("default")
    sys.exit(main())
