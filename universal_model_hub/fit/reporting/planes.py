"""A case in three planes: the scan, its labels, what was predicted, and where the two differ.

Arrays are (X, Y, Z) in RAS+ order, so right is on the right of a picture: letters mark the sides.
Needs matplotlib.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from universal_model_hub.errors import GeometryError
from universal_model_hub.extras import needed
from universal_model_hub.fit.data.cases import NOT_ANNOTATED
from universal_model_hub.preprocess.orientation import closest_axes
from universal_model_hub.volume import Volume

# Name, axis to the right, axis up, and the letters at the left, right, bottom and top.
PLANES = (("sagittal", 1, 2, "PAIS"), ("coronal", 0, 2, "LRIS"), ("axial", 0, 1, "LRPA"))
CLASS_COLORS = (
    *("#e6a000", "#56b4e9", "#1fb57c", "#d17bb5", "#f0e442", "#7d8cff"),
    *("#e8602c", "#9be15d", "#00d0d0", "#b07cff", "#ff8fa3", "#c9a57b"),
)
DIFFERENCES = {
    "missed: in the truth only": "#ff3366",
    "extra: predicted only": "#29c7ff",
    "another class": "#ffd400",
}
UNKNOWN_COLOR = "#808080"
WINDOW_PERCENTILES = (1.0, 99.5)
FILL, STRONG = 0.3, 0.85  # opacity of labels, of differences
WIDTH_INCHES, TALLEST_ROW_INCHES, DPI = 9.0, 3.6, 110
TITLE_INCHES, GAP_INCHES = 0.28, 0.06
TEXT: dict[str, Any] = {"color": "white", "fontsize": 9, "ha": "center", "va": "center"}
MARGIN_MM, SMALLEST_VIEW_MM = 15.0, 70.0
WORTH_CUTTING = 0.6  # share of each side, above which a picture is not cut


Extent = tuple[float, float, float, float]  # left, right, bottom and top, mm


@dataclass(frozen=True)
class _View:
    """What of a scan is drawn."""

    center: tuple[int, int, int]  # voxel in which the planes meet
    box: tuple[slice, slice, slice]
    spacing: tuple[float, float, float]  # mm

    def extent(self, right: int, up: int) -> Extent:
        """Return where the box lies in a plane, in mm."""
        edges = [
            (self.box[axis].start * self.spacing[axis], self.box[axis].stop * self.spacing[axis])
            for axis in (right, up)
        ]
        return (*edges[0], *edges[1])

    def size(self, right: int, up: int) -> tuple[float, float]:
        """Return the width and the height of a plane, in mm."""
        left, end, bottom, top = self.extent(right, up)
        return end - left, top - bottom

    def cut(self, array: np.ndarray, right: int, up: int) -> np.ndarray:
        """Return a plane of (X, Y, Z) within the box, (up, right)."""
        through = 3 - right - up
        index: list[Any] = list(self.box)
        index[through] = self.center[through]
        return array[tuple(index)].T  # the axis to the right is always before the one up


def class_color(label: int) -> str:
    """Return the color of a class number, 1 and above; the same everywhere on a page."""
    return CLASS_COLORS[(label - 1) % len(CLASS_COLORS)]


def in_ras(volume: Volume) -> tuple[np.ndarray, tuple[float, float, float]]:
    """Return a scan's voxels with the axes to the right, front and top, and their spacing in mm."""
    (i, j, k), flipped = closest_axes(volume.affine, "RAS")
    array = volume.array.transpose(i, j, k)
    x, y, z = (volume.spacing[axis] for axis in (i, j, k))
    return array[tuple(slice(None, None, -1 if flip else 1) for flip in flipped)], (x, y, z)


