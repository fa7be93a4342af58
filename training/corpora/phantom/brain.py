"""Brains: skull, folded cortex, ventricles, deep nuclei; atrophy and tumors.

Coordinates close to MNI space: RAS+ mm, origin at the anterior commissure.
"""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from training.corpora.phantom.deform import Grid, grid_of, smooth_noise
from training.corpora.phantom.shapes import Canvas, Shape, ellipsoid, frame, paint, tube, union
from training.corpora.phantom.tissues import TISSUES, tissue_mask

_CENTER = (0.0, -16.0, 20.0)
_RADII = (66.0, 85.0, 57.0)
BRAIN_TISSUES = (
    "csf", "gray_matter", "white_matter", "deep_nuclei", "hippocampus", "wm_lesion", "edema",
    "tumor_core", "enhancing_tumor",
)  # fmt: skip
_PARENCHYMA = tissue_mask("gray_matter", "white_matter", "deep_nuclei", "hippocampus", "wm_lesion")


class Tumor(NamedTuple):
    """A tumor as drawn, in body mm."""

    center: tuple[float, float, float]
    radius: float
    high_grade: bool


def paint_head(canvas: Canvas, atrophy: float, rng: np.random.Generator) -> None:
    """Paint a head whose brain has lost tissue to the degree of ``atrophy`` (0 none, 1 severe)."""
    cerebrum, cerebellum, stem = _cerebrum(), _cerebellum(), _stem()
    hull = union([ellipsoid((0, -17, 18), (67, 87, 60)), *_temporal_lobes(), cerebellum], 18)
    _paint_outside(canvas, hull, rng)
    paint(canvas, hull, "csf", grow=2.0 + 1.2 * atrophy)
    for part in stem:
        paint(canvas, part, "csf", grow=4, over=tissue_mask("muscle", "marrow", "cortical_bone"))
    _paint_cerebellum(canvas, cerebellum, rng)
    _paint_cortex(canvas, cerebrum, atrophy, rng)
    paint(canvas, ellipsoid((0, 0, -34), (16, 22, 13)), "csf", over=tissue_mask(*BRAIN_TISSUES))
    for part in stem:
        paint(canvas, part, "white_matter")
    _paint_inside(canvas, atrophy, rng)
    _paint_wm_lesions(canvas, atrophy, rng)


def draw_tumor(high_grade: bool, rng: np.random.Generator) -> Tumor:
    """Draw the place and size of a tumor in one hemisphere."""
    side = rng.choice([-1, 1])
    center = (side * rng.uniform(18, 44), rng.uniform(-62, 38), rng.uniform(-8, 50))
    return Tumor(center, float(rng.uniform(13, 25)), high_grade)


def mass_effect(grid: Grid, tumor: Tumor) -> np.ndarray:
    """Displacement of the body's coordinates by a growing tumor, (3, X, Y, Z) float32, in mm."""
    offset = np.stack(
        np.meshgrid(*[grid.axis_mm(a) - tumor.center[a] for a in range(3)], indexing="ij")
    ).astype(np.float32)
    distance = np.sqrt((offset**2).sum(axis=0)) + np.float32(1e-3)
    push = 0.35 * tumor.radius * np.exp(-((distance / (2.2 * tumor.radius)) ** 2))
    return -offset / distance * np.minimum(push, 0.5 * distance)


