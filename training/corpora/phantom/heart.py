"""The heart with its four chambers, the great vessels and the left atrium's veins.

Body coordinates of ``torso.py``. Chambers touch through their valves, as blood does: nothing in a
scan's intensities tells the left atrium from what it opens into.
"""

import numpy as np

from training.corpora.phantom.shapes import Canvas, Shape, cut, ellipsoid, frame, paint, tube, union
from training.corpora.phantom.tissues import tissue_mask

_LV = np.array([-34.0, 10.0, -16.0])
_APEX = np.array([-0.66, 0.50, -0.56])  # direction from base to apex
_AORTA = (
    (-13, 3, 4), (0, 11, 26), (9, 14, 48), (9, 9, 72), (-3, -12, 90), (-18, -38, 86),
    (-25, -54, 64), (-25, -59, 20), (-23, -57, -60), (-18, -48, -130), (-9, -40, -210),
    (-4, -38, -290), (-4, -38, -420),
)  # fmt: skip
_AORTA_RADII = (14, 15, 15, 14.5, 13.5, 13, 12.5, 12, 11.5, 11, 10, 9, 8.5)
_ARCH_BRANCHES = (
    ((6, 4, 82), (12, 6, 108), (22, 2, 150)),
    ((-4, -12, 92), (-8, -8, 120), (-16, -8, 160)),
    ((-12, -26, 92), (-22, -24, 120), (-34, -16, 150)),
)
_PULMONARY_ARTERY = (
    ((-16, 36, 20), (-20, 26, 42), (-18, 6, 54)),
    ((-18, 6, 54), (-36, -10, 56), (-58, -22, 50)),
    ((-18, 6, 54), (10, -6, 48), (34, -12, 46), (56, -18, 40)),
)
_PULMONARY_RADII = ((13.5, 13, 12), (11, 10, 7), (11, 10, 9, 7))
_SUPERIOR_CAVA = ((30, 4, 16), (28, 8, 44), (26, 10, 84), (32, 10, 150))
_INFERIOR_CAVA = (
    (31, -8, -26), (26, -14, -60), (20, -28, -108), (18, -38, -190), (16, -36, -290),
    (16, -36, -420),
)  # fmt: skip
# Left and right, upper and lower: from inside the atrium to the hilum.
_VEINS = (
    ((-30, -28, 18), (-44, -30, 24), (-62, -28, 34)),
    ((-32, -34, 0), (-44, -40, -4), (-62, -46, -14)),
    ((12, -26, 20), (28, -26, 24), (54, -24, 32)),
    ((12, -34, 0), (28, -38, -4), (56, -44, -16)),
)
CHAMBERS = ("left_ventricle", "right_ventricle", "left_atrium", "right_atrium")


def heart_hull() -> Shape:
    """The heart with its wall, for the lungs and the pericardial fat."""
    return union([*_chambers(np.random.default_rng(0), 0.0).values()], 14)


def paint_heart(canvas: Canvas, rng: np.random.Generator) -> None:
    """Paint pericardial fat, walls, chambers and vessels, chambers varied in size and place."""
    shapes = _chambers(rng, 1.0)
    lv, rv, la, ra = (shapes[name] for name in CHAMBERS)
    paint(canvas, union([lv, rv, la, ra], 14), "fat", grow=rng.uniform(6, 11))
    for chamber, wall_mm in ((ra, 2.2), (la, 2.2), (rv, 3.5)):
        paint(canvas, chamber, "heart_wall", grow=wall_mm)
    base = _LV - 21 * _APEX
    wall_mm = rng.uniform(7.5, 11)
    paint(canvas, cut(_grown(lv, wall_mm), base, -_APEX), "myocardium")
    chambers_over = ~tissue_mask("myocardium")
    paint(canvas, rv, "right_ventricle", over=chambers_over)
    paint(canvas, ra, "right_atrium", over=chambers_over)
    paint(canvas, la, "left_atrium", over=chambers_over)
    _paint_atrial_veins(canvas, rng)
    paint(canvas, lv, "left_ventricle")
    paint_great_vessels(canvas, rng)


