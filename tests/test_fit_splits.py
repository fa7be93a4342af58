"""Splits go by subject, are drawn once for all, and do not depend on the order of files."""

from pathlib import Path

import pytest

from universal_model_hub.errors import ConfigError
from universal_model_hub.fit.cases import Case, CaseSet
from universal_model_hub.fit.splits import fold_cases, split_cases


def case_set(cases) -> CaseSet:
    return CaseSet(
        task="segmentation", cases=tuple(cases), modalities=("CT",), classes=None,
        layout="folders", source=Path("data"),
    )  # fmt: skip


def case(name: str, subject: str | None = None, **more) -> Case:
    return Case(id=name, subject=subject or name, images=(Path(f"{name}.nii"),), **more)


def sides(data: CaseSet) -> dict[str, str | None]:
    return {c.id: c.split for c in data.cases}


def test_a_fifth_of_the_subjects_validates_whatever_the_order_of_files():
    cases = [case(f"c{n:02d}") for n in range(20)]
    split = split_cases(case_set(cases), seed=0)
    assert sum(side == "validation" for side in sides(split).values()) == 4
    assert sides(split_cases(case_set(reversed(cases)), seed=0)) == sides(split)
    assert sides(split_cases(case_set(cases), seed=1)) != sides(split)


def test_visits_of_a_subject_stay_on_one_side():
    cases = [case(f"s{n}-{visit}", f"s{n}") for n in range(5) for visit in (1, 2, 3)]
    found = sides(split_cases(case_set(cases), seed=3))
    for n in range(5):
        assert len({found[f"s{n}-{visit}"] for visit in (1, 2, 3)}) == 1
    assert "validation" in found.values()


def test_what_the_data_say_is_kept():
    cases = [case("a", split="test"), case("b", split="validation"), case("c"), case("d")]
    assert sides(split_cases(case_set(cases), seed=0)) == {
        "a": "test", "b": "validation", "c": "train", "d": "train",
    }  # fmt: skip


def test_one_subject_alone_trains():
    assert sides(split_cases(case_set([case("a"), case("b", "a")]), seed=0)) == {
        "a": "train", "b": "train",
    }  # fmt: skip
    with pytest.raises(ConfigError, match="to train on"):
        split_cases(case_set([case("a", split="test")]), seed=0)


def test_each_class_is_on_both_sides():
    cases = [case(f"c{n}", target="rare" if n < 2 else "usual") for n in range(20)]
    for seed in range(5):
        split = split_cases(case_set(cases), seed=seed)
        for target in ("rare", "usual"):
            assert {c.split for c in split.cases if c.target == target} == {"train", "validation"}


def test_every_subject_validates_in_one_fold_and_test_cases_in_none():
    cases = [case(f"s{n}-{v}", f"s{n}") for n in range(7) for v in (1, 2)]
    cases.append(case("t", split="test"))
    folds = fold_cases(split_cases(case_set(cases), seed=0), folds=3, seed=0)
    validated = [c.id for fold in folds for c in fold.cases if c.split == "validation"]
    assert sorted(validated) == sorted(c.id for c in cases if c.id != "t")
    for fold in folds:
        by_side = [{c.subject for c in fold.cases if c.split == s} for s in ("train", "validation")]
        assert not by_side[0] & by_side[1]
    with pytest.raises(ConfigError, match="at least 9 subjects for 9 folds, got 7"):
        fold_cases(case_set(cases), folds=9, seed=0)


def test_folds_have_each_class_in_proportion():
    cases = [case(f"c{n}", target="a" if n % 4 == 0 else "b") for n in range(20)]
    for fold in fold_cases(case_set(cases), folds=5, seed=0):
        held = [c.target for c in fold.cases if c.split == "validation"]
        assert held.count("a") == 1
        assert held.count("b") == 3
