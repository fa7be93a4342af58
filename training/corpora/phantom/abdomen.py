"""The abdomen: liver with vessels and lesions, spleen, kidneys, stomach, bowel.

Body coordinates of ``torso.py``. Organs fill the visceral fat and take nothing from each other
unless painted later.
"""

import numpy as np

from training.corpora.phantom.deform import smooth_noise
from training.corpora.phantom.shapes import Canvas, Shape, ellipsoid, frame, paint, tube, union
from training.corpora.phantom.tissues import TISSUES, tissue_mask
from training.corpora.phantom.vessels import grow_trees, paint_trees

_ROOM = tissue_mask("visceral_fat")
# Where the portal vein enters and the hepatic veins leave, and where their branches lead.
_LIVER_ROOTS = ((34.0, -4.0, -118.0), (26.0, -16.0, -66.0))
_LIVER_BRANCHES = (
    (0.9, 0.3, 0.2), (0.6, -0.5, 0.4), (-0.7, 0.6, 0.3), (0.7, 0.1, -0.5),
    (0.8, 0.4, -0.3), (0.2, 0.9, -0.2), (-0.6, 0.7, -0.1),
)  # fmt: skip


def paint_abdomen(canvas: Canvas, rng: np.random.Generator) -> None:
    """Paint the abdominal organs below the diaphragm."""
    wobble = 3.0 * smooth_noise(canvas.grid, 22, rng)
    _paint_kidneys(canvas, rng)
    _paint_liver(canvas, wobble, rng)
    spleen_size = np.array([26, 42, 46]) * rng.uniform(0.85, 1.2)
    spleen = ellipsoid((-98, -36, -112), spleen_size, frame((0.9, 0.35, 0.25)))
    paint(canvas, spleen, "spleen", over=_ROOM, wobble=wobble)
    for part in tube([(8, 2, -158), (-24, 0, -146), (-62, -22, -136)], [12, 9, 8]):
        paint(canvas, part, "pancreas", over=_ROOM, wobble=wobble * np.float32(0.7))
    _paint_stomach(canvas, rng)
    _paint_bowel(canvas, rng)


def paint_liver_lesions(canvas: Canvas, num_lesions: int, rng: np.random.Generator) -> int:
    """Paint lesions of uneven shape into the liver; return how many found a place."""
    wobble = smooth_noise(canvas.grid, 7, rng)
    inside = tissue_mask("liver", "liver_vessel", "liver_lesion")
    painted = 0
    for _ in range(num_lesions):
        voxels = np.flatnonzero(canvas.labels == TISSUES["liver"])
        if len(voxels) == 0:
            break
        i, j, k = np.unravel_index(int(rng.choice(voxels)), canvas.labels.shape)
        radius = float(np.clip(rng.gamma(2.5, 4.5), 1.2 * max(canvas.grid.spacing), 32))
        shape = ellipsoid(
            canvas.places[:, i, j, k],
            radius * rng.uniform(0.75, 1.25, 3),
            frame(rng.normal(0, 1, 3)),
        )
        paint(canvas, shape, "liver_lesion", over=inside,
              wobble=wobble * np.float32(0.22 * radius))  # fmt: skip
        painted += 1
    return painted


def _paint_liver(canvas: Canvas, wobble: np.ndarray, rng: np.random.Generator) -> None:
    size = rng.uniform(0.92, 1.12)
    right = ellipsoid((66, -4, -104), size * np.array([66, 74, 72]))
    lower = ellipsoid((82, -6, -158), size * np.array([36, 52, 58]))
    left_turn = frame((1, -0.15, 0.18))
    left = ellipsoid((2, 38, -86), np.array([rng.uniform(52, 80), 26, 36]), left_turn)
    liver = union([right, lower, left], 20)
    paint(canvas, liver, "liver", over=_ROOM, wobble=wobble)
    hollow = union(
        [ellipsoid((20, -30, -150), (44, 40, 40)), ellipsoid((30, 28, -168), (30, 40, 36))], 14
    )
    paint(canvas, hollow, "visceral_fat", over=tissue_mask("liver"))
    start = np.repeat(_LIVER_ROOTS, (4, 3), axis=0)
    direction = np.array(_LIVER_BRANCHES) + rng.normal(0, 0.15, start.shape)
    trees = grow_trees(start, direction, np.repeat([6.0, 5.0], (4, 3)), rng)
    paint_trees(canvas, trees, "liver_vessel", "liver")
    gallbladder = tube([(36, 22, -142), (44, 34, -168)], [6, rng.uniform(9, 15)])
    for part in gallbladder:
        paint(canvas, part, "gallbladder", over=tissue_mask("visceral_fat", "liver"))


