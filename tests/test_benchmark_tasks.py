"""The five target tasks: who is on which side, what is asked for, label noise, candidates."""

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_corpora
import torch

from training.benchmark.noise import case_rng, mask_dice, noisy_labels
from training.benchmark.tasks import TASKS, cases_of, sides_of, target_of
from training.benchmark.tasks_candidates import (
    CandidateSampler,
    CandidateSet,
    around,
    candidate_set,
    nodule_scores,
    read_table,
    thinned,
)
from training.benchmark.tasks_data import GridCase, open_cases, prepare_case, task_labels
from training.benchmark.tasks_scoring import (
    AS_IT_IS,
    Passes,
    classification_metrics,
    segment,
    segmentation_metrics,
)
from training.benchmark.tasks_training import inside_head, scoring_precision
from training.corpora import get_corpus
from training.corpora.case import Case
from training.corpora.splits import split
from universal_model_hub.errors import CheckpointError, ConfigError, VolumeError
from universal_model_hub.fit.data.cases import LoadedCase
from universal_model_hub.fit.training.sampling import CubeSampler
from universal_model_hub.fit.training.settings import FinetuneSettings
from universal_model_hub.preprocess import Preprocessing
from universal_model_hub.volume import Volume

NATIVE = Preprocessing(spacing=None)


def listed(corpus: str, groups: dict[str, int], **fields) -> list[Case]:
    """Cases of as many subjects as the paper has, without files."""
    return [
        Case(
            corpus=corpus,
            subject=f"{group}{number}",
            id=f"{group}{number}",
            volume=Path(f"{group}{number}.nii"),
            group=group,
            **{"modality": "MR", **fields},
        )
        for group, count in groups.items()
        for number in range(count)
    ]


def test_a_tenth_of_the_training_subjects_validates_and_the_sizes_are_the_papers():
    cases = [
        replace(case, sequence=sequence, id=f"{case.id}-{sequence}", volume=Path(case.id, sequence))
        for case in listed("brats2018", {"HGG": 210, "LGG": 75})
        for sequence in ("t1", "flair")
    ]
    sides = sides_of(TASKS["bts"], cases, split("brats2018", cases))
    assert {case.sequence for side in (sides.train, sides.test) for case in side} == {"flair"}
    assert (len(sides.train) + len(sides.validation), len(sides.test)) == (190, 95)
    assert len(sides.validation) == 19
    both = [case.group for case in sides.validation]
    assert (both.count("HGG"), both.count("LGG")) == (14, 5)


def test_small_shares_are_part_of_larger_ones_and_validation_stays():
    cases = listed("adni", {"AD": 47, "NC": 56})
    parts = split("adni", cases)
    found = [sides_of(TASKS["adc"], cases, parts, share=s) for s in (0.01, 0.1, 0.3, 0.7, 1.0)]
    trained = [{case.subject for case in sides.train} for sides in found]
    assert all(small <= large for small, large in itertools.pairwise(trained))
    assert [len(one) for one in trained] == [2, 7, 22, 52, 74]
    for sides in found:
        assert (sides.validation, sides.test) == (found[0].validation, found[0].test)
        groups = {case.group for case in sides.train}
        assert groups == {"AD", "NC"}
        everyone = [c.subject for c in (*sides.train, *sides.validation, *sides.test)]
        assert len(everyone) == len(set(everyone))


def test_lnc_trains_on_subsets_0_to_6_and_tests_on_7_to_9():
    cases = listed("luna16", {f"subset{k}": 5 for k in range(10)}, modality="CT")
    sides = sides_of(TASKS["lnc"], cases, split("luna16", cases))
    assert {case.group for case in sides.test} == {"subset7", "subset8", "subset9"}
    assert {case.group for case in (*sides.train, *sides.validation)} <= {
        f"subset{k}" for k in range(7)
    }


def test_a_subject_on_two_sides_is_refused():
    cases = listed("mmwhs", {"CT": 10}, modality="CT")
    parts = split("mmwhs", cases)
    mixed = replace(parts, test=(*parts.test, parts.train[0]))
    with pytest.raises(ConfigError, match=f"mmwhs {parts.train[0]}"):
        sides_of(TASKS["las_ct"], cases, mixed)


def test_a_task_without_enough_subjects_is_refused():
    cases = listed("mmwhs", {"CT": 2}, modality="CT")
    with pytest.raises(ConfigError, match="to train on for las_ct"):
        sides_of(TASKS["las_ct"], cases, split("mmwhs", cases))


