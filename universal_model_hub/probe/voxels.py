"""Which voxels of a label map are asked about: of each class some, drawn at random.

Label maps are walked plane by plane: of a large scan only what was drawn is held.
"""

from dataclasses import dataclass

import numpy as np

from universal_model_hub.errors import VolumeError

NOT_ANNOTATED = -1
MOST_VALUES = 1 << 16  # between the smallest and the largest label


@dataclass(frozen=True)
class Voxels:
    """Some voxels of a label map."""

    index: np.ndarray  # (P, 3) int64, on the map's own grid
    values: np.ndarray  # (P,) int64, their labels

    def at_most(self, limit: int) -> "Voxels":
        """Keep ``limit`` voxels of each label; a random choice, as they come in random order."""
        kept = [np.flatnonzero(self.values == value)[:limit] for value in np.unique(self.values)]
        chosen = np.concatenate(kept) if kept else np.zeros(0, np.int64)
        return Voxels(self.index[chosen], self.values[chosen])

    def along(self, axis: int) -> "Voxels":
        """Sort by one coordinate: neighbors in the scan become neighbors in the list."""
        order = np.argsort(self.index[:, axis], kind="stable")
        return Voxels(self.index[order], self.values[order])


def draw_voxels(labels: np.ndarray, limit: int, rng: np.random.Generator) -> Voxels:
    """Draw up to ``limit`` voxels of each label, in random order; -1 (not annotated) is left out.

    Args:
        labels: (X, Y, Z), whole numbers.
        limit: Voxels of a label.
        rng: Draws them.

    Raises:
        VolumeError: If the array does not hold labels.
    """
    axis = int(np.argmax(np.abs(labels.strides)))  # planes that lie together in memory
    planes = np.moveaxis(labels, axis, 0)
    low, counts = _counts(planes)
    indices, values = [np.zeros((0, 3), np.int64)], [np.zeros(0, np.int64)]
    for offset in np.flatnonzero(counts.sum(axis=0)):
        if low + offset == NOT_ANNOTATED:
            continue
        ends = np.cumsum(counts[:, offset])
        ranks = rng.choice(int(ends[-1]), min(limit, int(ends[-1])), replace=False)
        found = np.empty((len(ranks), 3), np.int64)
        where = np.searchsorted(ends, ranks, side="right")
        for number in np.unique(where):
            chosen = where == number
            there = np.flatnonzero(_whole(planes[number]) == low + offset)
            flat = there[ranks[chosen] - (ends[number] - counts[number, offset])]
            rows, columns = np.unravel_index(flat, planes.shape[1:])
            found[chosen] = np.stack([np.full(len(flat), number), rows, columns], axis=1)
        indices.append(found)
        values.append(np.full(len(ranks), low + offset))
    index = np.concatenate(indices)
    back = [1 + k - (k > axis) if k != axis else 0 for k in range(3)]
    return Voxels(index[:, back], np.concatenate(values))


def _counts(planes: np.ndarray) -> tuple[int, np.ndarray]:
    """Return the smallest label, and how often each label from there on is in each plane."""
    low, high = int(np.rint(planes.min())), int(np.rint(planes.max()))
    if high - low >= MOST_VALUES or low < NOT_ANNOTATED:
        raise VolumeError(
            f"Expected a label map with values of -1 (not annotated) and above, got values from "
            f"{low} to {high}. Name the label maps, not the scans."
        )
    rows = [np.bincount((_whole(p) - low).ravel(), minlength=high - low + 1) for p in planes]
    return low, np.stack(rows)


def _whole(plane: np.ndarray) -> np.ndarray:
    """Return a plane of labels as integers.

    Raises:
        VolumeError: If they are not whole numbers.
    """
    whole = np.rint(plane).astype(np.int64) if plane.dtype.kind == "f" else plane.astype(np.int64)
    if plane.dtype.kind == "f" and not np.allclose(whole, plane, atol=1e-3):
        raise VolumeError(
            "Expected whole numbers in a label map, got fractions. Name the label maps, not the "
            "scans; a probability map must be turned into labels first."
        )
    return whole
