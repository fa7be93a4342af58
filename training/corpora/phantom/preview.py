"""A picture of one phantom of each kind, to look at before trusting them."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from training.corpora.phantom.render_ct import CT_SCANNERS, render_ct
from training.corpora.phantom.render_mr import MR_SCANNERS, render_mr
from training.corpora.phantom.subject import PhantomSubject, make_subject
from training.corpora.phantom.tissues import TISSUES
from universal_model_hub.files import atomic_path
from universal_model_hub.volume import Volume

_COLORS = ("#ff4d4d", "#ffd24d", "#4dd2ff", "#7dff6a")


class Row(NamedTuple):
    """One line of the picture."""

    title: str
    volume: Volume
    window: tuple[float, float]
    subject: PhantomSubject
    outlined: tuple[tuple[str, ...], ...]  # groups of tissues, a color each


def write_preview(path: Path, seed: int = 0, spacing_mm: float = 1.5) -> None:
    """Write a PNG: chest, abdomen, heart (CT and MR), brain with a tumor in four sequences.

    Each row shows three planes, left of the picture is the body's right, then the same planes with
    outlines of what the corpora label.

    Args:
        path: Of the picture.
        seed: Draws the subjects.
        spacing_mm: Voxel size.
    """
    from matplotlib.figure import Figure

    rows = _rows(seed, spacing_mm)
    figure = Figure(figsize=(21, 3.6 * len(rows)))
    axes = figure.subplots(len(rows), 6, squeeze=False)
    figure.patch.set_facecolor("black")
    for row, line in zip(rows, axes, strict=True):
        center = _center_of(row)
        for column, axis in enumerate(line):
            _draw(axis, row, column % 3, center, outlined=column >= 3)
        line[0].set_title(row.title, color="white", loc="left")
    figure.tight_layout(pad=0.4)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=70, format="png")


def _rows(seed: int, spacing_mm: float) -> list[Row]:
    rows: list[Row] = []
    for kind, phase, scanner, window, outlined in (
        ("chest", "plain", "sharp", (-1150, 350), (("nodule", "ground_glass"),)),
        ("abdomen", "portal", "soft", (-110, 230), (("liver", "liver_vessel"), ("liver_lesion",))),
        ("heart", "arterial", "soft", (-150, 480),
         (("left_atrium",), ("left_ventricle",), ("right_ventricle",), ("right_atrium",))),
    ):  # fmt: skip
        rng = np.random.default_rng([seed, len(rows)])
        subject = make_subject(kind, rng, spacing_mm)
        volume = render_ct(subject, rng, CT_SCANNERS[scanner], phase=phase)
        rows.append(Row(f"{kind}, CT, {phase}", volume, window, subject, outlined))
    rng = np.random.default_rng([seed, len(rows)])
    heart = make_subject("heart", rng, spacing_mm, field_mm=(300, 300, 180))
    volume = render_mr(heart, rng, "bSSFP", MR_SCANNERS["north_1.5T"])
    rows.append(Row("heart, MR, bSSFP", volume, _window(volume), heart, rows[-1].outlined))
    rng = np.random.default_rng([seed, len(rows)])
    brain = make_subject("brain", rng, 0.8 * spacing_mm, tumor="HGG")
    parts = (("edema",), ("tumor_core",), ("enhancing_tumor",))
    for number, sequence in enumerate(("T1", "T1c", "T2", "FLAIR")):
        volume = render_mr(brain, rng, sequence, MR_SCANNERS["east_3T"], stripped=number > 0)
        rows.append(Row(f"brain, MR, {sequence}", volume, _window(volume), brain, parts))
    return rows


def _window(volume: Volume) -> tuple[float, float]:
    bright = volume.array[volume.array > 0.1 * np.percentile(volume.array, 99)]
    return 0.0, float(np.percentile(bright, 98.5))


def _center_of(row: Row) -> list[int]:
    """Voxel through the largest of what is outlined in red, or the grid's middle."""
    marked = np.isin(row.subject.labels, [TISSUES[name] for name in row.outlined[-1]])
    if not marked.any():
        marked = np.isin(row.subject.labels, [TISSUES[name] for name in row.outlined[0]])
    if not marked.any():
        return [side // 2 for side in marked.shape]
    return [int(marked.sum(axis=others).argmax()) for others in ((1, 2), (0, 2), (0, 1))]


def _draw(axis, row: Row, plane: int, center: list[int], *, outlined: bool) -> None:
    """Draw an axial, coronal or sagittal plane, the body's right on the left."""
    across = 2 - plane
    at = [slice(None)] * 3
    at[across] = center[across]  # type: ignore[call-overload]
    where = tuple(at)
    flip = slice(None, None, -1 if across != 0 else 1)
    picture, labels = row.volume.array[where][flip], row.subject.labels[where][flip]
    axis.imshow(picture.T, origin="lower", cmap="gray", vmin=row.window[0], vmax=row.window[1])
    axis.axis("off")
    if not outlined:
        return
    for names, color in zip(row.outlined, _COLORS, strict=False):
        mask = np.isin(labels, [TISSUES[name] for name in names])
        if mask.any():
            axis.contour(mask.T.astype(float), levels=[0.5], colors=[color], linewidths=1.0)