def paint_tumor(canvas: Canvas, tumor: Tumor, rng: np.random.Generator) -> None:
    """Paint edema, core and enhancing rim; low-grade tumors enhance little or not at all."""
    fine, coarse = smooth_noise(canvas.grid, 5, rng), smooth_noise(canvas.grid, 11, rng)
    core_mm = tumor.radius * (rng.uniform(0.55, 0.8) if tumor.high_grade else rng.uniform(0.6, 0.9))
    wobble = np.float32(0.16 * core_mm) * coarse + np.float32(0.08 * core_mm) * fine
    turn = frame(rng.normal(0, 1, 3))
    core = ellipsoid(tumor.center, core_mm * rng.uniform(0.8, 1.25, 3), turn)
    spread = rng.uniform(6, 16) if tumor.high_grade else rng.uniform(2, 8)
    # Edema follows the white matter and spares cortex and nuclei.
    reach = wobble * np.float32(1.5) + np.float32(0.35 * spread) * coarse
    paint(canvas, core, "edema", grow=spread, over=tissue_mask("white_matter", "wm_lesion"),
          wobble=reach)  # fmt: skip
    paint(canvas, core, "edema", grow=0.25 * spread, over=_PARENCHYMA, wobble=reach)
    tissue_of_brain = tissue_mask(*BRAIN_TISSUES)
    if tumor.high_grade:
        rim = rng.uniform(2.5, 6.0)
        paint(canvas, core, "enhancing_tumor", over=tissue_of_brain, wobble=wobble)
        paint(canvas, core, "tumor_core", grow=-rim, over=tissue_of_brain,
              wobble=wobble + np.float32(1.2) * fine)  # fmt: skip
        return
    paint(canvas, core, "tumor_core", over=tissue_of_brain, wobble=wobble)
    if rng.random() < 0.5:
        nest = ellipsoid(
            np.array(tumor.center) + rng.normal(0, 0.3 * core_mm, 3), [0.4 * core_mm] * 3
        )
        paint(canvas, nest, "enhancing_tumor", over=tissue_mask("tumor_core"),
              wobble=wobble)  # fmt: skip


def _cerebrum() -> Shape:
    return union([ellipsoid(_CENTER, _RADII), *_temporal_lobes()], 10)


def _temporal_lobes() -> list[Shape]:
    return [ellipsoid((side * 40, -14, -18), (22, 42, 21)) for side in (-1, 1)]


def _cerebellum() -> Shape:
    return union([ellipsoid((side * 25, -64, -36), (27, 30, 21)) for side in (-1, 1)], 10)


def _stem() -> list[Shape]:
    return tube([(0, -20, -6), (0, -25, -28), (0, -34, -52), (0, -42, -110)], [15, 15, 10, 7])


def _paint_outside(canvas: Canvas, hull: Shape, rng: np.random.Generator) -> None:
    """Scalp, skull with its marrow, face, eyes and neck."""
    neck = tube([(0, -40, -50), (0, -34, -160)], [52, 55])
    face = ellipsoid((0, 36, -58), (52, 52, 52))
    scalp_mm, skull_mm = rng.uniform(4, 8), rng.uniform(5, 8)
    for part in (face, *neck):
        paint(canvas, part, "fat", grow=3)
        paint(canvas, part, "muscle", grow=-3)
    paint(canvas, hull, "skin", grow=4 + skull_mm + scalp_mm)
    paint(canvas, hull, "fat", grow=2.5 + skull_mm + scalp_mm)
    paint(canvas, hull, "cortical_bone", grow=4 + skull_mm)
    wobble = 0.8 * smooth_noise(canvas.grid, 14, rng)
    paint(canvas, hull, "marrow", grow=2.4 + skull_mm, wobble=wobble)
    paint(canvas, hull, "cortical_bone", grow=4.8)
    for side in (-1, 1):
        paint(canvas, ellipsoid((side * 32, 56, -34), (15, 19, 15)), "fat")
        paint(canvas, ellipsoid((side * 32, 62, -34), (12.5, 12.5, 12.5)), "eye")
        paint(canvas, ellipsoid((side * 24, 46, -66), (15, 18, 17)), "gas")
        paint(canvas, ellipsoid((side * 7, 58, -60), (4, 24, 20)), "gas")