def three_planes(
    image: np.ndarray,
    truth: np.ndarray | None,
    predicted: np.ndarray | None,
    spacing_mm: Sequence[float],
    *,
    window: tuple[float, float] | None = None,
) -> bytes:
    """Draw a case in sagittal, coronal and axial planes.

    The planes meet in the truth's largest axial plane, in the voxel of the truth nearest to its
    centroid there; without a truth in what was predicted, or in the middle. Around structures that
    are small in the scan the picture is cut, and the whole scan is above it.

    Args:
        image: (X, Y, Z) in RAS+ order.
        truth: (X, Y, Z), class numbers; -1 is not annotated. None: not drawn.
        predicted: (X, Y, Z), class numbers. None: not drawn.
        spacing_mm: Voxel size (x, y, z).
        window: Intensities drawn black and white; None: nearly the range of these planes.

    Returns:
        A PNG file.

    Raises:
        GeometryError: If the arrays do not lie on one grid.
        ConfigError: If matplotlib is not installed.
    """
    maps = {"truth": truth, "prediction": predicted}
    given = {name: array for name, array in maps.items() if array is not None}
    if any(array.shape != image.shape for array in given.values()):
        raise GeometryError(
            f"Expected labels on the scan's grid {image.shape}, got "
            f"{', '.join(str(array.shape) for array in given.values())}. Resample them first."
        )
    x, y, z = (float(side) for side in spacing_mm)
    full = (slice(0, image.shape[0]), slice(0, image.shape[1]), slice(0, image.shape[2]))
    whole = _View(_center(image.shape, list(given.values())), full, (x, y, z))
    view = _View(whole.center, _box(image.shape, list(given.values()), (x, y, z)), (x, y, z))
    rows: list[tuple[str, _View, Mapping[str, np.ndarray]]] = []
    if not given or view.box != whole.box:
        rows.append(("scan", whole, {}))
    rows += [(name, view, {"labels": array}) for name, array in given.items()]
    if truth is not None and predicted is not None:
        rows.append(("differences", view, {"truth": truth, "predicted": predicted}))
    cut = view if view.box != whole.box else None
    return _draw(image, rows, window or _window(image, whole), cut)


def _draw(
    image: np.ndarray,
    rows: Sequence[tuple[str, _View, Mapping[str, np.ndarray]]],
    window: tuple[float, float],
    cut: _View | None,
) -> bytes:
    scales = [_scale(view) for _, view, _ in rows]
    heights = [
        scale * max(view.size(right, up)[1] for _, right, up, _ in PLANES) + GAP_INCHES
        for scale, (_, view, _) in zip(scales, rows, strict=True)
    ]
    top = sum(heights) + TITLE_INCHES
    figures = needed("matplotlib.figure", "matplotlib")
    figure = figures.Figure(figsize=(WIDTH_INCHES, top), dpi=DPI, facecolor="black")
    bottom = sum(heights)
    for number, ((name, view, maps), scale, height) in enumerate(
        zip(rows, scales, heights, strict=True)
    ):
        bottom -= height
        widths = [scale * view.size(right, up)[0] for _, right, up, _ in PLANES]
        left = TITLE_INCHES + (WIDTH_INCHES - TITLE_INCHES - sum(widths) - 3 * GAP_INCHES) / 2
        for width, (plane, right, up, letters) in zip(widths, PLANES, strict=True):
            tall = scale * view.size(right, up)[1]
            low = bottom + (height - GAP_INCHES - tall) / 2
            axis = figure.add_axes(
                (left / WIDTH_INCHES, low / top, width / WIDTH_INCHES, tall / top)
            )
            _show(axis, view.cut(image, right, up), view.extent(right, up), window, letters)
            _paint(axis, maps, view, right, up)
            if not maps and cut is not None:
                start, end, low, high = cut.extent(right, up)
                corners = [start, end, end, start, start], [low, low, high, high, low]
                axis.plot(*corners, color="white", linewidth=0.8, scalex=False, scaley=False)
            if number == 0:
                middle = (left + width / 2) / WIDTH_INCHES
                figure.text(middle, 1 - TITLE_INCHES / 2 / top, plane, **TEXT)
            left += width + GAP_INCHES
        middle = (bottom + (height - GAP_INCHES) / 2) / top
        figure.text(TITLE_INCHES / 2 / WIDTH_INCHES, middle, name, rotation=90, **TEXT)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def _scale(view: _View) -> float:
    """Return the inches of a millimeter in a row of planes."""
    sizes = [view.size(right, up) for _, right, up, _ in PLANES]
    room = WIDTH_INCHES - TITLE_INCHES - 3 * GAP_INCHES
    widest, tallest = sum(width for width, _ in sizes), max(height for _, height in sizes)
    return min(room / widest, TALLEST_ROW_INCHES / tallest)


def _show(
    axis: Any, plane: np.ndarray, extent: Extent, window: tuple[float, float], letters: str
) -> None:
    axis.imshow(
        *(plane, "gray"),
        origin="lower",
        extent=extent,
        vmin=window[0],
        vmax=window[1],
        aspect="equal",  # of mm: voxels keep their shape
    )
    axis.set_xticks([])
    axis.set_yticks([])
    axis.spines[:].set_visible(False)
    places = ((0.01, 0.5), (0.99, 0.5), (0.5, 0.01), (0.5, 0.99))
    sides = (("left", "center"), ("right", "center"), ("center", "bottom"), ("center", "top"))
    for letter, (x, y), (across, along) in zip(letters, places, sides, strict=True):
        axis.text(
            *(x, y, letter),
            transform=axis.transAxes,
            color="#d8d8d8",
            fontsize=8,
            ha=across,
            va=along,
            bbox={"facecolor": "black", "alpha": 0.45, "pad": 1, "linewidth": 0},
        )


