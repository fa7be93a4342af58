"""Lungs with airways and vessel trees, and the nodules in them.

Body coordinates of ``torso.py``.
"""

from typing import NamedTuple

import numpy as np

from training.corpora.phantom.deform import smooth_noise
from training.corpora.phantom.heart import heart_hull
from training.corpora.phantom.shapes import Canvas, ellipsoid, paint, segment, tube
from training.corpora.phantom.tissues import TISSUES, tissue_mask
from training.corpora.phantom.torso import TorsoFields, spine_hull
from training.corpora.phantom.vessels import grow_trees, paint_trees

_TRACHEA = ((0, -22, 210), (0, -24, 150), (1, -28, 100), (3, -30, 62))
_BRONCHI = (
    ((3, -30, 62), (24, -32, 42), (46, -32, 28), (62, -38, 0), (72, -48, -40)),
    ((3, -30, 62), (-20, -34, 44), (-46, -36, 30), (-62, -40, 0), (-72, -50, -40)),
)
_HILA = ((46.0, -20.0, 34.0), (-46.0, -24.0, 38.0))
# Directions in which the lobes lie from the hilum.
_LOBES = ((0.5, 0.1, 0.9), (0.8, 0.6, 0.1), (0.6, -0.5, -0.5), (0.5, 0.3, -0.9), (0.3, -0.8, 0.3))


class Nodule(NamedTuple):
    """A nodule as drawn: where it lies in the world and how wide it is."""

    center: tuple[float, float, float]  # RAS+ mm
    diameter: float  # mm
    kind: str  # solid, ground_glass, pleural, vascular


def paint_lungs(canvas: Canvas, fields: TorsoFields, rng: np.random.Generator) -> None:
    """Paint both lungs into the chest cavity, then airways and vessel trees.

    To be painted before the heart, which comes to lie between them.
    """
    x, y, _ = canvas.places
    half_mm = np.interp(y, (-80, -45, -20, 25, 52, 80), (22, 23, 27, 26, 9, 4)).astype(np.float32)
    half_mm += 3.0 * smooth_noise(canvas.grid, 20, rng)
    beside = np.abs(x - 2) - half_mm
    inside = (fields.cavity < -2.5) & (fields.above_diaphragm > 2.5) & (beside > 0)
    canvas.labels[inside] = TISSUES["lung"]
    paint(canvas, heart_hull(), "fat", grow=6, over=tissue_mask("lung"))
    paint(canvas, spine_hull(), "muscle", grow=-2, over=tissue_mask("lung", "fat"))
    _paint_esophagus(canvas)
    _paint_airways(canvas, rng)
    start = np.repeat(_HILA, 3 * len(_LOBES), axis=0)
    sides = np.sign(start[:, :1])
    direction = np.tile(np.repeat(_LOBES, 3, axis=0), (2, 1))
    direction[:, :1] *= sides
    trees = grow_trees(
        start + rng.normal(0, 5, start.shape),
        direction + rng.normal(0, 0.3, start.shape),
        rng.uniform(3.6, 5.2, len(start)),
        rng,
    )
    paint_trees(canvas, trees, "lung_vessel", "lung")


def paint_nodules(canvas: Canvas, num_nodules: int, rng: np.random.Generator) -> list[Nodule]:
    """Paint nodules of several kinds into the lungs; return those that found a place.

    Args:
        canvas: Changed in place.
        num_nodules: How many to try.
        rng: Draws kinds, sizes and places.

    Returns:
        Centers are the centers of mass of the painted voxels.
    """
    wobble = smooth_noise(canvas.grid, 5, rng)
    nodules = []
    for _ in range(num_nodules):
        kind = str(rng.choice(["solid", "ground_glass", "pleural", "vascular"]))
        smallest = 1.1 * max(canvas.grid.spacing)
        radius = max(smallest, float(rng.gamma(3.0, 1.3)) + 1.8)
        seed = _place_for(canvas, kind, rng)
        if seed is None:
            continue
        axes, elongation = rng.normal(0, 1, 3), rng.uniform(0.8, 1.25, 3)
        shape = ellipsoid(seed, radius * elongation, _rotation(axes))
        tissue = "ground_glass" if kind == "ground_glass" else "nodule"
        before = canvas.labels.copy()
        paint(canvas, shape, tissue, over=tissue_mask("lung", "lung_vessel"),
              wobble=wobble * np.float32(0.18 * radius))  # fmt: skip
        painted = np.argwhere(canvas.labels != before)
        if len(painted) == 0:
            continue
        center = canvas.grid.affine[:3, :3] @ painted.mean(axis=0) + canvas.grid.affine[:3, 3]
        volume = len(painted) * float(np.prod(canvas.grid.spacing))
        diameter = 2 * (3 * volume / (4 * np.pi)) ** (1 / 3)
        x, y, z = (float(c) for c in center)
        nodules.append(Nodule((x, y, z), diameter, kind))
    return nodules


def _place_for(canvas: Canvas, kind: str, rng: np.random.Generator) -> np.ndarray | None:
    """A random place for a nodule, (3,) mm in the body: in the lung, near its edge, on a vessel."""
    labels = canvas.labels
    wanted = labels == TISSUES["lung_vessel" if kind == "vascular" else "lung"]
    if kind == "pleural":
        steps = [max(1, round(4 / s)) for s in canvas.grid.spacing]
        chest = tissue_mask("muscle", "cortical_bone", "marrow", "fat")[labels]
        near = np.zeros_like(wanted)
        for axis in range(3):
            near |= np.roll(chest, steps[axis], axis) | np.roll(chest, -steps[axis], axis)
        wanted &= near
    voxels = np.flatnonzero(wanted)
    if len(voxels) == 0:
        return None
    i, j, k = np.unravel_index(int(rng.choice(voxels)), labels.shape)
    return canvas.places[:, i, j, k]


def _rotation(seed: np.ndarray) -> np.ndarray:
    first = seed / np.linalg.norm(seed)
    second = np.cross(first, [0.3, 0.5, 0.8])
    second /= np.linalg.norm(second)
    return np.stack([first, second, np.cross(first, second)], axis=1)


def _paint_esophagus(canvas: Canvas) -> None:
    points = [(0, -44, 170), (-2, -46, 80), (-6, -52, 10), (-14, -44, -50), (-22, -26, -76)]
    for part in tube(points, [7, 7, 7.5, 7.5, 8]):
        paint(canvas, part, "esophagus", over=tissue_mask("fat", "lung", "muscle", "visceral_fat"))
    paint(canvas, segment((0, -44, 150), (-4, -50, 40), 1.5, 1.5), "gas")


def _paint_airways(canvas: Canvas, rng: np.random.Generator) -> None:
    over = ~tissue_mask("air", "skin", "cortical_bone", "marrow")
    width = rng.uniform(0.85, 1.15)
    main = [tube(_TRACHEA, [8.5 * width] * 4)]
    main += [tube(line, [7 * width, 6 * width, 4.5, 3.2, 1.8]) for line in _BRONCHI]
    for hilum, lobes in zip(_HILA, (_LOBES[:4], _LOBES[:4]), strict=True):
        for lobe in lobes:
            heading = np.array(lobe) * (np.sign(hilum[0]), 1, 1)
            tip = np.array(hilum) + 48 * heading + rng.normal(0, 6, 3)
            main.append(tube([np.array(hilum) - (0, 10, 4), tip], [3.2, 1.5]))
    for parts in main:
        for part in parts:
            paint(canvas, part, "airway_wall", grow=1.5, over=over)
    for parts in main:
        for part in parts:
            paint(canvas, part, "airway", over=over)
