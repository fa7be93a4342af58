"""Make a phantom: a body of one kind, varied and deformed, as a label map."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from training.corpora.phantom.abdomen import paint_abdomen, paint_liver_lesions
from training.corpora.phantom.brain import draw_tumor, mass_effect, paint_head, paint_tumor
from training.corpora.phantom.deform import Grid, grid_of, random_displacement
from training.corpora.phantom.heart import paint_heart
from training.corpora.phantom.lungs import paint_lungs, paint_nodules
from training.corpora.phantom.shapes import Canvas, new_canvas
from training.corpora.phantom.tissues import TISSUES
from training.corpora.phantom.torso import paint_spine, paint_torso
from universal_model_hub.errors import ConfigError

Vector = tuple[float, float, float]


class PhantomSubject(NamedTuple):
    """A body before any scanner has seen it."""

    kind: str
    labels: np.ndarray  # (X, Y, Z) uint8, values of TISSUES
    affine: np.ndarray  # (4, 4), voxel indices to RAS+ mm
    variation: np.ndarray  # (K, 3) normal deviates of each tissue's HU, T1 and T2
    facts: dict[str, Any]  # what was drawn: nodules, lesions, atrophy, tumor grade

    @property
    def grid(self) -> Grid:
        """Where the voxels lie."""
        X, Y, Z = self.labels.shape
        x, y, z = self.affine[:3, 3]
        sx, sy, sz = self.spacing
        return Grid(
            (X, Y, Z), (sx, sy, sz), (float(x), float(y), float(z)), (X * sx, Y * sy, Z * sz)
        )

    @property
    def spacing(self) -> Vector:
        """Voxel size (x, y, z) in mm."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0)
        return float(x), float(y), float(z)


class _Kind(NamedTuple):
    center: Vector  # mm, of the field of view
    field_mm: Vector
    draw: Callable[..., tuple[Canvas, dict[str, Any]]]


def make_subject(
    kind: str,
    rng: np.random.Generator,
    spacing_mm: float | Vector = 2.0,
    *,
    field_mm: Vector | None = None,
    **options: Any,
) -> PhantomSubject:
    """Draw one subject.

    The anatomy depends on the generator alone, not on the spacing, up to what a grid can show
    (lesions and nodules are placed on voxels).

    Args:
        kind: "chest", "abdomen", "heart" or "brain".
        rng: Draws everything.
        spacing_mm: Voxel size in mm, one number or (x, y, z).
        field_mm: Field of view in mm; default is the kind's own.
        options: chest: ``num_nodules``. abdomen: ``num_lesions``. brain: ``tumor`` ("HGG", "LGG"
            or None), ``atrophy`` (0 to 1), ``normalized`` (True: sizes as after registration).
            What is not given is drawn.

    Raises:
        ConfigError: If the kind, an option or the spacing is none of these.
    """
    if kind not in KINDS:
        raise ConfigError(f"Expected a kind among {', '.join(KINDS)}, got {kind!r}.")
    spacing = (spacing_mm,) * 3 if isinstance(spacing_mm, int | float) else tuple(spacing_mm)
    if len(spacing) != 3 or not all(0.1 <= s <= 50 for s in spacing):
        raise ConfigError(f"Expected a spacing of 0.1 to 50 mm an axis, got {spacing_mm}.")
    center, default_field, draw = KINDS[kind]
    grid = grid_of(center, field_mm or default_field, spacing)
    body, properties = rng.spawn(2)
    variation = properties.standard_normal((len(TISSUES), 3), dtype=np.float32)
    try:
        canvas, facts = draw(grid, body, **options)
    except TypeError as error:
        if "unexpected keyword" not in str(error):
            raise
        raise ConfigError(f"A {kind} has no such option: {error}.") from error
    return PhantomSubject(kind, canvas.labels, grid.affine, variation, facts)


def _draw_torso(grid: Grid, rng: np.random.Generator) -> tuple[Canvas, dict[str, Any]]:
    """Everything of the trunk that is not a lesion, painted as far as the grid reaches."""
    body, bends, *parts = rng.spawn(7)
    size = np.exp(body.normal(0, (0.06, 0.06, 0.05)))
    fat_mm = float(np.clip(body.gamma(4, 3.5), 3, 40))
    displacement = random_displacement(grid, 4.5, 70, bends)
    displacement += random_displacement(grid, 1.6, 24, bends)
    canvas = new_canvas(grid, displacement, 1 / size)
    fields = paint_torso(canvas, fat_mm, parts[0])
    paint_abdomen(canvas, parts[1])
    paint_lungs(canvas, fields, parts[2])
    paint_heart(canvas, parts[3])
    paint_spine(canvas, parts[4])
    return canvas, {"fat_mm": fat_mm}


def _draw_chest(
    grid: Grid, rng: np.random.Generator, *, num_nodules: int | None = None
) -> tuple[Canvas, dict[str, Any]]:
    torso, lesions = rng.spawn(2)
    canvas, facts = _draw_torso(grid, torso)
    count = int(lesions.poisson(3)) if num_nodules is None else num_nodules
    return canvas, {**facts, "nodules": paint_nodules(canvas, count, lesions)}


def _draw_abdomen(
    grid: Grid, rng: np.random.Generator, *, num_lesions: int | None = None
) -> tuple[Canvas, dict[str, Any]]:
    torso, lesions = rng.spawn(2)
    canvas, facts = _draw_torso(grid, torso)
    count = int(lesions.integers(1, 7)) if num_lesions is None else num_lesions
    return canvas, {**facts, "num_lesions": paint_liver_lesions(canvas, count, lesions)}


def _draw_brain(
    grid: Grid,
    rng: np.random.Generator,
    *,
    tumor: str | None = None,
    atrophy: float | None = None,
    normalized: bool = False,
) -> tuple[Canvas, dict[str, Any]]:
    body, bends, head, lesion = rng.spawn(4)
    if tumor not in (None, "HGG", "LGG"):
        raise ConfigError(f"Expected tumor 'HGG', 'LGG' or None, got {tumor!r}.")
    drawn_atrophy = float(body.beta(2, 6))
    # MNI space is larger than the average brain.
    mean, spread = (0.0, 0.015) if normalized else (-0.05, 0.04)
    size = np.exp(body.normal(mean, spread, 3))
    displacement = random_displacement(grid, 1.5 if normalized else 2.6, 50, bends)
    displacement += random_displacement(grid, 0.8, 16, bends)
    drawn = draw_tumor(tumor == "HGG", lesion)
    if tumor is not None:
        displacement += mass_effect(grid, drawn)
    canvas = new_canvas(grid, displacement, 1 / size)
    degree = drawn_atrophy if atrophy is None else atrophy
    paint_head(canvas, degree, head)
    if tumor is not None:
        paint_tumor(canvas, drawn, lesion)
    return canvas, {"atrophy": degree, "tumor": tumor}


KINDS: dict[str, _Kind] = {
    "chest": _Kind((0.0, -8.0, 0.0), (380.0, 380.0, 300.0), _draw_chest),
    "abdomen": _Kind((0.0, -8.0, -150.0), (400.0, 400.0, 300.0), _draw_abdomen),
    "heart": _Kind((-10.0, -4.0, 14.0), (200.0, 200.0, 180.0), _draw_torso),
    "brain": _Kind((0.0, -16.0, 8.0), (240.0, 240.0, 155.0), _draw_brain),
}
