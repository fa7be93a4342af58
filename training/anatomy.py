"""Synthetic anatomy for supervised pre-training: label cubes, and what the network learns on them.

After SynthSeg (Billot et al. 2023) and anatomix (Dey et al. 2025), written from the papers: label
maps of varied anatomy are deformed, joined by abstract shapes, and rendered twice in random
contrasts (``rendering.py``). Label maps come from a bank of phantoms, made once; all else is drawn
for each cube. Shape letters: X Y Z a cube's voxels, P sampled voxels.
"""

import concurrent.futures
import multiprocessing
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from training.config import Recipe
from training.corpora.phantom import KINDS, TISSUES, make_subject
from training.rendering import render_pair
from universal_model_hub.errors import ConfigError
from universal_model_hub.files import atomic_path

BANK_SPACING_MM = 2.0
BANK_SEED = 7001  # of subjects nobody is evaluated on
MODEL_SPACING_MM = 1.0  # of the recipe's cubes at scale 1
NOT_LABELED = -1  # abstract shapes: no tissue to name
AIR_SHARE = 0.8  # a cube with more air is drawn again
TRIES = 6
NUM_POINTS = 96  # voxels that are compared between two renderings of a cube
ABSTRACT_PROBABILITY = 0.4
MAX_SHAPES = 6

# What the segmentation head tells apart: tissues that look alike everywhere share a group, and the
# groups are coarser than the classes of any evaluation task on phantoms.
GROUPS: tuple[tuple[str, ...], ...] = (
    ("air", "gas", "airway"),
    ("skin", "fat", "visceral_fat"),
    ("muscle",),
    ("cortical_bone",),
    ("marrow", "cartilage"),
    ("lung", "ground_glass"),
    ("airway_wall", "vessel_wall", "esophagus", "stomach_wall", "bowel_wall"),
    ("lung_vessel", "liver_vessel", "aorta", "pulmonary_artery", "pulmonary_vein", "vein"),
    ("left_ventricle", "left_atrium"),
    ("right_ventricle", "right_atrium"),
    ("myocardium", "heart_wall"),
    ("liver",),
    ("spleen",),
    ("kidney_cortex", "kidney_medulla"),
    ("gallbladder", "pancreas", "stomach_content", "bowel_content"),
    ("csf",),
    ("gray_matter", "spinal_cord"),
    ("white_matter",),
    ("deep_nuclei", "hippocampus"),
    ("nodule", "liver_lesion", "wm_lesion", "edema", "tumor_core", "enhancing_tumor"),
    ("eye",),
)
FIRST_SHAPE = len(TISSUES)  # label values from here on are abstract shapes


def group_table() -> np.ndarray:
    """Return the group of each label value, (tissues + shapes,) int64; shapes have none."""
    table = np.full(len(TISSUES) + MAX_SHAPES, NOT_LABELED, np.int64)
    for group, names in enumerate(GROUPS):
        table[[TISSUES[name] for name in names]] = group
    return table


class LabelBank:
    """Label maps of phantoms, memory-mapped: ``<region>NNN.npy``, (X, Y, Z) uint8 at 2 mm.

    Raises:
        ConfigError: If the folder holds none.
    """

    def __init__(self, folder: Path) -> None:
        self.files = sorted(p for p in folder.glob("*.npy") if not p.name.startswith("."))
        if not self.files:
            raise ConfigError(
                f"Expected label maps in {folder}, got none. Run python -m "
                "training.release.prepare with this recipe first."
            )
        self._maps: dict[Path, np.ndarray] = {}

    def draw(self, rng: np.random.Generator) -> np.ndarray:
        """Return one label map; every region is as likely as its share of the bank."""
        file = self.files[int(rng.integers(len(self.files)))]
        if file not in self._maps:
            self._maps[file] = np.load(file, mmap_mode="r", allow_pickle=False)
        return self._maps[file]


def bank_of(store_folder: Path) -> Path:
    """Return the folder of the label maps that belong to a store of cubes."""
    return store_folder.with_name(f"{store_folder.name}-anatomy")


def make_bank(folder: Path, *, subjects: int, workers: int) -> LabelBank:
    """Make the label maps of ``subjects`` phantoms of each region; those there are left alone."""
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [(folder, region, number) for number in range(subjects) for region in KINDS]
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(
        workers, context, torch.set_num_threads, (1,)
    ) as pool:
        done = pool.map(make_map, *zip(*jobs, strict=True))
        for _ in tqdm(done, total=len(jobs), desc="label maps", unit="map"):
            pass
    return LabelBank(folder)


def make_map(folder: Path, region: str, number: int) -> None:
    """Make one phantom and keep its label map."""
    path = folder / f"{region}{number:03d}.npy"
    if path.is_file():
        return
    rng = np.random.default_rng([BANK_SEED, *region.encode(), number])
    subject = make_subject(region, rng, BANK_SPACING_MM)
    with atomic_path(path) as temporary, temporary.open("wb") as stream:
        np.save(stream, subject.labels)


