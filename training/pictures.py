"""Pictures of the training stages: the three scales, intensities, and restored cubes.

    python -m training.pictures scales --recipe paper --output PNG luna16=DIR brats2018=DIR
    python -m training.pictures histograms --recipe paper --output PNG luna16=DIR ...
    python -m training.pictures restored --run RUN --cubes STORE --output PNG

The scales are Fig. 2 of Zhang et al., for the first CT and the first MR scan; the histograms are
those of Sec. IV-B.1, before and after normalization.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import nn

from training.config import CubesConfig, Recipe, load_recipe, recipe_of
from training.corpora import CORPORA
from training.corpora.case import Case
from training.cubes import AIR_LEVEL, CubeStore, cut_cubes
from training.prepare import cases_of
from training.publish import final_checkpoint, unet_of
from training.restoration import CORRUPTION_NAMES, corrupt_alone, restore
from training.transforms import CorruptionConfig
from universal_model_hub.errors import ConfigError, UniversalModelError
from universal_model_hub.files import atomic_path
from universal_model_hub.preprocess import preprocess
from universal_model_hub.volume import Volume

SCALE_NAMES = {1: ("only",), 2: ("small", "large"), 3: ("small", "medium", "large")}
COLORS = ("#e4572e", "#f3a712", "#29a0b1")  # small, medium, large
PLANES = (("axial", 0, 1), ("coronal", 0, 2), ("sagittal", 1, 2))  # axis to the right, axis up
HISTOGRAM_VOXELS = 200_000  # drawn from each scan
HISTOGRAM_CASES = 8  # curves in a panel


@dataclass(frozen=True)
class Scan:
    """A scan before and after preprocessing."""

    title: str
    modality: str
    raw: np.ndarray  # (X, Y, Z), HU or the scanner's units
    volume: np.ndarray  # (X, Y, Z) float32 in [0, 1]


def scan_of(title: str, modality: str, scan: Volume, recipe: Recipe) -> Scan:
    """Preprocess a loaded scan and keep both."""
    volume, _ = preprocess(scan, recipe.preprocessing, modality=modality)
    return Scan(title, modality, np.asarray(scan.array), volume[0, 0].numpy())


def load_scan(case: Case, recipe: Recipe) -> Scan:
    """Load and preprocess one case."""
    return scan_of(
        f"{case.corpus} {case.id}", case.modality, CORPORA[case.corpus].load(case), recipe
    )


def scales_figure(scans: Sequence[Scan], config: CubesConfig, *, seed: int = 0) -> Figure:
    """Draw for each scan three planes with a box of each scale, and the resized cubes beside.

    The planes meet in the middle of the small box. A box that a plane misses is dotted.
    """
    names = SCALE_NAMES[len(config.scales)]
    figure = new_figure(2.6 * (3 + len(names)), 2.9 * len(scans))
    axes = figure.subplots(len(scans), 3 + len(names), squeeze=False)
    for row, scan in zip(axes, scans, strict=True):
        cubes, places = boxes_of(scan, config, seed)
        center = np.array(places[0]["start"]) + np.array(places[0]["side"]) // 2
        for axis, (plane, right, up) in zip(row[:3], PLANES, strict=True):
            show_plane(axis, scan.volume, center, right, up)
            for place, color in zip(places, COLORS, strict=False):
                outline(axis, place, center, (right, up), color)
            axis.set_title(f"{scan.modality}, {plane}", fontsize=9)
        row[0].set_ylabel(scan.title, fontsize=8)
        for axis, cube, place, color in zip(row[3:], cubes, places, COLORS, strict=False):
            axis.imshow(
                cube[:, :, cube.shape[2] // 2].T, cmap="gray", vmin=0, vmax=1, origin="lower"
            )
            side = " x ".join(map(str, place["side"]))
            axis.set_title(f"{names[place['scale_id']]}: {side} voxels", fontsize=9, color=color)
            bare(axis)
    return figure


def boxes_of(scan: Scan, config: CubesConfig, seed: int) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """Cut one cube of each scale.

    Raises:
        ConfigError: If a scale gives nothing but air.
    """
    cubes, places, left_out = cut_cubes(
        torch.from_numpy(scan.volume),
        config,
        (1,) * len(config.scales),
        AIR_LEVEL[scan.modality],
        np.random.default_rng(seed),
    )
    if left_out:
        raise ConfigError(f"{scan.title} gave cubes of nothing but air. Choose another --seed.")
    return cubes, places


def show_plane(axis: Axes, volume: np.ndarray, center: np.ndarray, right: int, up: int) -> None:
    """Show the slice of a volume through a voxel that spans two axes."""
    across = 3 - right - up
    slice_ = np.take(volume, center[across], axis=across)  # axes keep their order: (right, up)
    axis.imshow(slice_.T, cmap="gray", vmin=0, vmax=1, origin="lower")
    bare(axis)


def outline(
    axis: Axes, place: dict[str, Any], center: np.ndarray, plane: tuple[int, int], color: str
) -> None:
    """Draw a box's outline, dotted where the plane does not meet the box."""
    right, up = plane
    across = 3 - right - up
    start, side = place["start"], place["side"]
    met = start[across] <= center[across] < start[across] + side[across]
    axis.add_patch(
        Rectangle(
            (start[right] - 0.5, start[up] - 0.5),
            side[right],
            side[up],
            fill=False,
            edgecolor=color,
            linewidth=1.6,
            linestyle="-" if met else ":",
        )
    )


