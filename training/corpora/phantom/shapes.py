"""Implicit shapes and the canvas they are painted on.

A shape is a signed distance (approximate, in mm, negative inside) with its bounding box in the
body's own coordinates. The canvas knows for every voxel where in that body it lies, so one
deformation of the coordinates deforms everything painted after it.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from training.corpora.phantom.deform import Grid
from training.corpora.phantom.tissues import TISSUES

Point = Sequence[float] | np.ndarray


class Shape(NamedTuple):
    """A solid: bounds in mm and the distance to its surface."""

    low: np.ndarray  # (3,) mm
    high: np.ndarray  # (3,) mm
    distance: Callable[[np.ndarray], np.ndarray]  # (3, ...) mm -> (...) mm


class Canvas(NamedTuple):
    """Label map in the making. ``paint`` writes into ``labels``; nothing else does."""

    grid: Grid
    labels: np.ndarray  # (X, Y, Z) uint8
    places: np.ndarray  # (3, X, Y, Z) float32, mm in the undeformed body
    stretch: np.ndarray  # (3,) body mm per world mm
    reach: np.ndarray  # (3,) mm, largest displacement in the body


def new_canvas(grid: Grid, displacement: np.ndarray, stretch: np.ndarray) -> Canvas:
    """Return an empty canvas whose voxels see the body stretched and then displaced.

    Args:
        grid: The voxels.
        displacement: (3, X, Y, Z), in mm of the body.
        stretch: (3,), body mm per world mm: below 1 makes a larger body.
    """
    places = displacement.astype(np.float32, copy=True)
    for axis in range(3):
        shape = [1, 1, 1]
        shape[axis] = -1
        places[axis] += (grid.axis_mm(axis) * np.float32(stretch[axis])).reshape(shape)
    reach = np.abs(displacement).reshape(3, -1).max(axis=1)
    return Canvas(grid, np.zeros(grid.shape, np.uint8), places, stretch, reach)


def paint(
    canvas: Canvas,
    shape: Shape,
    tissue: str,
    *,
    grow: float = 0.0,
    over: np.ndarray | None = None,
    wobble: np.ndarray | None = None,
) -> None:
    """Give a tissue to every voxel inside a shape.

    Args:
        canvas: Changed in place.
        shape: What to paint.
        tissue: Its name.
        grow: How far beyond the surface to paint, in mm.
        over: (256,) boolean table of the label values that may be painted over; default all.
        wobble: (X, Y, Z) in mm, moves the surface outward where positive.
    """
    margin = canvas.reach + grow + (0.0 if wobble is None else float(wobble.max()))
    box = []
    for axis in range(3):
        origin, spacing = canvas.grid.origin[axis], canvas.grid.spacing[axis]
        low = (shape.low[axis] - margin[axis]) / canvas.stretch[axis]
        high = (shape.high[axis] + margin[axis]) / canvas.stretch[axis]
        start = max(0, int(np.ceil((low - origin) / spacing)))
        stop = min(canvas.grid.shape[axis], int(np.floor((high - origin) / spacing)) + 1)
        if stop <= start:
            return
        box.append(slice(start, stop))
    where = box[0], box[1], box[2]
    limit = np.float32(grow) if wobble is None else wobble[where] + np.float32(grow)
    inside = shape.distance(canvas.places[:, where[0], where[1], where[2]]) < limit
    labels = canvas.labels[where]
    if over is not None:
        inside &= over[labels]
    labels[inside] = TISSUES[tissue]


def ellipsoid(center: Point, radii: Point, rotation: np.ndarray | None = None) -> Shape:
    """Ellipsoid; ``rotation`` (3, 3) has its axes as columns."""
    c, r = np.asarray(center, np.float32), np.asarray(radii, np.float32)
    axes = np.eye(3, dtype=np.float32) if rotation is None else rotation.astype(np.float32)
    extent = np.sqrt(((axes * r) ** 2).sum(axis=1))

    def distance(points: np.ndarray) -> np.ndarray:
        q = points - _column(c, points)
        if rotation is not None:
            q = np.stack([_along(axis, q) for axis in axes.T])
        q /= _column(r, points)
        unit = np.sqrt(_along(q, q))
        q /= _column(r, points)
        slope = np.sqrt(_along(q, q))
        return unit * (unit - 1) / np.maximum(slope, np.float32(1e-6))

    return Shape(c - extent, c + extent, distance)


def segment(start: Point, end: Point, start_radius: float, end_radius: float) -> Shape:
    """Tapered tube with round ends."""
    a, b = np.asarray(start, np.float32), np.asarray(end, np.float32)
    along = b - a
    length2 = max(float(along @ along), 1e-6)
    widest = max(start_radius, end_radius)

    def distance(points: np.ndarray) -> np.ndarray:
        q = points - _column(a, points)
        t = np.clip(_along(along / np.float32(length2), q), 0, 1)
        q -= t * _column(along, points)
        radius = np.float32(start_radius) + t * np.float32(end_radius - start_radius)
        return np.sqrt(_along(q, q)) - radius

    return Shape(np.minimum(a, b) - widest, np.maximum(a, b) + widest, distance)


def tube(points: Sequence[Point], radii: Sequence[float]) -> list[Shape]:
    """Polyline of tapered segments, one shape each so that each has a small box."""
    return [
        segment(points[i], points[i + 1], radii[i], radii[i + 1]) for i in range(len(points) - 1)
    ]


def cylinder(center: Point, radius_x: float, radius_y: float, half_height: float) -> Shape:
    """Upright elliptic cylinder."""
    c = np.asarray(center, np.float32)
    extent = np.array([radius_x, radius_y, half_height], np.float32)

    def distance(points: np.ndarray) -> np.ndarray:
        unit = np.hypot((points[0] - c[0]) / extent[0], (points[1] - c[1]) / extent[1])
        side = (unit - 1) * min(extent[0], extent[1])
        return np.maximum(side, np.abs(points[2] - c[2]) - extent[2])

    return Shape(c - extent, c + extent, distance)


def union(shapes: Sequence[Shape], blend_mm: float) -> Shape:
    """Union of solids whose joints are rounded over about ``blend_mm``."""

    def distance(points: np.ndarray) -> np.ndarray:
        total = shapes[0].distance(points)
        for shape in shapes[1:]:
            other = shape.distance(points)
            gap = np.clip(blend_mm - np.abs(total - other), 0, None)
            total = np.minimum(total, other) - gap * gap / np.float32(4 * blend_mm)
        return total

    low = np.min([shape.low for shape in shapes], axis=0) - blend_mm / 4
    high = np.max([shape.high for shape in shapes], axis=0) + blend_mm / 4
    return Shape(low, high, distance)


def cut(shape: Shape, point: Point, normal: Point) -> Shape:
    """Keep the part of a solid behind a plane (on the side its normal points away from)."""
    p, n = np.asarray(point, np.float32), np.asarray(normal, np.float32)
    n = n / np.float32(np.linalg.norm(n))

    def distance(points: np.ndarray) -> np.ndarray:
        beyond = _along(n, points - _column(p, points))
        return np.maximum(shape.distance(points), beyond)

    return Shape(shape.low, shape.high, distance)


def frame(direction: Point) -> np.ndarray:
    """Return a rotation (3, 3) whose first column is the given direction."""
    first = np.asarray(direction, np.float64) / np.linalg.norm(direction)
    side = np.cross(first, [0.0, 0.0, 1.0] if abs(first[2]) < 0.9 else [0.0, 1.0, 0.0])
    side /= np.linalg.norm(side)
    return np.stack([first, side, np.cross(first, side)], axis=1)


def _along(vector: np.ndarray, points: np.ndarray) -> np.ndarray:
    return vector[0] * points[0] + vector[1] * points[1] + vector[2] * points[2]


def _column(vector: np.ndarray, points: np.ndarray) -> np.ndarray:
    return vector.reshape(3, *[1] * (points.ndim - 1))