def test_las_tasks_take_their_modality_and_a_foreign_diagnosis_is_refused(tmp_path):
    cases = get_corpus("mmwhs").cases(tiny_corpora.mmwhs(tmp_path))
    assert {c.modality for c in cases_of(TASKS["las_ct"], cases)} == {"CT"}
    assert {c.modality for c in cases_of(TASKS["las_mr"], cases)} == {"MR"}
    patient = listed("adni", {"AD": 1}, label_class="AD")[0]
    assert target_of(TASKS["adc"], patient) == 1
    with pytest.raises(ConfigError, match=r"AD0.nii, got MCI"):
        target_of(TASKS["adc"], replace(patient, label_class="MCI"))


def test_the_whole_tumor_joins_labels_1_2_and_4():
    labels = np.array([0, 1, 2, 3, 4, 5]).reshape(1, 1, 6)
    case = listed("brats2018", {"HGG": 1})[0]
    volume = Volume(np.zeros((1, 1, 6), np.float32), np.eye(4))
    truth = task_labels(TASKS["bts"], Volume(labels, np.eye(4)), volume, case)
    assert truth.ravel().tolist() == [0, 1, 1, 0, 1, 0]
    with pytest.raises(VolumeError, match="Expected labels of shape"):
        task_labels(TASKS["bts"], Volume(labels[..., :4], np.eye(4)), volume, case)


def test_prepared_labels_lie_on_the_image_whatever_the_files_orientation(tmp_path):
    task = TASKS["las_ct"]
    case = cases_of(task, get_corpus("mmwhs").cases(tiny_corpora.mmwhs(tmp_path, 1)))[0]
    prepare_case(task, case, NATIVE, tmp_path)
    (found,) = open_cases([case], tmp_path)
    # The file runs to the left and back: RAS turns both axes. Label 420 is its second one.
    assert np.argwhere(found.labels).tolist() == [[9 - 4, 9 - 4, 1]]
    raw = tiny_corpora.ct(1001)[4, 4, 1]
    expected = (np.clip(raw, -1000, 1000) + 1000) / 2000
    assert found.image[5, 5, 1] == pytest.approx(expected, abs=1e-3)
    (tmp_path / f"{case.id}-image.npy").unlink()
    with pytest.raises(CheckpointError, match=case.id):
        open_cases([case], tmp_path)


def test_noise_moves_the_border_by_its_distance_and_no_further():
    grid = np.indices((40, 40, 20)) - np.array([20, 20, 10]).reshape(3, 1, 1, 1)
    radius = np.sqrt((np.array([1, 1, 2]).reshape(3, 1, 1, 1) ** 2 * grid**2).sum(axis=0))
    ball = (radius <= 12).astype(np.uint8)
    seen = set()
    for trial in range(12):
        noisy = noisy_labels(ball, (1, 1, 2), 4.0, case_rng(trial, "a"))
        grown, shrunk = bool((noisy > ball).any()), bool((noisy < ball).any())
        assert grown != shrunk
        seen.add(grown)
        changed = radius[noisy != ball]
        assert changed.min() > 12 - 4 - 2
        assert changed.max() <= 12 + 4 + 1e-6
        if grown:  # by 2 mm at the least, less what voxels of 2 mm cannot show
            assert noisy[radius <= 13].all()
        else:
            assert not noisy[(radius > 11) & (radius <= 12)].any()
    assert seen == {True, False}


def test_noise_depends_on_trial_and_case_alone_and_is_severer_with_its_amplitude():
    ball = (np.square(np.indices((24,) * 3) - 12).sum(axis=0) < 64).astype(np.uint8)
    before = ball.copy()
    one, again = (noisy_labels(ball, (1, 1, 1), 3.0, case_rng(1, "x")) for _ in range(2))
    assert np.array_equal(one, again)
    assert np.array_equal(ball, before)
    draws = {noisy_labels(ball, (1, 1, 1), 3.0, case_rng(t, c)).sum() for t in (0, 1) for c in "ab"}
    assert len(draws) > 1
    dice = [
        np.mean([mask_dice(noisy_labels(ball, (1, 1, 1), mm, case_rng(t, "x")), ball)
                 for t in range(6)])
        for mm in (0.0, 2.0, 4.0, 20.0)
    ]  # fmt: skip
    assert dice[0] == 1
    assert dice[0] > dice[1] > dice[2] > dice[3]