def _paint_kidneys(canvas: Canvas, rng: np.random.Generator) -> None:
    for side in (-1, 1):
        center = np.array([side * 63, -46, -176 - 7 * side]) + rng.normal(0, 4, 3)
        size = np.array([25, 23, 52]) * rng.uniform(0.88, 1.12)
        turn = frame((0.95, 0.2 * side, 0.12 * side))
        kidney = ellipsoid(center, size, turn)
        over = tissue_mask("visceral_fat", "muscle")
        paint(canvas, kidney, "kidney_cortex", over=over)
        inside = tissue_mask("kidney_cortex", "kidney_medulla")
        for z in np.linspace(-0.6, 0.6, 6):
            for depth in (-0.45, 0.45):
                pyramid = center + np.array([4 * side, depth * size[1], z * size[2]])
                paint(canvas, ellipsoid(pyramid, (9, 6, 6.5)), "kidney_medulla", over=inside)
        sinus = ellipsoid(center - (side * 13, -3, 0), (15, 8, 24))
        paint(canvas, sinus, "visceral_fat", over=inside)
        for part in tube([center - (side * 10, 0, 0), center - (side * 26, -4, 14)], [5, 4]):
            paint(canvas, part, "kidney_medulla", over=tissue_mask("visceral_fat"))


def _paint_stomach(canvas: Canvas, rng: np.random.Generator) -> None:
    width = rng.uniform(0.75, 1.2)
    points = [(-62, -18, -84), (-58, 12, -104), (-40, 36, -136), (-4, 42, -154), (24, 28, -152)]
    radii = np.array([33, 32, 24, 17, 11]) * width
    _paint_hollow(canvas, union(tube(points, list(radii)), 8), "stomach", 4.0,
                  float(rng.uniform(0.1, 0.8)), rng)  # fmt: skip


def _paint_bowel(canvas: Canvas, rng: np.random.Generator) -> None:
    colon = [
        (84, -2, -300), (90, -8, -250), (84, -6, -208), (60, 34, -196), (0, 56, -200),
        (-58, 44, -180), (-94, 0, -156), (-97, -22, -200), (-98, -20, -260), (-90, -10, -330),
    ]  # fmt: skip
    points = [np.array(p) + rng.normal(0, 5, 3) for p in colon]
    radii = rng.uniform(13, 22, len(points))
    _paint_hollow(canvas, union(tube(points, list(radii)), 6), "bowel", 2.2,
                  float(rng.uniform(0.2, 0.9)), rng)  # fmt: skip
    for _ in range(13):
        at = np.array([rng.uniform(-70, 70), rng.uniform(0, 48), rng.uniform(-330, -185)])
        loop = [at]
        for _ in range(5):
            at = at + rng.normal(0, 1, 3) * (34, 24, 24)
            loop.append(np.clip(at, (-84, -12, -350), (84, 60, -180)))
        coils = union(tube(loop, [10.5] * len(loop)), 4)
        _paint_hollow(canvas, coils, "bowel", 2.0, float(rng.uniform(-0.4, 0.3)), rng)


def _paint_hollow(
    canvas: Canvas, shape: Shape, organ: str, wall_mm: float, gas: float, rng: np.random.Generator
) -> None:
    """Paint wall, content, and gas that has risen to the front (patients lie on their back)."""
    paint(canvas, shape, f"{organ}_wall", over=_ROOM)
    wall, content = tissue_mask(f"{organ}_wall"), tissue_mask(f"{organ}_content")
    paint(canvas, shape, f"{organ}_content", grow=-wall_mm, over=wall)
    level = shape.high[1] - (shape.high[1] - shape.low[1]) * 0.5 * gas + rng.normal(0, 2)
    front = Shape(
        np.array([shape.low[0], level, shape.low[2]]),
        shape.high,
        lambda points: np.maximum(level - points[1], shape.distance(points)),
    )
    paint(canvas, front, "gas", grow=-wall_mm - 0.2, over=content)
