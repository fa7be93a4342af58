"""Splits go by subject, are drawn once for all, and do not depend on the order of files."""

from pathlib import Path

import pytest

from universal_model_hub.errors import ConfigError
from universal_model_hub.fit.data.cases import Case, CaseSet
from universal_model_hub.fit.data.splits import fold_cases, split_cases


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


def test_one_subject_alone_trains_and_that_is_told():
    split = split_cases(case_set([case("a"), case("b", "a")]), seed=0)
    assert sides(split) == {"a": "train", "b": "train"}
    (finding,) = split.findings
    assert (finding.level, finding.where) == ("warning", "a")
    assert "The only subject" in finding.text
    assert not split_cases(case_set([case("a"), case("b")]), seed=0).findings
    with pytest.raises(ConfigError, match="to train on"):
        split_cases(case_set([case("a", split="test")]), seed=0)


def test_a_visit_without_a_side_follows_its_subject():
    subjects = [f"s{n}" for n in range(12)]
    cases = [case(f"{s}-1", s, split="train") for s in subjects]
    cases += [case(f"{s}-2", s) for s in subjects]
    cases += [case("t-1", "t", split="test"), case("t-2", "t"), case("free")]
    for seed in range(3):
        found = sides(split_cases(case_set(cases), seed=seed))
        assert all(found[f"{s}-2"] == "train" for s in subjects)
        assert found["t-2"] == "test"
        assert found["free"] == "validation"  # others train already


def test_a_subject_that_the_data_put_on_two_sides_is_refused():
    cases = [case("a", "p", split="train"), case("b", "p", split="test"), case("c")]
    with pytest.raises(ConfigError, match="subject p on one side of the split, got train and test"):
        split_cases(case_set(cases), seed=0)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_both_sides_have_a_subject_whatever_the_share(share):
    cases = [case(f"c{n}") for n in range(3)]
    found = sides(split_cases(case_set(cases), seed=0, validation_share=share))
    assert set(found.values()) == {"train", "validation"}


def test_somebody_validates_even_if_each_class_has_one_subject():
    cases = [case("a", target="x"), case("b", target="y"), case("c", target="z")]
    found = sides(split_cases(case_set(cases), seed=0))
    assert sorted(found.values()) == ["train", "train", "validation"]


def test_the_only_subject_of_a_class_trains_beside_given_sides():
    cases = [case(n, target="x", split="train") for n in "abc"]
    cases += [case("d", target="y"), case("e", target="x")]
    found = sides(split_cases(case_set(cases), seed=0))
    assert (found["d"], found["e"]) == ("train", "validation")


@pytest.mark.parametrize("share", [0, 1, -0.1, float("nan")])
def test_a_share_that_leaves_a_side_empty_is_refused(share):
    with pytest.raises(ConfigError, match="validation_share"):
        split_cases(case_set([case("a"), case("b")]), seed=0, validation_share=share)


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


@pytest.mark.parametrize("folds", [0, 1, -2])
def test_fewer_than_two_folds_are_refused(folds):
    with pytest.raises(ConfigError, match="at least 2 folds"):
        fold_cases(case_set([case("a"), case("b")]), folds=folds, seed=0)


def test_folds_do_not_depend_on_the_order_of_files():
    cases = [case(f"c{n:02d}", target="ab"[n % 2]) for n in range(11)]
    folds = [sides(fold) for fold in fold_cases(case_set(cases), folds=3, seed=5)]
    assert [sides(f) for f in fold_cases(case_set(reversed(cases)), folds=3, seed=5)] == folds