def _paint(axis: Any, maps: Mapping[str, np.ndarray], view: _View, right: int, up: int) -> None:
    """Lay labels over a plane, a fill and an outline each, or where two maps differ."""
    extent = view.extent(right, up)
    planes = {name: view.cut(array, right, up) for name, array in maps.items()}
    if "labels" in planes:
        labels = planes["labels"]
        _fill(axis, labels == NOT_ANNOTATED, extent, UNKNOWN_COLOR, FILL)
        for label in np.unique(labels[labels > 0]).tolist():
            _fill(axis, labels == label, extent, class_color(label), FILL)
            _outline(axis, labels == label, extent, class_color(label))
    elif planes:
        truth, predicted = planes["truth"], planes["predicted"]
        known = truth != NOT_ANNOTATED
        missed, extra = (truth > 0) & (predicted <= 0), known & (truth == 0) & (predicted > 0)
        other = (truth > 0) & (predicted > 0) & (truth != predicted)
        for mask, color in zip((missed, extra, other), DIFFERENCES.values(), strict=True):
            _fill(axis, mask, extent, color, STRONG)
        _fill(axis, ~known, extent, UNKNOWN_COLOR, FILL)
        for label in np.unique(truth[truth > 0]).tolist():
            _outline(axis, truth == label, extent, "white", 0.5)


def _fill(axis: Any, mask: np.ndarray, extent: Extent, color: str, opacity: float) -> None:
    if not mask.any():
        return
    red, green, blue = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    layer = np.zeros((*mask.shape, 4))
    layer[mask] = (red, green, blue, opacity)
    axis.imshow(layer, origin="lower", extent=extent, interpolation="nearest")


def _outline(axis: Any, mask: np.ndarray, extent: Extent, color: str, width: float = 1.0) -> None:
    padded = np.pad(mask, 1).astype(np.float64)  # so that outlines close at the rim
    left, right, bottom, top = extent
    rows, columns = mask.shape
    across = left + (np.arange(columns + 2) - 0.5) * (right - left) / columns
    along = bottom + (np.arange(rows + 2) - 0.5) * (top - bottom) / rows
    axis.contour(across, along, padded, levels=[0.5], colors=[color], linewidths=width)
    axis.set_xlim(left, right)
    axis.set_ylim(bottom, top)


def _window(image: np.ndarray, view: _View) -> tuple[float, float]:
    values = np.concatenate([view.cut(image, r, u).ravel() for _, r, u, _ in PLANES])
    values = values[np.isfinite(values)].astype(np.float64)
    if len(values) == 0:
        return 0.0, 1.0
    low, high = np.percentile(values, WINDOW_PERCENTILES)
    return float(low), float(max(high, low + 1e-6))


def _center(shape: Sequence[int], maps: Sequence[np.ndarray]) -> tuple[int, int, int]:
    """Return the voxel in which the planes meet: of the first map that has a structure."""
    for labels in maps:
        areas = np.count_nonzero(labels > 0, axis=(0, 1))
        if areas.any():
            z = int(areas.argmax())
            places = np.argwhere(labels[:, :, z] > 0)
            away = np.square(places - places.mean(axis=0)).sum(axis=1)
            x, y = places[away.argmin()].tolist()
            return x, y, z
    x, y, z = (side // 2 for side in shape)
    return x, y, z


def _box(
    shape: Sequence[int], maps: Sequence[np.ndarray], spacing: tuple[float, float, float]
) -> tuple[slice, slice, slice]:
    """Return the voxels around all structures, or all where these are not small in the scan."""
    whole = (slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2]))
    there = [labels > 0 for labels in maps]
    parts = []
    for axis, (side, step) in enumerate(zip(shape, spacing, strict=True)):
        others = tuple(a for a in range(3) if a != axis)
        hit = np.flatnonzero(np.any([mask.any(axis=others) for mask in there], axis=0))
        if len(hit) == 0:
            return whole
        low, high = int(hit[0]), int(hit[-1]) + 1
        wanted = max((high - low) * step + 2 * MARGIN_MM, SMALLEST_VIEW_MM)
        half, middle = wanted / step / 2, (low + high) / 2
        parts.append(slice(max(0, int(middle - half)), min(side, int(np.ceil(middle + half)))))
    shares = [(part.stop - part.start) / side for part, side in zip(parts, shape, strict=True)]
    return (parts[0], parts[1], parts[2]) if max(shares[:2]) < WORTH_CUTTING else whole