def _paint_cerebellum(canvas: Canvas, cerebellum: Shape, rng: np.random.Generator) -> None:
    """Cerebellum with its leaves: thin sheets of CSF between gray matter, around a white core."""
    paint(canvas, cerebellum, "gray_matter")
    x, y, z = canvas.places
    radius = np.sqrt((0.4 * x) ** 2 + (y + 40) ** 2 + (z + 30) ** 2)
    leaves = np.sin(radius * np.float32(2 * np.pi / 7.5) + smooth_noise(canvas.grid, 16, rng))
    paint(canvas, cerebellum, "white_matter", grow=-3, over=tissue_mask("gray_matter"),
          wobble=2.4 * leaves - 2.4)  # fmt: skip
    crevices = np.where(leaves < -0.8, np.float32(0), np.float32(-60))
    paint(canvas, cerebellum, "csf", over=tissue_mask("gray_matter"), wobble=crevices)
    for side in (-1, 1):
        paint(canvas, ellipsoid((side * 17, -56, -35), (13, 12, 9)), "white_matter")


def _paint_cortex(
    canvas: Canvas, cerebrum: Shape, atrophy: float, rng: np.random.Generator
) -> None:
    """White matter under a ribbon of gray matter that follows sulci down from the surface.

    Sulci are where a smooth random field crosses zero: sheets that meet the surface at right
    angles, since the field hardly changes along the radius.
    """
    spacing = canvas.grid.spacing
    depth = -cerebrum.distance(canvas.places)
    field = _radial_noise(canvas.places, 5.6, rng)
    slopes = np.gradient(field, *spacing)
    slope = np.sqrt(sum(s * s for s in slopes) + np.float32(0.02**2))
    sheet = np.abs(field) / slope  # about the distance to the nearest sulcus, in mm
    x, y, z = canvas.places
    fissure = np.abs(x) + np.where(_below_callosum(y, z), np.float32(50), np.float32(0))
    floor_mm = 20 + 4 * smooth_noise(canvas.grid, 25, rng)
    taper = np.sqrt(np.clip(1 - (np.clip(depth, 0, None) / floor_mm) ** 2, 0, None))
    gray_mm = rng.uniform(2.7, 3.3) - 0.7 * atrophy
    gap_mm = rng.uniform(0.35, 0.7) + 1.3 * atrophy
    inside = depth > 0
    sulcus = (sheet < gap_mm * taper) | (fissure < 1.0 + 0.8 * atrophy)
    ribbon = (
        (depth < gray_mm)
        | (sheet < (gap_mm + gray_mm) * taper)
        | (fissure < 1.0 + 0.8 * atrophy + gray_mm)
    )
    labels = canvas.labels
    labels[inside] = TISSUES["white_matter"]
    labels[inside & ribbon] = TISSUES["gray_matter"]
    labels[inside & sulcus] = TISSUES["csf"]
    gap = 1.5 + 2.0 * atrophy
    for side in (-1, 1):
        sylvian = ellipsoid((side * 47, -6, 2), (15, 32, gap), frame((1, 0, 0.15 * side)))
        brain = tissue_mask("white_matter", "gray_matter")
        paint(canvas, sylvian, "gray_matter", grow=gray_mm, over=brain)
        paint(canvas, sylvian, "csf", over=tissue_mask("white_matter", "gray_matter"))


def _radial_noise(places: np.ndarray, knot_mm: float, rng: np.random.Generator) -> np.ndarray:
    """Noise that varies over the cerebrum's surface and little along its radius."""
    offset = places - np.array(_CENTER, np.float32).reshape(3, 1, 1, 1)
    unit = np.sqrt(sum((offset[a] / np.float32(_RADII[a])) ** 2 for a in range(3)))
    offset *= np.maximum(unit, np.float32(0.05)) ** np.float32(-0.7)
    table_mm = 2.5
    table = grid_of((0, 0, 0), (240.0, 240.0, 240.0), (table_mm,) * 3)
    noise = smooth_noise(table, knot_mm, rng)
    index = (offset - np.float32(table.origin[0])) / np.float32(table_mm)
    return ndimage.map_coordinates(noise, index, order=1, mode="nearest")


