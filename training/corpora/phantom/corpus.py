"""Write a whole synthetic corpus in the layout of one of the six real sets."""

import functools
import multiprocessing
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple

from training.corpora.phantom import layouts_brain, layouts_ct, layouts_heart
from training.corpora.phantom.scan_files import SIZES, Job, Written
from universal_model_hub.errors import ConfigError

MARKER = "SYNTHETIC.txt"
_NOTICE = """\
SYNTHETIC DATA. Every scan in this folder was computed from a random number generator by
universal_model_hub (training.corpora.phantom). No patient, subject or scanner stands behind any
file, name, age or identifier. Not for any medical use.
"""


class Layout(NamedTuple):
    """How one corpus is written."""

    write_subject: Callable[[Job], Written]
    traps: tuple[str, ...]
    write_tables: Callable[[Path, dict[str, list[tuple]]], None] | None = None
    can_hold: Callable[[int], bool] = lambda index: True  # whether traps may hit this subject


def _mmwhs_mr(job: Job) -> Written:
    return layouts_heart.write_mmwhs_subject(job, "mr")


def _mmwhs_ct(job: Job) -> Written:
    return layouts_heart.write_mmwhs_subject(job, "ct")


LAYOUTS: dict[str, tuple[Layout, ...]] = {
    "luna16": (
        Layout(
            layouts_ct.write_luna16_subject, layouts_ct.LUNA_TRAPS, layouts_ct.write_luna16_tables
        ),
    ),
    "lits2017": (Layout(layouts_ct.write_lits2017_subject, layouts_ct.LITS_TRAPS),),
    "brats2018": (
        Layout(
            layouts_brain.write_brats2018_subject,
            layouts_brain.BRATS_TRAPS,
            layouts_brain.write_brats2018_tables,
        ),
    ),
    "msd_heart": (
        Layout(
            layouts_heart.write_msd_heart_subject,
            layouts_heart.MSD_TRAPS,
            layouts_heart.write_msd_heart_tables,
            can_hold=lambda index: not layouts_heart.is_msd_test(index),
        ),
    ),
    "mmwhs": (Layout(_mmwhs_mr, layouts_heart.MMWHS_TRAPS), Layout(_mmwhs_ct, ())),
    "adni": (
        Layout(
            layouts_brain.write_adni_subject,
            layouts_brain.ADNI_TRAPS,
            layouts_brain.write_adni_tables,
        ),
    ),
}


def write_corpus(
    name: str,
    folder: Path,
    num_subjects: int,
    seed: int,
    size: str = "small",
    *,
    traps: Iterable[str] = (),
    num_workers: int = 1,
) -> None:
    """Write synthetic scans in the layout of a real set.

    Subject k is the same whatever the number of subjects and workers. Each trap hits one labelled
    subject, the traps in alphabetic order subjects 0, 1, ... ("false_spacing": all subjects,
    which are numbered from 27 on; "stray_421" and the other traps of mmwhs: MR). ``SYNTHETIC.txt``
    lists the files hit.

    Args:
        name: luna16, lits2017, brats2018, msd_heart, mmwhs (this many CT and as many MR) or adni.
        folder: Made; must be new or empty.
        num_subjects: How many.
        seed: Of everything random.
        size: "toy" (a body of 12 cm, for smoke tests), "tiny", "small", "medium", or "real": the
            real set's field of view and spacing.
        traps: Flaws of the real sets to plant, each among the layout's own.
        num_workers: Processes.

    Raises:
        ConfigError: If an argument is none of these, or the folder is not empty.
    """
    wanted = sorted(set(traps))
    _check(name, folder, num_subjects, size, wanted)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).write_text(_NOTICE, encoding="utf-8")
    hits: dict[str, list[str]] = defaultdict(list)
    for layout in LAYOUTS[name]:
        jobs = _jobs(layout, folder, num_subjects, seed, size, wanted)
        rows: dict[str, list[tuple]] = defaultdict(list)
        for written in _run(layout.write_subject, jobs, num_workers):
            for table, new in written.rows.items():
                rows[table] += new
            for trap, file in written.planted.items():
                hits[trap].append(file)
        if layout.write_tables is not None:
            layout.write_tables(folder, rows)
    lines = [f"trap {trap}: {file}\n" for trap in sorted(hits) for file in hits[trap]]
    (folder / MARKER).write_text(_NOTICE + "".join(lines), encoding="utf-8")


def planted_traps(folder: Path) -> dict[str, list[str]]:
    """Read from a corpus' SYNTHETIC.txt which files each trap was planted in."""
    found: dict[str, list[str]] = defaultdict(list)
    for line in (folder / MARKER).read_text(encoding="utf-8").splitlines():
        if line.startswith("trap "):
            trap, file = line.removeprefix("trap ").split(": ", 1)
            found[trap].append(file)
    return dict(found)


def _jobs(
    layout: Layout, folder: Path, num_subjects: int, seed: int, size: str, traps: list[str]
) -> list[Job]:
    able = [index for index in range(num_subjects) if layout.can_hold(index)]
    held: dict[int, set[str]] = defaultdict(set)
    single = [trap for trap in traps if trap in layout.traps and trap != "false_spacing"]
    for position, trap in enumerate(single):
        held[able[position % len(able)]].add(trap)
    if "false_spacing" in traps:
        for index in range(num_subjects):
            held[index].add("false_spacing")
    return [Job(folder, k, seed, size, frozenset(held[k])) for k in range(num_subjects)]


def _run(write: Callable[[Job], Written], jobs: list[Job], num_workers: int) -> Iterator[Written]:
    if num_workers <= 1:
        yield from map(write, jobs)
        return
    # Started fresh: a forked child may inherit locked threads.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(num_workers, len(jobs)), mp_context=context) as pool:
        yield from pool.map(functools.partial(write), jobs)


def _check(name: str, folder: Path, num_subjects: int, size: str, traps: list[str]) -> None:
    if name not in LAYOUTS:
        raise ConfigError(f"Expected a corpus among {', '.join(LAYOUTS)}, got {name!r}.")
    if size not in SIZES:
        raise ConfigError(f"Expected a size among {', '.join(SIZES)}, got {size!r}.")
    if num_subjects < 1:
        raise ConfigError(f"Expected at least one subject, got {num_subjects}.")
    known = LAYOUTS[name][0].traps
    unknown = [trap for trap in traps if trap not in known]
    if unknown:
        raise ConfigError(
            f"{name} has the traps {', '.join(known)}, got {', '.join(unknown)}. Name one of them."
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"Expected a new or empty folder, got {folder}. Choose another.")