def histograms_figure(corpora: dict[str, list[Scan]], *, seed: int = 0) -> Figure:
    """Draw each corpus's intensities before and after normalization, a curve for each scan."""
    figure = new_figure(8.4, 2.2 * len(corpora))
    axes = figure.subplots(len(corpora), 2, squeeze=False)
    rng = np.random.default_rng(seed)
    for (before, after), (name, scans) in zip(axes, corpora.items(), strict=True):
        unit = "HU" if scans[0].modality == "CT" else "scanner's units"
        raw = [drawn(scan.raw, rng) for scan in scans]
        low, high = np.percentile(np.concatenate(raw), (0.05, 99.95))
        for values, scan in zip(raw, scans, strict=True):
            curve(before, values, np.linspace(low, high, 121))
            curve(after, drawn(scan.volume, rng), np.linspace(0, 1, 121))
        before.set_title(f"{name}: {len(scans)} {scans[0].modality}, before ({unit})", fontsize=9)
        after.set_title("after normalization", fontsize=9)
        before.set_ylabel("share of voxels", fontsize=8)
        for axis in (before, after):
            axis.set_yscale("log")
            axis.tick_params(labelsize=7)
            axis.spines[["top", "right"]].set_visible(False)
    return figure


def drawn(array: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draw voxels of a scan at random, float64."""
    flat = array.reshape(-1)
    return flat[rng.integers(0, flat.size, min(flat.size, HISTOGRAM_VOXELS))].astype(np.float64)


def curve(axis: Axes, values: np.ndarray, edges: np.ndarray) -> None:
    """Draw one histogram as a line; values beyond the edges count in the outer bins."""
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), edges)
    axis.step(edges[:-1], np.maximum(counts, 0.5) / len(values), where="post", linewidth=0.9)


def restored_figure(
    unet: nn.Module, cubes: dict[str, np.ndarray], config: CorruptionConfig, *, seed: int = 0
) -> Figure:
    """Draw original, corrupted and restored cubes, for each corruption alone.

    Args:
        unet: In eval mode, with its restoration head.
        cubes: A cube (X, Y, Z) in [0, 1] for each title.
        config: Sizes of the corruptions.
        seed: Of the corruptions.
    """
    names = ("original", "corrupted", "restored")
    figure = new_figure(1.75 * len(CORRUPTION_NAMES) * len(cubes), 5.9)
    axes = figure.subplots(3, len(CORRUPTION_NAMES) * len(cubes), squeeze=False)
    columns = [(title, name) for title in cubes for name in CORRUPTION_NAMES]
    for column, (title, name) in enumerate(columns):
        cube = cubes[title]
        rng = np.random.default_rng([seed, column])
        corrupted = corrupt_alone(name, cube, config, rng)
        shown = (cube, corrupted, restore(unet, corrupted))
        for axis, label, values in zip(axes[:, column], names, shown, strict=True):
            axis.imshow(
                values[:, :, values.shape[2] // 2].T, cmap="gray", vmin=0, vmax=1, origin="lower"
            )
            bare(axis)
            if column == 0:
                axis.set_ylabel(label, fontsize=9)
        axes[0, column].set_title(f"{title}\n{name}", fontsize=8)
    return figure


def clearest_cubes(store: CubeStore, numbers: Sequence[int]) -> dict[str, np.ndarray]:
    """Choose for each modality the largest-scale cube with the most contrast."""
    chosen: dict[str, tuple[tuple[int, float], np.ndarray]] = {}
    for number in numbers:
        record, cube = store.records[number], store.cube(number)
        rank = (record.scale_id, float(cube.std()))
        if record.modality not in chosen or rank > chosen[record.modality][0]:
            chosen[record.modality] = (rank, cube)
    return {modality: chosen[modality][1] for modality in sorted(chosen)}


def bare(axis: Axes) -> None:
    """Take ticks and frame away."""
    axis.set_xticks([])
    axis.set_yticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)


def new_figure(width: float, height: float) -> Figure:
    """Return an empty figure, inches."""
    return Figure(figsize=(width, height), dpi=110, layout="constrained")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", metadata={"Software": None})


def by_corpus(cases: Sequence[Case], limit: int) -> dict[str, list[Case]]:
    """Group cases by corpus, at most ``limit`` of each, spread over the list."""
    groups: dict[str, list[Case]] = {}
    for case in cases:
        groups.setdefault(case.corpus, []).append(case)
    return {
        name: [found[i] for i in np.unique(np.linspace(0, len(found) - 1, limit).astype(int))]
        for name, found in groups.items()
    }


def draw(options: argparse.Namespace) -> Figure:
    """Draw what the command line asks for."""
    if options.picture == "restored":
        _, state, config = final_checkpoint(options.run)
        recipe = recipe_of(config["recipe"])
        store = CubeStore(options.cubes)
        unet = unet_of(state, recipe, average=True)
        cubes = clearest_cubes(store, range(len(store)))
        return restored_figure(unet, cubes, recipe.corruption, seed=options.seed)
    recipe = load_recipe(options.recipe, options.set)
    cases = cases_of(recipe, options.folders)
    if options.picture == "histograms":
        chosen = by_corpus(cases, HISTOGRAM_CASES)
        scans = {name: [load_scan(c, recipe) for c in found] for name, found in chosen.items()}
        return histograms_figure(scans, seed=options.seed)
    first = {case.modality: case for case in reversed(cases)}
    if not first:
        raise ConfigError("No case to draw. Give corpora that hold CT or MR scans.")
    pair = [load_scan(first[modality], recipe) for modality in sorted(first)]
    return scales_figure(pair, recipe.cubes, seed=options.seed)


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m training.pictures", description=__doc__)
    pictures = parser.add_subparsers(dest="picture", required=True)
    for name in ("scales", "histograms"):
        own = pictures.add_parser(name)
        own.add_argument("folders", nargs="+", metavar="CORPUS=FOLDER")
        own.add_argument("--recipe", type=Path, default=Path("paper"))
        own.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    restored = pictures.add_parser("restored")
    restored.add_argument("--run", type=Path, required=True, help="folder of a run")
    restored.add_argument("--cubes", type=Path, required=True, help="store of prepared cubes")
    for own in pictures.choices.values():
        own.add_argument("--output", "-o", type=Path, required=True, help="PNG to write")
        own.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    try:
        save_figure(draw(options), options.output)
    except UniversalModelError as error:
        print(f"pictures: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
