"""What the released weights have learned, in pictures.

    python -m training.release.gallery --output results

Restored cubes and features of two real scans, the embedding of cubes from synthetic bodies, and the
ready segmenter beside the labels it was trained on. One of the scans, ct-chest-4, is also a test
scan of the evaluation: it is drawn for the demo, its labels are not read, and it chooses nothing.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from sklearn.preprocessing import StandardScaler

from training.config import load_recipe
from training.corpora.packaged import load_packaged
from training.corpora.phantom import KINDS
from training.metrics import runs_folder
from training.pictures import COLORS, bare, new_figure, restored_figure, save_figure
from training.release.arms import Arm, find_arms
from training.release.feature_planes import draw_features
from training.release.frozen import frozen_features
from training.release.probes import ProbeCubes, pooled, probe_cubes
from training.release.runs import PROBE_SEEDS, PROBE_SUBJECTS
from training.release.scans import GridCase, scan_case
from training.release.segmenter import CLASSES, SPACING_MM, chest_task
from universal_model_hub import load_encoder, load_segmenter, load_unet, predict
from universal_model_hub.errors import UniversalModelError
from universal_model_hub.features import features
from universal_model_hub.files import write_bytes
from universal_model_hub.fit.reporting.planes import three_planes
from universal_model_hub.preprocess import preprocess
from universal_model_hub.volume import Volume

WEIGHTS = ("unet3d-compact", "unet3d-compact-anatomy")
SEGMENTER = "unet3d-compact-chest"
SCANS = {"ct-chest-4": ("CT", (-1000.0, 400.0)), "mr-template-1": ("MR", None)}
LEVEL = 1  # of the feature maps: half the resolution of the model grid
SIDE, STEP = 32, 3  # of a restored cube: voxels, and model voxels to one of it
MARKERS = {"CT": "o", "MR": "^"}
HU = (-1000.0, 1000.0)


def restored_cubes(names: Sequence[str]) -> Figure:
    """Draw the middle cubes of the scans, corrupted and restored by the first of the weights."""
    unet = load_unet(names[0]).train(False)
    cubes = {}
    for scan_id, (modality, _) in SCANS.items():
        image = preprocess(load_packaged(scan_id, purpose="demo"), unet, modality)[0][0, 0]
        middle = [slice(max(0, n // 2 - SIDE * STEP // 2), None, STEP) for n in image.shape]
        cubes[scan_id] = np.ascontiguousarray(image[tuple(middle)].numpy()[:SIDE, :SIDE, :SIDE])
    return restored_figure(unet, cubes, load_recipe("compact").corruption)


def feature_planes(scan_id: str, names: Sequence[str]) -> Figure:
    """Draw a scan and its features by each of the weights and by a random network."""
    modality, window = SCANS[scan_id]
    volume = load_packaged(scan_id, purpose="demo")
    maps = {}
    for name in names:
        maps[name] = features(load_encoder(name), volume, LEVEL, modality=modality).array
    torch.manual_seed(0)
    fresh = load_encoder(names[0], pretrained=False)
    maps["random network"] = features(fresh, volume, LEVEL, modality=modality).array
    return draw_features(volume, maps, window)


def embedding(found: ProbeCubes, arms: Mapping[str, Arm]) -> Figure:
    """Draw cubes of synthetic bodies where t-SNE puts their pooled features, for each arm."""
    figure = new_figure(5.2 * len(arms), 5.2)
    every = [
        GridCase(str(i), str(i), cube, np.zeros(cube.shape, np.int16))
        for i, cube in enumerate(found.cubes)
    ]
    colors = dict(zip(sorted(KINDS), (*COLORS, "#7b4b94"), strict=False))
    for axis, (name, arm) in zip(figure.subplots(1, len(arms)), arms.items(), strict=True):
        rows = pooled(frozen_features(arm, "full", 0, every), found.cubes)
        places = TSNE(random_state=0, init="pca").fit_transform(
            StandardScaler().fit_transform(rows)
        )
        for region, color in colors.items():
            for modality, marker in MARKERS.items():
                mine = (found.region == region) & (found.modality == modality)
                axis.scatter(*places[mine].T, c=color, marker=marker, s=14, linewidths=0)
                if mine.any():
                    axis.scatter([], [], c=color, marker=marker, label=f"{region}, {modality}")
        axis.set_title(name)
        bare(axis)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4)
    return figure


def segmentation() -> bytes:
    """Draw the ready segmenter's answer on its training scan beside the labels of that scan."""
    model = load_segmenter(SEGMENTER)
    names = label_names(model)
    case = scan_case(chest_task({name: CLASSES[name] for name in names}), "train")
    hu = case.image * (HU[1] - HU[0]) + HU[0]
    affine = np.diag([SPACING_MM] * 3 + [1.0])
    predicted = model_labels(model, Volume(hu.astype(np.float32), affine))
    return three_planes(case.image, case.labels, predicted, (SPACING_MM,) * 3, window=(0.4, 0.7))


def label_names(model: torch.nn.Module) -> list[str]:
    """Return a segmenter's classes without the background."""
    config = vars(model)["config"]
    return list(config.labels.values())[1:]


def model_labels(model: torch.nn.Module, volume: Volume) -> np.ndarray:
    """Return the labels (X, Y, Z) that a segmenter gives a CT, on its grid."""
    return np.asarray(predict(model, volume, modality="CT").array).astype(np.int16)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m training.release.gallery", description=__doc__)
    parser.add_argument("--output", "-o", type=Path, required=True, help="folder of the pictures")
    parser.add_argument("--work", type=Path, default=runs_folder() / "release")
    options = parser.parse_args(arguments)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        for name, figure in (
            ("restored", restored_cubes(WEIGHTS)),
            *((f"features_{scan_id}", feature_planes(scan_id, WEIGHTS)) for scan_id in SCANS),
        ):
            save_figure(figure, options.output / f"release_{name}.png")
        arms = find_arms(WEIGHTS)
        seed = PROBE_SEEDS["develop"]
        path = options.work / "data" / f"probe_cubes-{seed}-{PROBE_SUBJECTS}.npz"
        found = probe_cubes(path, seed=seed, subjects=PROBE_SUBJECTS)
        compared = {**{arm.name: arm for arm in arms.weights}, "random network": arms.scratch[0]}
        save_figure(embedding(found, compared), options.output / "release_embedding.png")
        write_bytes(options.output / "release_segmentation.png", segmentation())
    except UniversalModelError as error:
        print(f"gallery: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
