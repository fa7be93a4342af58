"""The trunk's frame: skin, fat, muscle, the cavity with its diaphragm, spine, ribs and sternum.

Body coordinates: RAS+ mm; z = 0 at the middle of the heart, x = 0 on the midline, spine at y < 0.
All lengths are those of an average adult; subjects differ by the canvas' stretch and displacement.
"""

from typing import NamedTuple

import numpy as np

from training.corpora.phantom.deform import smooth_noise
from training.corpora.phantom.shapes import (
    Canvas,
    Shape,
    cylinder,
    ellipsoid,
    paint,
    segment,
    tube,
)
from training.corpora.phantom.tissues import TISSUES, tissue_mask

# Inside of the rib cage and of the abdominal wall: half width, half depth, center y by height z.
_CAVITY_Z = (-420, -330, -240, -180, -120, -50, 0, 50, 90, 120, 142, 155)
_CAVITY_A = (120, 122, 112, 116, 124, 130, 126, 112, 90, 64, 34, 8)
_CAVITY_B = (72, 74, 74, 77, 82, 85, 82, 72, 58, 42, 24, 6)
_CAVITY_Y = (-8, -4, -2, -2, -4, -5, -7, -11, -16, -20, -24, -26)
# Outer surface of the muscles.
_WALL_Z = (-420, -330, -240, -170, -100, 0, 80, 130, 170, 210)
_WALL_A = (150, 146, 132, 137, 148, 152, 150, 140, 112, 70)
_WALL_B = (104, 104, 100, 104, 110, 112, 106, 96, 84, 66)
_WALL_Y = -13.0

_VERTEBRA_PITCH = 26.0  # mm
_RIB_PITCH = 24.0  # mm
_NUM_RIBS = 12


class TorsoFields(NamedTuple):
    """Fields over the grid that several organs share, (X, Y, Z) float32 in mm."""

    cavity: np.ndarray  # distance to the inside of the ribs and the abdominal wall
    above_diaphragm: np.ndarray  # height above the diaphragm


def paint_torso(canvas: Canvas, fat_mm: float, rng: np.random.Generator) -> TorsoFields:
    """Paint skin, fat, muscle, cavity fat and the skeleton.

    Args:
        canvas: Changed in place.
        fat_mm: Mean thickness of the fat under the skin.
        rng: Draws fat thickness, fat between the muscles, and shapes of the bones.
    """
    x, y, z = canvas.places
    wall = _radial_distance(x, y - _WALL_Y, z, (_WALL_Z, _WALL_A, _WALL_B), exponent=2.5)
    center_y = np.interp(z, _CAVITY_Z, _CAVITY_Y).astype(np.float32)
    cavity = _radial_distance(x, y - center_y, z, (_CAVITY_Z, _CAVITY_A, _CAVITY_B), exponent=2.2)
    above = z - _diaphragm_height(x, y, rng)
    # More fat in front of the belly than over the ribs and the back.
    belly = np.clip(-z / 200, 0, 1) * np.clip(y / 100, 0, 1)
    fat = fat_mm * (0.8 + 0.9 * belly + 0.15 * smooth_noise(canvas.grid, 70, rng))
    layers = np.abs(smooth_noise(canvas.grid, 22, rng)) < 0.012 * np.clip(fat_mm, 5, 30)
    labels = canvas.labels
    labels[wall < fat + 2] = TISSUES["skin"]
    labels[wall < fat] = TISSUES["fat"]
    labels[wall < 0] = TISSUES["muscle"]
    labels[(wall < -5) & (cavity > 6) & layers] = TISSUES["fat"]
    labels[(cavity < 0) & (above < 0)] = TISSUES["visceral_fat"]
    labels[(cavity < 0) & (above >= 0)] = TISSUES["fat"]
    labels[(cavity < 2) & (np.abs(above) < 1.8)] = TISSUES["muscle"]
    _paint_ribs(canvas, rng)
    _paint_shoulders(canvas)
    return TorsoFields(cavity, above)


def paint_spine(canvas: Canvas, rng: np.random.Generator) -> None:
    """Paint vertebrae, discs, canal and cord, and the muscles beside the lumbar spine."""
    over_all_but_body = ~tissue_mask("air", "skin")
    for side in (-1, 1):
        for part in tube([(side * 22, -66, -130), (side * 36, -62, -230), (side * 52, -40, -420)],
                         [9, 22, 24]):  # fmt: skip
            paint(canvas, part, "muscle", over=over_all_but_body)
    shift = rng.uniform(0, _VERTEBRA_PITCH)
    for k in range(-5, 22):
        z = 150 - _VERTEBRA_PITCH * k + shift
        y = float(np.interp(z, (-420, -230, -120, 0, 90, 160), (-66, -58, -68, -76, -72, -60)))
        size = float(np.interp(z, (-300, 0, 150), (1.2, 1.0, 0.8)))
        _paint_vertebra(canvas, np.array([0, y, z]), size, over_all_but_body)


def spine_hull() -> Shape:
    """The column of vertebral bodies with the tissue around it, for organs to keep away from."""
    return cylinder((0, -88, -140), 27, 40, 340)


