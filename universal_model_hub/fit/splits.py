"""Who trains and who judges: always by subject, whatever order files lie in on the disk."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from universal_model_hub.errors import ConfigError
from universal_model_hub.fit.cases import Case, CaseSet, Split

VALIDATION_SHARE = 0.2  # of the subjects


def split_cases(data: CaseSet, *, seed: int, validation_share: float = VALIDATION_SHARE) -> CaseSet:
    """Give every case a side: as the data say, and by lot for the rest.

    Of the subjects that may train, a share validates, at least one; for classification of each
    class alike. Where the data name validation cases none is drawn. A single subject trains, and
    there is no validation part.

    Args:
        data: Checked cases.
        seed: Of the lot.
        validation_share: Of the subjects without a side.

    Raises:
        ConfigError: If nothing is left to train on.
    """
    free = [case for case in data.cases if case.split is None]
    subjects = sorted({case.subject for case in free})
    named = any(case.split == "validation" for case in data.cases)
    sides: dict[str, Split] = dict.fromkeys(subjects, "train")
    if not named and len(subjects) > 1:
        for subject in _drawn(free, subjects, seed, validation_share):
            sides[subject] = "validation"
    cases = tuple(
        case if case.split is not None else replace(case, split=sides[case.subject])
        for case in sorted(data.cases, key=lambda case: case.id)
    )
    if not any(case.split == "train" for case in cases):
        raise ConfigError("Expected cases to train on, got none: all are on other sides.")
    return data.with_cases(cases)


def fold_cases(data: CaseSet, *, folds: int, seed: int) -> list[CaseSet]:
    """Return the splits of a cross-validation by subject; test cases stay out of it.

    Args:
        data: After ``split_cases``.
        folds: How many; each subject validates once.
        seed: Of the lot.

    Raises:
        ConfigError: If there are fewer subjects than folds.
    """
    cases = [case for case in data.cases if case.split != "test"]
    subjects = sorted({case.subject for case in cases})
    if folds > len(subjects):
        raise ConfigError(
            f"Expected at least {folds} subjects for {folds} folds, got {len(subjects)}. Use fewer "
            "folds."
        )
    order = _stratified(cases, subjects, np.random.default_rng([seed, folds]))
    fold_of = {subject: number % folds for number, subject in enumerate(order)}
    splits: list[CaseSet] = []
    for fold in range(folds):
        sides: list[Case] = []
        for case in cases:
            side: Split = "validation" if fold_of[case.subject] == fold else "train"
            sides.append(replace(case, split=side))
        splits.append(data.with_cases(tuple(sides)))
    return splits


def _drawn(cases: Sequence[Case], subjects: Sequence[str], seed: int, share: float) -> list[str]:
    """Draw the subjects that validate: a share of each class, at least one in all."""
    rng = np.random.default_rng([seed, 0])
    if all(case.target is None for case in cases):
        number = min(len(subjects) - 1, max(1, round(share * len(subjects))))
        return [str(name) for name in rng.permutation(subjects)[:number]]
    drawn: list[str] = []
    for members in _by_class(cases, subjects).values():
        number = min(len(members) - 1, max(1, round(share * len(members))))
        drawn += [str(name) for name in rng.permutation(members)[:number]]
    return drawn


def _stratified(
    cases: Sequence[Case], subjects: Sequence[str], rng: np.random.Generator
) -> list[str]:
    """Return subjects class after class: dealt out in turn, each fold gets its share of each."""
    return [
        str(name)
        for members in _by_class(cases, subjects).values()
        for name in rng.permutation(members)
    ]


def _by_class(cases: Sequence[Case], subjects: Sequence[str]) -> dict[str, list[str]]:
    """Group subjects by the target of their first case; of a segmentation all are one group."""
    first: dict[str, str] = {}
    for case in sorted(cases, key=lambda case: case.id):
        first.setdefault(case.subject, case.target or "")
    groups: dict[str, list[str]] = {}
    for subject in subjects:
        groups.setdefault(first[subject], []).append(subject)
    return dict(sorted(groups.items()))
