"""Who trains and who judges: always by subject, whatever order files lie in on the disk."""

from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np

from universal_model_hub.errors import ConfigError
from universal_model_hub.fit.data.cases import Case, CaseSet, Finding, Split

VALIDATION_SHARE = 0.2  # of the subjects


def split_cases(data: CaseSet, *, seed: int, validation_share: float = VALIDATION_SHARE) -> CaseSet:
    """Give every case a side: as the data say, and by lot for the rest.

    A case without a side follows the other cases of its subject. Of the remaining subjects a share
    validates, at least one; for classification of each class alike. Where the data name validation
    cases none is drawn. A single subject trains, there is no validation part, and a warning among
    the findings of what is returned says so.

    Args:
        data: Checked cases.
        seed: Of the lot.
        validation_share: Of the subjects without a side, above 0 and below 1.

    Raises:
        ConfigError: If nothing is left to train on, a subject is on two sides, or the share cannot
            be used.
    """
    if not 0 < validation_share < 1:
        raise ConfigError(
            f"Expected a validation_share above 0 and below 1, got {validation_share}."
        )
    sides = _given(data)
    free = [case for case in data.cases if case.subject not in sides]
    drawn: list[str] = []
    if "validation" not in sides.values():
        trained = {case.target or "" for case in data.cases if sides.get(case.subject) == "train"}
        drawn = _drawn(free, trained, seed, validation_share)
    for case in free:
        sides[case.subject] = "validation" if case.subject in drawn else "train"
    cases = tuple(
        replace(case, split=sides[case.subject])
        for case in sorted(data.cases, key=lambda case: case.id)
    )
    if "train" not in sides.values():
        raise ConfigError("Expected cases to train on, got none: all are on other sides.")
    findings = data.findings
    if len(sides) == 1:
        text = "The only subject: it trains, and there is no other to validate or to test on."
        findings = (*findings, Finding("warning", cases[0].subject, text))
    return replace(data, cases=cases, findings=findings)


def fold_cases(data: CaseSet, *, folds: int, seed: int) -> list[CaseSet]:
    """Return the splits of a cross-validation by subject; test cases stay out of it.

    Args:
        data: After ``split_cases``.
        folds: How many; each subject validates once.
        seed: Of the lot.

    Raises:
        ConfigError: If there are fewer than two folds, or fewer subjects than folds.
    """
    if folds < 2:
        raise ConfigError(f"Expected at least 2 folds, got {folds}.")
    cases = [case for case in data.cases if case.split != "test"]
    subjects = sorted({case.subject for case in cases})
    if folds > len(subjects):
        raise ConfigError(
            f"Expected at least {folds} subjects for {folds} folds, got {len(subjects)}. Use fewer "
            "folds."
        )
    order = _stratified(cases, np.random.default_rng([seed, folds]))
    fold_of = {subject: number % folds for number, subject in enumerate(order)}
    splits: list[CaseSet] = []
    for fold in range(folds):
        sides: list[Case] = []
        for case in cases:
            side: Split = "validation" if fold_of[case.subject] == fold else "train"
            sides.append(replace(case, split=side))
        splits.append(data.with_cases(tuple(sides)))
    return splits


def _given(data: CaseSet) -> dict[str, Split]:
    """Return the side of each subject that the data give one."""
    sides: dict[str, Split] = {}
    for case in data.cases:
        if case.split is not None and sides.setdefault(case.subject, case.split) != case.split:
            raise ConfigError(
                f"Expected subject {case.subject} on one side of the split, got "
                f"{sides[case.subject]} and {case.split}. Correct the column split."
            )
    return sides


def _drawn(cases: Sequence[Case], trained: Collection[str], seed: int, share: float) -> list[str]:
    """Draw the subjects that validate: a share of each class, at least one in all.

    Args:
        cases: Without a side.
        trained: Classes that others train already; of the rest a subject is left to train.
        seed: Of the lot.
        share: Of the subjects of each class.
    """
    rng = np.random.default_rng([seed, 0])
    drawn: list[str] = []
    for target, members in _by_class(cases).items():
        most = len(members) if target in trained else len(members) - 1
        drawn += _lot(members, min(most, max(1, round(share * len(members)))), rng)
    subjects = sorted({case.subject for case in cases})
    if not drawn and len(subjects) > 1:
        drawn = _lot(subjects, 1, rng)  # each class has one subject only
    return drawn


def _lot(members: Sequence[str], number: int, rng: np.random.Generator) -> list[str]:
    return [str(name) for name in rng.permutation(members)[:number]]


def _stratified(cases: Sequence[Case], rng: np.random.Generator) -> list[str]:
    """Return subjects class after class: dealt out in turn, each fold gets its share of each."""
    return [
        name for members in _by_class(cases).values() for name in _lot(members, len(members), rng)
    ]


def _by_class(cases: Sequence[Case]) -> dict[str, list[str]]:
    """Group subjects by the target of their first case; of a segmentation all are one group."""
    first: dict[str, str] = {}
    for case in sorted(cases, key=lambda case: case.id):
        first.setdefault(case.subject, case.target or "")
    groups: dict[str, list[str]] = {}
    for subject in sorted(first):
        groups.setdefault(first[subject], []).append(subject)
    return dict(sorted(groups.items()))
