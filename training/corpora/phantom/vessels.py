"""Branching vessels, grown generation by generation inside an organ."""

from typing import NamedTuple

import numpy as np

from training.corpora.phantom.shapes import Canvas, paint, segment
from training.corpora.phantom.tissues import tissue_mask

_THINNEST_MM = 0.6
_SHRINK = 0.94  # per generation, on top of Murray's law, so that trees end


class Branches(NamedTuple):
    """Straight pieces of a vessel tree: P of them."""

    start: np.ndarray  # (P, 3) mm
    end: np.ndarray  # (P, 3) mm
    radius: np.ndarray  # (P,) mm


def grow_trees(
    start: np.ndarray, direction: np.ndarray, radius: np.ndarray, rng: np.random.Generator
) -> Branches:
    """Grow trees down to 0.6 mm, all at once.

    Radii at a fork follow Murray's law (r0^3 = r1^3 + r2^3); the thinner branch turns more.

    Args:
        start: (T, 3) mm, where each of T trees begins.
        direction: (T, 3), of any length.
        radius: (T,) mm.
        rng: Draws lengths, bends and forks.
    """
    begin, heading, radii = start, _unit(direction), radius
    generations = []
    while len(radii):
        P = len(radii)
        length = radii * rng.uniform(4.0, 8.5, P)
        heading = _unit(heading + rng.normal(0, 0.14, (P, 3)))
        end = begin + heading * length[:, None]
        generations.append(Branches(begin, end, radii))
        share = rng.uniform(0.2, 0.8, P)
        across = _unit(np.cross(heading, rng.normal(0, 1, (P, 3))))
        portion = np.concatenate([share, 1 - share])
        sign = np.repeat([1.0, -1.0], P)
        turn = (sign * (0.35 + 0.6 * (1 - portion)))[:, None] * np.tile(across, (2, 1))
        heading = _unit(np.tile(heading, (2, 1)) + turn)
        radii = _SHRINK * np.tile(radii, 2) * portion ** (1 / 3)
        begin = np.tile(end, (2, 1))
        thick = radii >= _THINNEST_MM
        begin, heading, radii = begin[thick], heading[thick], radii[thick]
    return Branches(*(np.concatenate(column) for column in zip(*generations, strict=True)))


def paint_trees(canvas: Canvas, trees: Branches, tissue: str, inside: str) -> None:
    """Paint the branches that the grid can show, within one tissue only."""
    over = tissue_mask(inside)
    visible = trees.radius >= 0.4 * max(canvas.grid.spacing)
    for start, end, radius in zip(
        trees.start[visible], trees.end[visible], trees.radius[visible], strict=True
    ):
        paint(canvas, segment(start, end, radius, 0.92 * radius), tissue, over=over)


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
