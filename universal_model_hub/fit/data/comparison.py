"""What only shows when cases are compared: splits, classes, copies, and cases unlike the others."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from universal_model_hub.fit.data.cases import Case, CaseSet, Finding
from universal_model_hub.fit.data.data_report import CaseFacts

SMALLEST_SIDE = 8  # voxels on the model grid
THICK = 8.0  # times as thick as wide
SPREAD = 3.0  # times as coarse as another case


def compare_cases(
    data: CaseSet,
    facts: Sequence[CaseFacts],
    voxels: Mapping[int, int],
    contents: Mapping[str, Sequence[tuple[Case, Path]]],
) -> list[Finding]:
    """Return everything that is wrong with the set as a whole.

    Args:
        data: The set.
        facts: Of its cases without errors.
        voxels: Of each label value, over these cases.
        contents: Scans by the hash of their voxels.
    """
    findings = [finding for same in contents.values() for finding in _copies(same)]
    findings += [*_splits(data), *_labels(data, facts, voxels), *_targets(data), *_likeness(facts)]
    return findings


def _copies(same: Sequence[tuple[Case, Path]]) -> Iterator[Finding]:
    """Tell of scans with the same voxels, whatever their names."""
    cases = list({case.id: case for case, _ in same}.values())
    names = ", ".join(str(path) for _, path in same[1:])
    if len(same) > len(cases):
        text = f"Expected each channel of a case to be another scan, got the same voxels in {names}"
        yield Finding("warning", str(same[0][1]), f"{text}.")
    if len(cases) < 2:
        return
    known = {case.split for case in cases if case.split is not None}
    drawn = any(case.split is None for case in cases) and len({c.subject for c in cases}) > 1
    across = len(known) > 1 or drawn
    yield Finding(
        "error" if across else "warning",
        str(same[0][1]),
        f"The same voxels are in {names}, cases {', '.join(case.id for case in cases)}"
        + (": what trains would judge, too. Keep one." if across else ". Keep one."),
    )


def _splits(data: CaseSet) -> Iterator[Finding]:
    subjects: dict[str, list[Case]] = {}
    for case in data.cases:
        if case.split is not None:
            subjects.setdefault(case.subject, []).append(case)
    for subject, cases in sorted(subjects.items()):
        if len({case.split for case in cases}) > 1:
            sides = ", ".join(f"{case.id} in {case.split}" for case in cases)
            text = f"Expected a subject on one side of the split, got {sides}."
            yield Finding("error", subject, text)
    counts = Counter(case.split for case in data.cases)
    if data.cases and not counts["train"] and not counts[None]:
        yield Finding("error", str(data.source), "Expected cases to train on, got none.")
    elif data.cases and not counts["validation"] and not counts[None]:
        text = (
            "The split has no validation part and leaves no case to draw one from: nothing chooses "
            "the best step. Leave the split of some cases empty."
        )
        yield Finding("warning", str(data.source), text)


def _labels(
    data: CaseSet, facts: Sequence[CaseFacts], voxels: Mapping[int, int]
) -> Iterator[Finding]:
    if data.task != "segmentation" or not facts:
        return
    if not any(value > 0 and count for value, count in voxels.items()):
        yield Finding("error", str(data.source), "Expected labeled voxels, got none in any case.")
    for value, name in (data.classes or {}).items():
        if value > 0 and not voxels.get(value):
            text = f"No case has a voxel of label {value} ({name}): it is left out."
            yield Finding("warning", str(data.source), text)
    if len(facts) > 1:
        for value in (v for v in voxels if v > 0):
            holders = [one.id for one in facts if one.label_voxels.get(value)]
            if len(holders) == 1:
                text = f"Label {value} is in this case only: it can be learned or judged, not both."
                yield Finding("warning", holders[0], text)


def _targets(data: CaseSet) -> Iterator[Finding]:
    if data.task != "classification":
        return
    classes: dict[str, list[Case]] = {}
    for case in data.cases:
        if case.target:
            classes.setdefault(case.target, []).append(case)
        else:
            yield Finding("error", case.id, "Expected a class of this case, got none.")
    if len(classes) < 2:
        text = f"Expected at least two classes, got {', '.join(classes) or 'none'}."
        yield Finding("error", str(data.source), text)
    validates = any(case.split == "validation" for case in data.cases)
    for target, cases in sorted(classes.items()):
        sides = {case.split for case in cases}
        if len({case.subject for case in cases}) < 2:
            text = f"Expected two subjects of class {target}, to train and to judge, got one."
            yield Finding("error", cases[0].id, text)
        elif not sides & {None, "train"}:
            text = f"Expected cases of class {target} to train on, got none."
            yield Finding("error", str(data.source), text)
        elif validates and "validation" not in sides:
            text = f"The validation part has no case of class {target}."
            yield Finding("warning", str(data.source), text)


def _likeness(facts: Sequence[CaseFacts]) -> Iterator[Finding]:
    """Tell which cases are unlike the others."""
    if not facts:
        return
    usual = Counter(one.modalities for one in facts).most_common(1)[0][0]
    volume = np.median([math.prod(one.spacing_mm) for one in facts])
    for one in facts:
        if one.modalities != usual:
            text = f"Taken as {', '.join(one.modalities)}, most others as {', '.join(usual)}."
            yield Finding("error", one.id, f"{text} Pass the modality if that is wrong.")
        if max(one.spacing_mm) > THICK * min(one.spacing_mm):
            text = f"Voxels of {' x '.join(f'{s:g}' for s in one.spacing_mm)} mm are very uneven."
            yield Finding("warning", one.id, text)
        ratio = (math.prod(one.spacing_mm) / volume) ** (1 / 3)
        if max(ratio, 1 / ratio) > SPREAD:
            text = "Its voxels differ threefold in size from those of most others."
            yield Finding("warning", one.id, text)
        if min(one.model_shape) < SMALLEST_SIDE:
            sides = " x ".join(map(str, one.model_shape))
            text = f"Only {sides} voxels on the network's grid: there is little to see."
            yield Finding("warning", one.id, text)