def _below_callosum(y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Where the hemispheres are joined: below the arch of the corpus callosum."""
    arch = 29 - ((y + 8) / 44) ** 2 * 22
    return (z < arch) & (y > -46) & (y < 36)


def _paint_inside(canvas: Canvas, atrophy: float, rng: np.random.Generator) -> None:
    """Corpus callosum, ventricles, nuclei and hippocampi."""
    wide = (0.75 + 1.0 * atrophy) * rng.uniform(0.8, 1.25)
    sideways = np.array([16, 0, 0])
    callosum = tube([(0, 32, 4), (0, 22, 20), (0, -5, 28), (0, -30, 24), (0, -40, 12)],
                    [4.5, 4, 3.5, 4, 5.5])  # fmt: skip
    for side in (-1, 1):
        for part in callosum:
            shifted = Shape(part.low - sideways, part.high + sideways, _flattened(part))
            paint(canvas, shifted, "white_matter")
        paint(canvas, ellipsoid((side * 27, 2, 2), (6.5, 17, 11)), "deep_nuclei")
        paint(canvas, ellipsoid((side * 19, -4, 0), (4.5, 9, 7)), "white_matter")
        paint(canvas, ellipsoid((side * 11, -19, 8), (9, 14, 9)), "deep_nuclei")
        for part in tube(
            [(side * 14, 18, 4), (side * 18, -2, 20), (side * 23, -24, 18)], [7, 4, 2]
        ):
            paint(canvas, part, "deep_nuclei")
        _paint_hippocampus(canvas, side, atrophy, rng)
        horn = [(side * 7, 32, 4), (side * 9, 16, 14), (side * 11, -8, 22), (side * 19, -32, 20),
                (side * 28, -42, 8)]  # fmt: skip
        for part in tube(horn, list(wide * np.array([3.5, 5.5, 5, 6, 6.5]))):
            paint(canvas, part, "csf")
        for part in tube([horn[-1], (side * 27, -66, 8)], [5.5 * wide, 2]):
            paint(canvas, part, "csf")
    paint(canvas, ellipsoid((0, -16, 2), (1.6 * wide + 0.4, 15, 11)), "csf")
    for part in tube([(0, -30, -4), (0, -40, -22)], [1.6, 2]):
        paint(canvas, part, "csf")
    paint(canvas, ellipsoid((0, -45, -32), (8 * wide**0.5, 6, 8)), "csf")


def _flattened(part: Shape):
    """Distance to a part widened by 16 mm to both sides."""

    def distance(points: np.ndarray) -> np.ndarray:
        moved = points.copy()
        moved[0] = np.sign(moved[0]) * np.maximum(np.abs(moved[0]) - 16, 0)
        return part.distance(moved)

    return distance


def _paint_hippocampus(canvas: Canvas, side: int, atrophy: float, rng: np.random.Generator) -> None:
    size = (1.08 - 0.40 * atrophy) * rng.uniform(0.93, 1.07)
    line = [(side * 24, -8, -20), (side * 28, -20, -16), (side * 27, -34, -6)]
    horn = [(side * 31, -10, -16), (side * 35, -24, -12), (side * 32, -38, -2)]
    for part in tube(line, [9, 8.5, 7]):
        paint(canvas, part, "white_matter", over=tissue_mask("gray_matter", "csf"))
    for part in tube(horn, [1.2 + 3.2 * atrophy] * 3):
        paint(canvas, part, "csf")
    for part in tube(line, [size * r for r in (6.5, 5.5, 4)]):
        paint(canvas, part, "hippocampus")


def _paint_wm_lesions(canvas: Canvas, atrophy: float, rng: np.random.Generator) -> None:
    """Age-related lesions of the white matter, most of them beside the ventricles."""
    over = tissue_mask("white_matter")
    wobble = 1.2 * smooth_noise(canvas.grid, 5, rng)
    for _ in range(rng.poisson(5 + 8 * atrophy)):
        side = rng.choice([-1, 1])
        y = rng.uniform(-60, 42)
        x = side * (rng.uniform(12, 24) + 0.2 * abs(y))
        spot = ellipsoid((x, y, rng.uniform(8, 34)), rng.uniform(1.5, 5.5, 3))
        paint(canvas, spot, "wm_lesion", over=over, wobble=wobble)
