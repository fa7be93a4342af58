"""What a run is expected to cost, from rates measured on one core, before anything is read."""

import functools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from training.corpora.packaged_table import Table, read_table
from training.corpora.phantom import KINDS
from training.release.arms import HAND
from training.release.tasks import AXES, Part, Task

if TYPE_CHECKING:
    from training.release.runs import Run, Setting

# Voxels a second of the compact network (width 8, float32) on one core of a two-core AMD EPYC,
# forward and backward, and forward alone; of the hand-made features. The first is from runs of
# 1,000 steps in about 90 s, scoring included, two at a time.
TRAINED, SEGMENTED, HAND_MADE = 360e3, 500e3, 250e3
WIDTH = 8
RIDGE_SECONDS = 5.0  # to fit a probe: features of the drawn voxels and 36 small systems
PROBE_SECONDS = 25.0
START_SECONDS = 1.0


def expected_seconds(run: "Run", setting: "Setting") -> float:
    """Return the expected seconds of a run on one core."""
    slower = (int(dict(setting.arm(run.arm).arguments).get("width", 32)) / WIDTH) ** 2
    slower = 1.0 if run.arm == HAND else slower
    forward = HAND_MADE if run.arm == HAND else SEGMENTED
    if run.kind in ("cubes", "structure"):
        return PROBE_SECONDS * slower
    task = setting.tasks.tasks[run.task]
    settings = setting.mode_settings
    judged = test_voxels(task) if run.part == "test" else 0.1 * test_voxels(task)
    if run.kind == "ridge":
        return RIDGE_SECONDS * slower + slower * judged / forward
    passes = settings.curve_points if run.curve else 1
    trained = settings.steps * settings.batch_size * math.prod(task.cube) / TRAINED
    return START_SECONDS + slower * (trained + passes * judged / forward)


def test_voxels(task: Task) -> float:
    """Return how many voxels of the working grid a task's test cases have, from its table alone."""
    return _field_voxels(task.test, task.spacing_mm) * max(1, task.test.subjects)


def _field_voxels(part: Part, spacing_mm: float) -> float:
    if part.region:
        field: Sequence[float] = part.field_mm or KINDS[part.region].field_mm
    else:
        scan = _table().scans[part.scan]
        field = [n * s for n, s in zip(scan.shape, scan.spacing, strict=True)]
    sides = list(field)
    if part.slabs:
        axis = AXES.index(part.slab_axis)
        sides[axis] = max(high for _, high in part.slabs) - min(low for low, _ in part.slabs)
    return math.prod(sides) / spacing_mm**3 / (2 if part.half else 1)


@functools.cache
def _table() -> Table:
    return read_table()  # a plan asks for it a thousand times