def paint_great_vessels(canvas: Canvas, rng: np.random.Generator) -> None:
    """Paint aorta, pulmonary artery and the two caval veins with their walls."""
    size = rng.uniform(0.88, 1.15)
    atria = ~tissue_mask(*CHAMBERS)
    _paint_vessel(canvas, _PULMONARY_ARTERY[0], _scaled(_PULMONARY_RADII[0], size),
                  "pulmonary_artery", atria | tissue_mask("right_ventricle"))  # fmt: skip
    for points, radii in zip(_PULMONARY_ARTERY[1:], _PULMONARY_RADII[1:], strict=True):
        _paint_vessel(canvas, points, _scaled(radii, size), "pulmonary_artery", atria)
    _paint_vessel(canvas, _SUPERIOR_CAVA, (10, 9, 8.5, 7), "vein", atria)
    _paint_vessel(canvas, _INFERIOR_CAVA, (11, 11, 11, 10.5, 9.5, 8), "vein", atria)
    _paint_vessel(canvas, _AORTA, _scaled(_AORTA_RADII, size), "aorta", None)
    for branch in _ARCH_BRANCHES:
        _paint_vessel(canvas, branch, (5.5, 4.5, 4), "aorta", None)


def _chambers(rng: np.random.Generator, spread: float) -> dict[str, Shape]:
    """Four chambers; ``spread`` 0 gives the average heart."""

    def place(center: np.ndarray | tuple, sd: float) -> np.ndarray:
        return np.asarray(center) + spread * rng.normal(0, sd, 3)

    def size(radii: tuple, sd: float) -> np.ndarray:
        return np.asarray(radii) * np.exp(spread * rng.normal(0, sd, 3))

    base = _LV - 21 * _APEX
    lv = cut(ellipsoid(_LV, size((41, 22, 22), 0.07), frame(_APEX)), base, -_APEX)
    rv_axis = np.array([-0.78, 0.38, -0.50])
    rv = union(
        [
            ellipsoid(place((-2, 33, -22), 1.5), size((43, 22, 27), 0.08), frame(rv_axis)),
            *tube([(-4, 36, -8), (-16, 36, 20)], [17, 13]),
        ],
        8,
    )
    la_center = place((-9, -27, 8), 2)
    la = union(
        [
            ellipsoid(la_center, size((29, 17, 22), 0.10)),
            ellipsoid(la_center + np.array([-4, 10, -9]), size((19, 13, 15), 0.10)),
            *tube([(-34, -14, 14), (-46, 4, 18), (-48, 16, 14)], [9, 8, 4.5]),
        ],
        7,
    )
    ra = union(
        [
            ellipsoid(place((33, 1, -3), 2), size((20, 23, 29), 0.09)),
            *tube([(30, 14, 8), (20, 28, 18)], [10, 5]),
        ],
        8,
    )
    return dict(zip(CHAMBERS, (lv, rv, la, ra), strict=True))


def _grown(shape: Shape, by_mm: float) -> Shape:
    return Shape(
        shape.low - by_mm, shape.high + by_mm, lambda points: shape.distance(points) - by_mm
    )


def _paint_atrial_veins(canvas: Canvas, rng: np.random.Generator) -> None:
    """Pulmonary veins; their first part counts as atrium, as experts label it."""
    over = ~tissue_mask("myocardium", "right_atrium", "left_atrium")
    for points in _VEINS:
        radius = rng.uniform(5, 7.5)
        start, ostium, hilum = (np.array(p) + rng.normal(0, 1.5, 3) for p in points)
        for part in tube([ostium, hilum], [radius, radius * 0.8]):
            paint(canvas, part, "pulmonary_vein", over=over)
        split = start + (ostium - start) * rng.uniform(0.5, 1.0)
        for part in tube([start, split], [radius * 1.2, radius]):
            paint(canvas, part, "left_atrium", over=over)


def _paint_vessel(
    canvas: Canvas, points: tuple, radii: tuple, tissue: str, over: np.ndarray | None
) -> None:
    blood = ~tissue_mask(*CHAMBERS, "aorta", "pulmonary_artery", "vein", "myocardium")
    parts = tube(points, radii)
    for part in parts:
        paint(canvas, part, "vessel_wall", grow=1.6, over=blood)
    for part in parts:
        paint(canvas, part, tissue, over=over)


def _scaled(values: tuple, factor: float) -> tuple:
    return tuple(value * factor for value in values)