def test_erosion_leaves_a_quarter_and_nothing_comes_of_an_empty_mask():
    ball = (np.square(np.indices((24,) * 3) - 12).sum(axis=0) < 64).astype(np.uint8)
    for trial in range(8):
        noisy = noisy_labels(ball, (1, 1, 1), 100.0, case_rng(trial, "x"))
        assert noisy.sum() >= 0.25 * ball.sum()
        assert not noisy_labels(0 * ball, (1, 1, 1), 3.0, case_rng(trial, "x")).any()


def test_a_cube_has_its_candidate_in_the_middle_and_zeros_beyond_the_scan():
    image = np.arange(1, 1001, dtype=np.float32).reshape(10, 10, 10)
    cube = around(image, [5.2, 4.8, 5], (4, 4, 4))
    assert cube.shape == (1, 4, 4, 4)
    assert cube[0, 2, 2, 2] == image[5, 5, 5]
    corner = around(image, [0, 9, 0], (4, 4, 4))[0]
    assert corner[2, 2, 2] == image[0, 9, 0]
    assert (corner[:2] == 0).all()
    assert (corner[:, 3:] == 0).all()
    assert not around(image, [-9, 0, 0], (4, 4, 4)).any()


def test_candidates_lie_on_the_voxels_that_the_table_names(tmp_path):
    tiny_corpora.luna16(tmp_path / "luna16")
    task, folder = TASKS["lnc"], tmp_path / "prepared"
    folder.mkdir()
    cases = get_corpus("luna16").cases(tmp_path / "luna16")
    for case in cases:
        prepare_case(task, case, NATIVE, folder)
    table = read_table(tmp_path / "luna16", "V2", folder)
    found = candidate_set(open_cases(cases, folder), table)
    assert len(found) == 20
    assert found.target.sum() == 10
    for row in range(len(found)):
        number = int(found.ids[found.scan[row]].rsplit(".", 1)[1])
        voxel = (2, 3, 4) if found.target[row] else (6, 5, 1)
        raw = np.clip(tiny_corpora.ct(number)[voxel], -1000, 1000)
        assert found.cube(row, (8, 8, 8))[0, 4, 4, 4] == pytest.approx(
            (raw + 1000) / 2000, abs=1e-3
        )
    (tmp_path / "luna16" / "candidates_V2.csv").unlink()  # the cache has what it held
    assert len(read_table(tmp_path / "luna16", "V2", folder).series) == 20
    with pytest.raises(ConfigError, match="candidates"):
        read_table(tmp_path / "luna16", "old", folder)


def unbalanced(nodules: int = 3, others: int = 300) -> CandidateSet:
    """Candidates in one scan whose nodules alone lie on a bright voxel."""
    image = np.zeros((64, 8, 8), np.float32)
    image[40] = 1
    count = nodules + others
    center = np.full((count, 3), 4.0)
    target = np.arange(count) < nodules
    center[target, 0] = 40
    return CandidateSet((image,), ("a",), np.zeros(count, int), center, target.astype(np.int64))


def test_the_sampler_balances_nodules_and_says_so():
    settings = FinetuneSettings(
        task="classification", cube=(8, 8, 8), batch_size=50, steps=8, augment=False
    )
    sampler = CandidateSampler(unbalanced(), settings, 0.4)
    batches = [sampler.batch(step) for step in range(8)]
    targets = torch.cat([target for _, target in batches])
    assert 0.33 < targets.float().mean() < 0.47
    for cubes, target in batches:
        assert torch.equal(cubes.amax(dim=(1, 2, 3, 4)).long(), target)
    assert torch.equal(batches[3][0], CandidateSampler(unbalanced(), settings, 0.4).batch(3)[0])
    said = sampler.describe()
    assert (said["nodules"], said["others"], said["cubes_drawn"]) == (3, 300, 400)
    assert said["times_each_nodule"] == pytest.approx(400 * 0.4 / 3, abs=1e-3)
    assert said["times_each_other"] == pytest.approx(0.8)
    with pytest.raises(ConfigError, match="got 0 nodules and 300 others"):
        CandidateSampler(unbalanced(0), settings, 0.4)


def test_validation_keeps_every_nodule_and_some_of_the_rest():
    kept = thinned(unbalanced(), 20)
    assert (int(kept.target.sum()), len(kept)) == (3, 23)
    assert len(thinned(unbalanced(), 1000)) == 303