def anatomy_item(
    bank: LabelBank, recipe: Recipe, rng: np.random.Generator
) -> dict[str, np.ndarray]:
    """Draw one label cube and render it twice.

    Returns:
        ``rendering_a`` and ``rendering_b`` (1, X, Y, Z) float32 in [0, 1]; ``groups`` (X, Y, Z)
        int64, -1 where nothing is to be named; ``edges`` (X, Y, Z) float32, 1 at borders of labels;
        ``points`` (P,) int64, flat voxel numbers, half of them at borders.
    """
    labels = label_cube(bank, recipe, rng)
    first, second = render_pair(labels, rng)
    edges = label_edges(labels)
    flat = edges.ravel()
    half = NUM_POINTS // 2
    anywhere = rng.integers(flat.size, size=NUM_POINTS - half)
    borders = np.flatnonzero(flat)
    near = rng.choice(borders, half) if len(borders) else rng.integers(flat.size, size=half)
    return {
        "rendering_a": first[None],
        "rendering_b": second[None],
        "groups": group_table()[labels],
        "edges": edges.astype(np.float32),
        "points": np.concatenate([anywhere, near]),
    }


def label_cube(bank: LabelBank, recipe: Recipe, rng: np.random.Generator) -> np.ndarray:
    """Draw a deformed cube of labels, (X, Y, Z) uint8; now and then with abstract shapes."""
    size = recipe.cubes.size
    scales = recipe.cubes.scales
    for _ in range(TRIES):
        scale = float(scales[int(rng.integers(len(scales)))] * np.exp(rng.uniform(-0.2, 0.2)))
        labels = warped(bank.draw(rng), size, scale * MODEL_SPACING_MM / BANK_SPACING_MM, rng)
        if (labels == TISSUES["air"]).mean() <= AIR_SHARE:
            break
    for axis in range(3):
        if rng.random() < 0.5:
            labels = np.flip(labels, axis)
    labels = np.ascontiguousarray(labels)
    if rng.random() < ABSTRACT_PROBABILITY:
        paint_shapes(labels, rng)
    return labels


def warped(
    whole: np.ndarray, size: Sequence[int], step: float, rng: np.random.Generator
) -> np.ndarray:
    """Cut a cube from a label map along smoothly bent axes, by the nearest voxel.

    Args:
        whole: (X, Y, Z) uint8.
        size: Of the cube, voxels.
        step: Voxels of ``whole`` a voxel of the cube.
        rng: Draws place, stretch, shear and bending.
    """
    matrix = step * (np.eye(3) + rng.normal(0, 0.12, (3, 3)))
    center = [rng.uniform(0.15, 0.85) * n for n in whole.shape]
    ways = [np.arange(n, dtype=np.float32) - (n - 1) / 2 for n in size]
    index = []
    bends = torch.from_numpy(rng.normal(0, 1.6 * step, (1, 3, 4, 4, 4)).astype(np.float32))
    bent = torch.nn.functional.interpolate(
        bends, size=tuple(size), mode="trilinear", align_corners=True
    )[0].numpy()
    for axis in range(3):
        x, y, z = (matrix[axis, k] * ways[k] for k in range(3))
        place = center[axis] + x[:, None, None] + y[None, :, None] + z[None, None, :] + bent[axis]
        index.append(np.clip(np.rint(place), 0, whole.shape[axis] - 1).astype(np.intp))
    low = [int(i.min()) for i in index]
    high = [int(i.max()) + 1 for i in index]
    box = np.asarray(whole[tuple(slice(a, b) for a, b in zip(low, high, strict=True))])
    cube: np.ndarray = box[tuple(i - a for i, a in zip(index, low, strict=True))]
    return cube


def paint_shapes(labels: np.ndarray, rng: np.random.Generator) -> None:
    """Paint ellipsoids, shells and tubes of their own labels into a cube, in place."""
    axes = np.meshgrid(*(np.arange(n, dtype=np.float32) for n in labels.shape), indexing="ij")
    places = np.stack(axes, axis=-1)
    for number in range(int(rng.integers(1, MAX_SHAPES + 1))):
        center = rng.uniform(0, labels.shape)
        turned = (places - center.astype(np.float32)) @ rng.normal(0, 1, (3, 3)).astype(np.float32)
        radii = rng.uniform(4, 18, 3).astype(np.float32)
        if rng.random() < 0.3:
            radii[0] *= 5  # a tube
        distance = np.sqrt(np.square(turned / radii).sum(axis=-1))
        inside = distance < 1
        if rng.random() < 0.3:
            inside &= distance > rng.uniform(0.5, 0.85)  # a shell
        labels[inside] = FIRST_SHAPE + number


def label_edges(labels: np.ndarray) -> np.ndarray:
    """Return where a voxel's label differs from the next one's along an axis, (X, Y, Z) bool."""
    edges = np.zeros(labels.shape, bool)
    for axis in range(3):
        low, high = [slice(None)] * 3, [slice(None)] * 3
        low[axis], high[axis] = slice(None, -1), slice(1, None)
        differs = labels[tuple(low)] != labels[tuple(high)]
        edges[tuple(low)] |= differs
        edges[tuple(high)] |= differs
    return edges