def _paint_vertebra(canvas: Canvas, center: np.ndarray, size: float, over: np.ndarray) -> None:
    x, y, z = center
    rx, ry = 20 * size, 15.5 * size
    paint(canvas, cylinder(center, rx, ry, 13.5), "cartilage", over=over)
    solids = [
        cylinder(center, rx, ry, 10.5),
        cylinder((x, y - 26 * size, z), 13 * size, 12.5 * size, 8),
        segment((x, y - 36 * size, z - 4), (x, y - 52 * size, z - 14), 4.5, 4),
    ]
    for side in (-1, 1):
        root = (x + side * 11 * size, y - 24 * size, z)
        solids.append(segment(root, (x + side * 32 * size, y - 32 * size, z), 5.5, 4.5))
    for solid in solids:
        paint(canvas, solid, "cortical_bone", over=over)
    for solid in solids:
        paint(canvas, solid, "marrow", grow=-1.8, over=over)
    canal = cylinder((x, y - 25 * size, z), 9.5 * size, 8 * size, 13.5)
    paint(canvas, canal, "csf", over=over)
    paint(canvas, canal, "spinal_cord", grow=-3, over=over)


def _paint_ribs(canvas: Canvas, rng: np.random.Generator) -> None:
    over = ~tissue_mask("air", "skin")
    tilt = rng.uniform(48, 66)
    for k in range(_NUM_RIBS):
        z_back = 128 - _RIB_PITCH * k
        last = 2.75 if k < 7 else 2.75 - 0.32 * (k - 6)
        angles = np.linspace(0.22, last, 15)
        drop = tilt * (0.5 - 0.5 * np.cos(angles * np.pi / 2.9)) * min(1.0, 0.35 + 0.13 * k)
        for side in (-1, 1):
            points = [_on_cage(side * a, z_back - d) for a, d in zip(angles, drop, strict=True)]
            bone = points if k >= 10 else points[:-2]
            radius = 5.2 if k else 4.5
            parts = tube(bone, [radius] * len(bone))
            for part in parts:
                paint(canvas, part, "cortical_bone", over=over)
            for part in parts:
                paint(canvas, part, "marrow", grow=-1.7, over=over)
            if k < 7:
                end = np.array([side * 12, _on_cage(np.pi, points[-1][2])[1], points[-1][2] + 14])
                for part in tube([*points[-3:], end], [4.5, 4.5, 4.5, 4]):
                    paint(canvas, part, "cartilage", over=tissue_mask("muscle", "fat"))
    plates = [
        ellipsoid(_on_cage(np.pi, z), (17 if z > 55 else 13, 5.5, 9)) for z in range(75, -75, -10)
    ]
    for plate in plates:
        paint(canvas, plate, "cortical_bone", over=over)
    for plate in plates:
        paint(canvas, plate, "marrow", grow=-1.8, over=over)


def _on_cage(angle: float, z: float) -> np.ndarray:
    """Point on the rib cage, 5 mm outside the cavity; angle 0 is at the back, pi in front."""
    a = np.interp(z, _CAVITY_Z, _CAVITY_A) + 6
    b = np.interp(z, _CAVITY_Z, _CAVITY_B) + 6
    y = np.interp(z, _CAVITY_Z, _CAVITY_Y)
    return np.array([a * np.sin(angle), y - b * np.cos(angle), z])


def _paint_shoulders(canvas: Canvas) -> None:
    over = tissue_mask("muscle", "fat")
    for side in (-1, 1):
        blade = ellipsoid((side * 92, -92, 75), (42, 4, 62), _turn_z(side * 0.45))
        clavicle = tube(
            [(side * 18, 62, 92), (side * 75, 42, 122), (side * 130, 5, 132)], [7, 6, 7]
        )
        for part in (blade, *clavicle):
            paint(canvas, part, "cortical_bone", over=over)
        for part in (blade, *clavicle):
            paint(canvas, part, "marrow", grow=-1.6, over=tissue_mask("cortical_bone"))


def _turn_z(angle: float) -> np.ndarray:
    c, s = np.cos(angle), np.sin(angle)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def _radial_distance(
    x: np.ndarray, y: np.ndarray, z: np.ndarray, profile: tuple, *, exponent: float
) -> np.ndarray:
    """Distance in the axial plane to a superellipse whose half axes follow a profile over z."""
    heights, half_width, half_depth = profile
    a = np.interp(z, heights, half_width).astype(np.float32)
    b = np.interp(z, heights, half_depth).astype(np.float32)
    power = np.float32(exponent)
    unit = ((np.abs(x) / a) ** power + (np.abs(y) / b) ** power) ** (1 / power)
    return (1 - 1 / np.maximum(unit, np.float32(1e-3))) * np.hypot(x, y)


def _diaphragm_height(x: np.ndarray, y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Height z of the diaphragm over each (x, y): a right, a left and a central dome."""
    breath = rng.normal(0, 7)
    behind = np.where(y < 5, np.float32(1), np.float32(0.4)) * (y - 5) ** 2
    right = -40 - 0.0145 * ((x - 66) ** 2 + behind)
    left = -54 - 0.0150 * ((x + 66) ** 2 + behind)
    middle = -56 - 0.0045 * ((x + 12) ** 2 + (y - 32) ** 2)
    return np.maximum(np.maximum(right, left), middle) + np.float32(breath)