def test_every_candidate_is_scored_once_in_order():
    class Brightest(torch.nn.Module):
        def forward(self, x):
            top = x.amax(dim=(1, 2, 3, 4))
            return torch.stack([1 - top, top], dim=1)

    candidates = unbalanced()
    scores = nodule_scores(Brightest(), candidates, (8, 8, 8), torch.device("cpu"))
    assert scores.shape == (303,)
    assert (scores[:3] > 0.5).all()
    assert (scores[3:] < 0.5).all()


class Seen(torch.nn.Module):
    """Says class 1 where a voxel is brighter than a half, and keeps the sizes that it saw."""

    stride, halo = 1, 0

    def __init__(self) -> None:
        super().__init__()
        self.unused = torch.nn.Parameter(torch.zeros(1))
        self.sizes: list[tuple[int, ...]] = []

    def __deepcopy__(self, memo: dict) -> "Seen":
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (N, 1, X, Y, Z) to logits (N, 2, X, Y, Z)."""
        self.sizes.append(tuple(x.shape[2:]))
        return torch.cat([torch.full_like(x, 0.5), x], dim=1)


@pytest.mark.parametrize(("overlap", "windows"), [(0.0, 3 * 2 * 3), (0.5, 4 * 3 * 5)])
def test_a_scan_passes_in_windows_of_the_training_cube(overlap, windows):
    scan = Volume(np.random.default_rng(0).random((20, 16, 12), np.float32), np.eye(4))
    model = Seen().train(False)
    found = segment(model, scan, "MR", AS_IT_IS, Passes(2**30, (8, 8, 4), overlap))
    assert model.sizes.count((8, 8, 4)) == windows
    np.testing.assert_array_equal(found, scan.array > 0.5)


def test_outside_a_stripped_head_nothing_is_answered():
    values = np.random.default_rng(0).random((20, 16, 12), np.float32)
    values[:10] = 0.0
    everywhere = Seen()
    everywhere.forward = lambda x: torch.cat([x, x + 1], dim=1)  # type: ignore[method-assign]
    for stripped in (False, True):
        passes = Passes(2**30, (8, 8, 4), 0.25, stripped=stripped)
        found = segment(everywhere.train(False), Volume(values, np.eye(4)), "MR", AS_IT_IS, passes)
        np.testing.assert_array_equal(found, (values > 0) if stripped else np.ones_like(found))


def test_scans_are_scored_in_bfloat16_where_the_device_has_it(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    for has_it, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr("universal_model_hub.devices.cpu_has_bfloat16", lambda it=has_it: it)
        assert scoring_precision("bfloat16", cpu) == expected
        assert scoring_precision("bfloat16", gpu) == "bfloat16"
        assert scoring_precision("float16", gpu) == scoring_precision("float32", cpu) == "float32"


def test_what_lies_outside_a_stripped_head_does_not_train():
    image = np.array([[[0.0, 0.0, 0.2], [0.4, 0.0, 0.1]]], np.float16)
    labels = np.array([[[0, 0, 0], [1, 0, 1]]], np.uint8)
    case = GridCase(None, image, labels, None)  # type: ignore[arg-type]
    found = inside_head(case, labels)
    np.testing.assert_array_equal(found, [[[-1, -1, 0], [1, -1, 1]]])
    loaded = LoadedCase("a", image[None], found)
    CubeSampler([loaded], FinetuneSettings(), 2)  # takes it
    assert [task.name for task in TASKS.values() if task.stripped] == ["bts"]


def test_metrics_are_those_of_small_examples():
    rows = [
        {"iou": 0.5, "dice": 2 / 3, "hd95_mm": 4.0},
        {"iou": 0.0, "dice": 0.0, "hd95_mm": None},
    ]
    assert segmentation_metrics(rows) == {
        "iou": 0.25, "dice": pytest.approx(1 / 3), "hd95_mm": 4.0, "hd95_cases": 1
    }  # fmt: skip
    assert segmentation_metrics(rows[1:])["hd95_mm"] is None
    answers = [(0, 0.1), (0, 0.6), (1, 0.4), (1, 0.9)]
    found = classification_metrics([{"target": t, "score": s} for t, s in answers])
    assert found == {"auc": 0.75, "accuracy": 0.5, "sensitivity": 0.5}
    assert classification_metrics([{"target": 0, "score": 0.2}])["auc"] is None
