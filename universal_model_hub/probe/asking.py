"""``probe()``: check what is asked, encode, draw labels, score."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from universal_model_hub.errors import ConfigError
from universal_model_hub.extras import needed
from universal_model_hub.inference import Precision
from universal_model_hub.job import check_choice
from universal_model_hub.probe.arms import SETTLED, side_by_side
from universal_model_hub.probe.curve import low_label_curve
from universal_model_hub.probe.results import ProbeResult, ProbeRow, model_identity
from universal_model_hub.probe.samples import (
    Encoding,
    Examination,
    Samples,
    Scan,
    is_alone,
    require_two_classes,
    scan_samples,
    voxel_samples,
)
from universal_model_hub.volume import Volume

PERCENTS = (1.0, 5.0, 10.0, 30.0, 100.0)
HELD_OUT_SHARE = 0.3  # of the subjects, where the caller does not say which


def probe(
    model: nn.Module,
    images: Sequence[Scan | Sequence[Scan]],
    *,
    labels: Sequence[Scan] | None = None,
    targets: Sequence[str] | None = None,
    subjects: Sequence[str] | None = None,
    held_out: Sequence[bool] | None = None,
    modality: str | Sequence[str] = "auto",
    label_names: Mapping[int, str] | None = None,
    levels: Literal["deepest", "all"] = "deepest",
    shares: Sequence[float] = PERCENTS,
    seeds: int = 5,
    points: int = 100,
    seed: int = 0,
    device: str | torch.device | None = None,
    precision: Precision = "float32",
    memory_limit: int | None = None,
    progress: bool = False,
) -> ProbeResult:
    """Ask how good a frozen encoder is on labeled scans: kNN and linear probe with few labels.

    With ``labels`` the samples are voxels, each described by the maps of all levels there; with
    ``targets`` they are scans, each described by the mean of its map. The same is asked of the
    encoder with batch norm statistics of the training scans in place of its own training's, of
    random weights with such statistics, and of hand-made features. The model is left as it is.

    Args:
        model: An encoder, or a model that has one as ``encoder``; it carries ``preprocessing``.
        images: Scans or their paths; of several channels a sequence of them. Each channel runs
            alone, and their features are joined.
        labels: A label map for each scan, on its voxels; -1 is not annotated.
        targets: Instead: the class of each scan.
        subjects: Whose each scan is; by default every scan is of another subject. No subject is
            on both sides.
        held_out: Which scans are asked about and not learned from; by default those of 30 % of
            the subjects, drawn by ``seed``. Of one subject alone a slab is held out.
        modality: ``"CT"``, ``"MR"`` or ``"auto"``; or one a channel.
        label_names: Label value to name.
        levels: Of scans: the mean of the ``"deepest"`` map, or of ``"all"`` maps.
        shares: Percents of the training subjects whose labels are given. Less than one subject
            means a slab of its scans; of classes at least one subject each is given.
        seeds: Draws of every share.
        points: Voxels of a class and scan at most.
        seed: Of all that is drawn.
        device: Where to run; ``None`` for where the model is.
        precision: See ``predict``.
        memory_limit: Bytes a scan may take on its device.
        progress: Show bars on stderr.

    Raises:
        ConfigError: If an option cannot be used, a subject is on both sides, there are fewer than
            two classes on a side, or scikit-learn is not installed.
        GeometryError: If labels do not lie on their scan.
    """
    needed("sklearn")
    check_choice("levels", levels, ("deepest", "all"))
    percents = _checked_shares(shares)
    for name, count in (("seeds", seeds), ("points", points)):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ConfigError(f"Expected {name} to be a whole number from 1, got {count!r}.")
    cases = _cases(images, labels, targets, subjects, held_out, seed)
    modalities = _modalities(modality, cases)
    whole_scans = targets is not None
    if whole_scans:
        require_two_classes([(str(case.target), case.held_out) for case in cases])
    encoding = Encoding(
        model=model,
        network=side_by_side(model, deepest_only=whole_scans and levels == "deepest", seed=seed),
        modalities=modalities,
        device=device,
        precision=precision,
        memory_limit=memory_limit,
        progress=progress,
    )
    if whole_scans:
        samples = scan_samples(cases, encoding)
    else:
        samples = voxel_samples(
            cases, encoding, label_names or {}, points, np.random.default_rng(seed)
        )
    rows = low_label_curve(
        samples, percents, seeds, whole_scans=whole_scans, seed=seed, progress=progress
    )
    return _result(model, samples, rows, cases, seed)


def draw_held_out(
    subjects: Sequence[str], targets: Sequence[str] | None, rng: np.random.Generator
) -> list[bool]:
    """Say which scans to hold out: those of 30 % of the subjects, of each class if there are any.

    Args:
        subjects: Whose each scan is.
        targets: Class of each scan.
        rng: Draws.
    """
    kinds: dict[str, str] = {}
    for subject, target in zip(subjects, targets or [""] * len(subjects), strict=True):
        kinds.setdefault(subject, target)
    chosen: set[str] = set()
    for kind in sorted(set(kinds.values())):
        names = sorted(name for name, found in kinds.items() if found == kind)
        count = min(len(names) - 1, max(1, round(HELD_OUT_SHARE * len(names))))
        chosen.update(str(name) for name in rng.permutation(names)[:count])
    return [subject in chosen for subject in subjects]


def _cases(
    images: Sequence[Scan | Sequence[Scan]],
    labels: Sequence[Scan] | None,
    targets: Sequence[str] | None,
    subjects: Sequence[str] | None,
    held_out: Sequence[bool] | None,
    seed: int,
) -> list[Examination]:
    """Put together what belongs to each scan.

    Raises:
        ConfigError: If something is missing, or a subject is on both sides.
    """
    if (labels is None) == (targets is None):
        raise ConfigError("Expected labels (maps) or targets (classes), got both or none of them.")
    count = len(images)
    for name, given in (("labels", labels), ("targets", targets), ("subjects", subjects)):
        if given is not None and len(given) != count:
            raise ConfigError(f"Expected {name} for {count} scans, got {len(given)}.")
    owners = [str(s) for s in subjects] if subjects is not None else [str(i) for i in range(count)]
    alone = len(set(owners)) < 2
    if alone and (count == 0 or targets is not None):
        raise ConfigError(
            f"Expected scans of at least two subjects, got {len(set(owners))}. Bring more."
        )
    if held_out is None or alone:
        sides = draw_held_out(owners, targets, np.random.default_rng(seed))
    else:
        sides = [bool(side) for side in held_out]
    _check_sides(owners, sides, alone=alone)
    return [
        Examination(
            images=(scan,) if isinstance(scan, Volume | Path | str) else tuple(scan),
            subject=owner,
            held_out=side,
            labels=None if labels is None else labels[number],
            target=None if targets is None else str(targets[number]),
        )
        for number, (scan, owner, side) in enumerate(zip(images, owners, sides, strict=True))
    ]


def _check_sides(owners: Sequence[str], sides: Sequence[bool], *, alone: bool) -> None:
    """Refuse a split with an empty side, or with a subject on both.

    Raises:
        ConfigError: If so.
    """
    if len(sides) != len(owners):
        raise ConfigError(f"Expected held_out for {len(owners)} scans, got {len(sides)}.")
    if alone:
        return
    kept = {owner for owner, side in zip(owners, sides, strict=True) if side}
    both = kept & {owner for owner, side in zip(owners, sides, strict=True) if not side}
    if both:
        raise ConfigError(
            f"Expected each subject on one side, got {', '.join(sorted(both)[:5])} among those "
            "held out and those learned from. Correct the split."
        )
    if not 0 < len(kept) < len(set(owners)):
        raise ConfigError(
            f"Expected subjects to learn from and subjects held out, got {len(kept)} of "
            f"{len(set(owners))} held out. Correct the split, or bring more subjects of a class."
        )


def _modalities(modality: str | Sequence[str], cases: Sequence[Examination]) -> tuple[str, ...]:
    """Return one modality a channel.

    Raises:
        ConfigError: If scans have different numbers of channels, or not that of the modalities.
    """
    counts = sorted({len(case.images) for case in cases})
    found = (modality,) * counts[0] if isinstance(modality, str) else tuple(modality)
    if counts != [len(found)] or not found:
        raise ConfigError(
            f"Expected scans of one number of channels, and as many modalities, got scans of "
            f"{counts} channels and {len(found)} modalities."
        )
    return found


def _checked_shares(shares: Sequence[float]) -> list[float]:
    """Return the shares in ascending order, each once.

    Raises:
        ConfigError: If there is none, or one is not above 0 and up to 100.
    """
    if not len(shares) or any(not 0 < share <= 100 for share in shares):
        raise ConfigError(f"Expected shares above 0 and up to 100 percent, got {tuple(shares)}.")
    return sorted({float(share) for share in shares})


def _result(
    model: nn.Module,
    samples: Samples,
    rows: Sequence[ProbeRow],
    cases: Sequence[Examination],
    seed: int,
) -> ProbeResult:
    name, sha256 = model_identity(model)
    return ProbeResult(
        model=name,
        sha256=sha256,
        task="segmentation" if cases[0].target is None else "classification",
        classes=samples.names,
        train_subjects=len(np.unique(samples.subjects[samples.train])),
        test_subjects=len(np.unique(samples.subjects[samples.test])),
        train_samples=len(samples.train),
        test_samples=len(samples.test),
        within_subject=is_alone(cases),
        seed=seed,
        rows=tuple(rows),
        notes=_notes(samples, rows, len(cases[0].images), alone=is_alone(cases)),
    )


def _notes(
    samples: Samples, rows: Sequence[ProbeRow], num_channels: int, *, alone: bool
) -> tuple[str, ...]:
    """Return what should be known beside the numbers."""
    notes = [
        f"'{SETTLED}' is the encoder with batch norm statistics of the training scans, as random "
        "weights have them too; where it is much better, the scans are unlike those that the "
        "encoder was trained on, and its batch norm should be trained along"
    ]
    if alone:
        notes.append(
            "within one subject: neighbors of the voxels asked about were learned from, so that "
            "the scores are optimistic and say nothing about another subject"
        )
    slabs = [f"{percent:g} %" for percent in sorted({r.percent for r in rows if r.slab})]
    if slabs:
        notes.append(
            f"less than one training subject at {', '.join(slabs)}: that share of the labeled "
            "voxels, in a contiguous slab of one subject's scans"
        )
    missing = set(samples.classes[samples.test]) - set(samples.classes[samples.train])
    if missing:
        names = ", ".join(samples.names[number] for number in sorted(missing))
        notes.append(f"not in the training subjects, and counted as never recognized: {names}")
    if num_channels > 1:
        notes.append(f"each of the {num_channels} channels ran alone; their features were joined")
    return tuple(notes)
