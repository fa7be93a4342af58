"""Phantoms: known answers of fields, shapes, signals; anatomy, difficulty, layouts and traps."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from training.corpora import get_corpus
from training.corpora.checks import inspect
from training.corpora.phantom import (
    CT_SCANNERS,
    MR_SCANNERS,
    TISSUES,
    PhantomSubject,
    make_subject,
    planted_traps,
    render_ct,
    render_mr,
    write_corpus,
)
from training.corpora.phantom.__main__ import main
from training.corpora.phantom.deform import grid_of, random_displacement, smooth_noise
from training.corpora.phantom.layouts_brain import BRATS_TRAPS, draw_atrophy
from training.corpora.phantom.layouts_heart import MSD_TRAPS
from training.corpora.phantom.render_mr import acquired_in_slices, tissue_signal
from training.corpora.phantom.shapes import (
    cut,
    cylinder,
    ellipsoid,
    frame,
    new_canvas,
    paint,
    segment,
    union,
)
from training.corpora.phantom.tissues import tissue_values
from training.corpora.phantom.vessels import grow_trees
from universal_model_hub.errors import ConfigError

ROOT = Path(__file__).parent.parent
STILL = replace(CT_SCANNERS["soft"], noise_hu=0.0, blur_mm=0.0, streak_hu=0.0, couch=False)
TUMOR = ("edema", "tumor_core", "enhancing_tumor")
LIVER = ("liver", "liver_vessel", "liver_lesion")


def is_tissue(subject: PhantomSubject, *names: str) -> np.ndarray:
    return np.isin(subject.labels, [TISSUES[name] for name in names])


def rng_of(*seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


def points(*rows: tuple[float, float, float]) -> np.ndarray:
    return np.array(rows, np.float32).T


@pytest.fixture(scope="module")
def heart() -> PhantomSubject:
    return make_subject("heart", rng_of(5), 3.0)


@pytest.fixture(scope="module")
def brain() -> PhantomSubject:
    return make_subject("brain", rng_of(4), 2.0, tumor="HGG", atrophy=0.2)


# Fields and shapes


def test_smooth_noise_has_unit_spread_and_is_smooth():
    grid = grid_of((0, 0, 0), (240.0, 240.0, 240.0), (4.0, 4.0, 4.0))
    noise = smooth_noise(grid, 16.0, rng_of(0))
    assert noise.std() == pytest.approx(1.0, abs=0.05)
    assert np.abs(np.diff(noise, axis=0)).mean() < 0.25


def test_noise_is_the_same_field_at_any_spacing():
    coarse = grid_of((5, 0, 0), (96.0, 96.0, 96.0), (6.0, 6.0, 6.0))
    fine = grid_of((5, 0, 0), (96.0, 96.0, 96.0), (2.0, 2.0, 2.0))
    a, b = smooth_noise(coarse, 30.0, rng_of(1)), smooth_noise(fine, 30.0, rng_of(1))
    np.testing.assert_allclose(a, b[1::3, 1::3, 1::3], atol=1e-4)


def test_distances_at_known_points():
    ball = ellipsoid((1, 2, 3), (10, 10, 10))
    np.testing.assert_allclose(ball.distance(points((1, 2, 18), (1, 2, 8))), [5, -5], atol=1e-4)
    rod = segment((0, 0, 0), (20, 0, 0), 4, 2)
    np.testing.assert_allclose(
        rod.distance(points((10, 5, 0), (-6, 0, 0), (25, 0, 0))), [2, 2, 3], atol=1e-4
    )
    disc = cylinder((0, 0, 0), 5, 5, 2)
    np.testing.assert_allclose(disc.distance(points((0, 0, 6), (8, 0, 0))), [4, 3], atol=1e-4)
    half = cut(ball, (1, 2, 3), (0, 0, 1))
    np.testing.assert_allclose(half.distance(points((1, 2, 7))), [4], atol=1e-4)


def test_a_rotated_ellipsoid_points_along_its_axis():
    axis = np.array([0.6, 0.0, 0.8])
    shape = ellipsoid((0, 0, 0), (20, 5, 5), frame(axis))
    np.testing.assert_allclose(shape.distance(points(tuple(20 * axis))), [0], atol=1e-3)
    np.testing.assert_allclose(shape.high[[0, 2]], [np.hypot(12, 4), np.hypot(16, 3)], atol=1e-3)


def test_union_keeps_both_parts_and_fills_the_joint():
    parts = [ellipsoid((0, 0, 0), (10, 10, 10)), ellipsoid((16, 0, 0), (10, 10, 10))]
    joint = points((0, 0, 0), (16, 0, 0), (8, 6.5, 0))
    assert (union(parts, 8).distance(joint) < 0).all()
    assert min(part.distance(joint)[2] for part in parts) > 0


def test_painting_in_a_box_equals_painting_everywhere():
    grid = grid_of((10, -20, 5), (90.0, 80.0, 70.0), (3.0, 2.0, 4.0))
    bend = random_displacement(grid, 4.0, 30, rng_of(2))
    canvas = new_canvas(grid, bend, np.array([1.1, 0.9, 1.0]))
    wobble = 2 * smooth_noise(grid, 12, rng_of(3))
    for shape in (
        segment((0, -20, -10), (25, -10, 20), 6, 3),
        ellipsoid((12, -25, 10), (15, 6, 9), frame((1, 1, 0.5))),
    ):
        paint(canvas, shape, "liver", grow=1.5, wobble=wobble)
        expected = shape.distance(canvas.places) < wobble + 1.5
        assert np.array_equal(canvas.labels == TISSUES["liver"], expected)
        canvas.labels[:] = 0


def test_vessel_trees_follow_murrays_law_within_their_shrinkage():
    tree = grow_trees(np.zeros((1, 3)), np.array([[0, 0, 2.0]]), np.array([4.0]), rng_of(6))
    assert tree.radius[0] == 4.0
    assert tree.radius.min() >= 0.6
    children = tree.radius[1:3]
    assert (children**3).sum() == pytest.approx((0.94 * 4.0) ** 3)
    np.testing.assert_allclose(tree.start[1:3], tree.end[[0, 0]])


# Anatomy


def test_equal_seeds_give_equal_subjects_and_other_seeds_do_not():
    first, again, other = (make_subject("heart", rng_of(s), 5.0) for s in (1, 1, 2))
    assert np.array_equal(first.labels, again.labels)
    assert (first.labels != other.labels).mean() > 0.1


def test_anatomy_does_not_depend_on_the_spacing():
    coarse = make_subject("heart", rng_of(7), 6.0, field_mm=(170, 172, 148))
    fine = make_subject("heart", rng_of(7), 2.0, field_mm=(170, 172, 148))
    places = [coarse.grid.axis_mm(a) for a in range(3)]
    index = [
        np.rint((p - fine.grid.origin[a]) / 2.0).astype(int).clip(0, fine.labels.shape[a] - 1)
        for a, p in enumerate(places)
    ]
    nearest = fine.labels[np.ix_(*index)]
    atria = nearest == TISSUES["left_atrium"], coarse.labels == TISSUES["left_atrium"]
    assert 2 * (atria[0] & atria[1]).sum() / (atria[0].sum() + atria[1].sum()) > 0.9


def test_volumes_of_organs_are_those_of_adults():
    def milliliters(subject: PhantomSubject, *names: str) -> float:
        return is_tissue(subject, *names).sum() * float(np.prod(subject.spacing)) / 1000

    heart = make_subject("heart", rng_of(5), 4.0)
    assert 30 < milliliters(heart, "left_atrium") < 160
    assert 40 < milliliters(heart, "left_ventricle") < 200
    abdomen = make_subject("abdomen", rng_of(6), 5.0)
    assert 900 < milliliters(abdomen, *LIVER) < 2600
    assert 80 < milliliters(abdomen, "spleen") < 450
    chest = make_subject("chest", rng_of(6), 6.0)
    assert 2000 < milliliters(chest, "lung", "lung_vessel") < 8000
    brain = make_subject("brain", rng_of(6), 3.0)
    assert 900 < milliliters(brain, "gray_matter", "white_matter", "deep_nuclei") < 1600


def test_the_left_side_is_on_the_left():
    subject = make_subject("abdomen", rng_of(8), 6.0)
    x = subject.grid.axis_mm(0)

    def mean_x(*names: str) -> float:
        return float(x[np.nonzero(is_tissue(subject, *names))[0]].mean())

    assert mean_x(*LIVER) > 20
    assert mean_x("spleen") < -50
    heart = make_subject("heart", rng_of(8), 5.0)
    x = heart.grid.axis_mm(0)
    left, right = (
        x[np.nonzero(is_tissue(heart, side))[0]].mean()
        for side in ("left_ventricle", "right_atrium")
    )
    assert left < right


def test_atrophy_widens_csf_and_takes_cortex_and_hippocampus():
    bodies = [make_subject("brain", rng_of(9), 2.5, atrophy=a) for a in (0.1, 0.5, 0.9)]
    for names, grows in ((("csf",), True), (("hippocampus",), False), (("gray_matter",), False)):
        sizes = [int(is_tissue(body, *names).sum()) for body in bodies]
        assert sizes == sorted(sizes, reverse=not grows), names
        assert sizes[0] != sizes[2]


def test_tumors_have_their_parts_and_low_grade_ones_no_thick_rim(brain: PhantomSubject):
    assert all(is_tissue(brain, part).any() for part in TUMOR)
    share = []
    for grade in ("HGG", "LGG"):
        bodies = [make_subject("brain", rng_of(10, k), 4.0, tumor=grade) for k in range(4)]
        rim = sum(is_tissue(body, "enhancing_tumor").sum() for body in bodies)
        share.append(rim / sum(is_tissue(body, *TUMOR).sum() for body in bodies))
    assert share[0] > 2 * share[1]


def test_nodules_lie_where_they_are_said_to():
    subject = make_subject("chest", rng_of(11), 4.0, num_nodules=5)
    nodules = subject.facts["nodules"]
    assert len(nodules) >= 4
    to_voxel = np.linalg.inv(subject.affine)
    marked = np.argwhere(is_tissue(subject, "nodule", "ground_glass"))
    for nodule in nodules:
        voxel = to_voxel[:3, :3] @ nodule.center + to_voxel[:3, 3]
        assert np.linalg.norm((marked - voxel) * 4.0, axis=1).min() <= nodule.diameter / 2 + 4


@pytest.mark.parametrize(
    ("kind", "options"),
    [("knee", {}), ("chest", {"num_lesions": 2}), ("brain", {"tumor": "WHO"})],
)
def test_unknown_kinds_and_options_are_refused(kind: str, options: dict):
    with pytest.raises(ConfigError):
        make_subject(kind, rng_of(0), 8.0, **options)


@pytest.mark.parametrize("spacing", [0.0, -1.0, float("nan"), (1.0, 2.0)])
def test_impossible_spacings_are_refused(spacing):
    with pytest.raises(ConfigError):
        make_subject("heart", rng_of(0), spacing)


# CT


def test_hu_without_noise_are_those_of_the_table(heart: PhantomSubject):
    plain = heart._replace(variation=np.zeros_like(heart.variation))
    hu = render_ct(plain, rng_of(0), STILL).array
    for name in ("fat", "muscle", "left_ventricle"):
        inner = is_tissue(plain, name)
        expected = tissue_values("hu")[TISSUES[name]]
        assert np.median(hu[inner]) == pytest.approx(expected, abs=12), name
    arterial = render_ct(plain, rng_of(0), STILL, phase="arterial").array
    assert np.median(arterial[is_tissue(plain, "left_atrium")]) == pytest.approx(350, abs=12)


def test_noise_has_the_scanners_strength_in_the_middle(heart: PhantomSubject):
    loud = replace(STILL, noise_hu=30.0, edge=0.9)
    difference = render_ct(heart, rng_of(1), loud).array.astype(float)
    difference -= render_ct(heart, rng_of(1), STILL).array
    middle = tuple(slice(side // 2 - 8, side // 2 + 8) for side in heart.labels.shape)
    assert difference[middle].std() == pytest.approx(loud.noise_hu, rel=0.2)


def test_outside_the_round_field_of_view_is_the_padding_value():
    subject = make_subject("chest", rng_of(2), 8.0)
    hu = render_ct(subject, rng_of(2), CT_SCANNERS["sharp"]).array
    assert hu.dtype == np.int16
    assert (hu[0, 0] == -3024).all()
    assert hu[hu != -3024].min() >= -1024


def test_an_unknown_phase_is_refused(heart: PhantomSubject):
    with pytest.raises(ConfigError, match="portal"):
        render_ct(heart, rng_of(0), STILL, phase="venous")


# MR


def signals(brain: PhantomSubject, sequence: str, scanner: str = "north_1.5T") -> dict[str, float]:
    values = tissue_signal(brain, sequence, MR_SCANNERS[scanner], rng_of(0))
    return {name: float(values[value]) for name, value in TISSUES.items()}


def test_contrasts_are_those_that_every_reader_knows(brain: PhantomSubject):
    t1, t1c = signals(brain, "T1"), signals(brain, "T1c")
    assert t1["fat"] > t1["white_matter"] > t1["gray_matter"] > t1["csf"]
    assert t1c["enhancing_tumor"] > 1.25 * t1["enhancing_tumor"]
    assert t1c["white_matter"] == pytest.approx(t1["white_matter"])
    t2, flair = signals(brain, "T2"), signals(brain, "FLAIR")
    assert t2["csf"] > 1.5 * t2["gray_matter"] > 1.5 * t2["white_matter"]
    assert flair["edema"] > 1.05 * flair["gray_matter"] > 2 * flair["csf"]
    heart = signals(brain, "bSSFP")
    assert heart["left_atrium"] > 1.5 * heart["myocardium"]
    assert heart["left_atrium"] == pytest.approx(heart["aorta"], rel=0.2)


def test_the_spin_echo_signal_is_its_equation():
    subject = make_subject("heart", rng_of(3), 20.0)
    subject = subject._replace(variation=np.zeros_like(subject.variation))
    jitter = np.exp(rng_of(8).normal(0, 0.06, 3))
    found = tissue_signal(subject, "T2", MR_SCANNERS["north_1.5T"], rng_of(8))
    tr, te = 4500 * jitter[0], 92 * jitter[1]
    liver = 0.80 * (1 - np.exp(-tr / 590)) * np.exp(-te / 46)
    assert found[TISSUES["liver"]] == pytest.approx(liver, rel=1e-4)


def test_air_holds_rician_noise_of_the_coils(heart: PhantomSubject):
    empty = heart._replace(labels=np.zeros_like(heart.labels))
    empty.labels[0, 0, :] = TISSUES["fat"]
    scanner = MR_SCANNERS["east_3T"]
    stored = render_mr(empty, rng_of(9), "bSSFP", scanner).array[20:].astype(float)
    # Rayleigh distribution: mean / standard deviation = sqrt(pi / (4 - pi)).
    assert stored.mean() / stored.std() == pytest.approx(np.sqrt(np.pi / (4 - np.pi)), rel=0.03)


def test_a_stripped_brain_has_a_background_of_exactly_zero(brain: PhantomSubject):
    stored = render_mr(brain, rng_of(1), "T1", MR_SCANNERS["south_1.5T"], stripped=True).array
    skull = is_tissue(
        brain, "air", "skin", "fat", "muscle", "cortical_bone", "marrow", "eye", "gas"
    )
    assert (stored[skull] == 0).all()
    assert (stored[~skull] > 0).all()


def test_the_four_sequences_of_a_subject_share_its_relaxation_times(brain: PhantomSubject):
    other = brain._replace(variation=-brain.variation)
    assert signals(brain, "T2") == signals(brain, "T2")
    assert signals(brain, "T2")["edema"] != signals(other, "T2")["edema"]


def test_most_mr_scans_end_below_4000_and_some_above():
    subject = make_subject("brain", rng_of(12), 8.0)
    highest = [
        render_mr(subject, rng_of(12, k), "T1", scanner).array.max()
        for k in range(20)
        for scanner in MR_SCANNERS.values()
    ]
    assert 0 < np.mean(np.array(highest) > 4000) < 0.25


def test_a_thick_slice_averages_what_lies_in_it():
    grid = grid_of((0, 0, 0), (6.0, 6.0, 24.0), (1.5, 1.5, 1.5))
    signal = np.zeros(grid.shape, np.float32)
    signal[:, :, 9] = 1.0  # in the third slice of four voxels, whose center lies at 9.5
    scanner = replace(MR_SCANNERS["north_1.5T"], noise=0.0, slice_mm=6.0)
    acquired = acquired_in_slices(signal, grid, scanner, rng_of(0))
    slice_mean, distances = 0.25, np.abs(np.arange(16) - 9.5) / 4
    np.testing.assert_allclose(acquired[2, 1], slice_mean * np.clip(1 - distances, 0, 1))


# Difficulty


def best_window_dice(values: np.ndarray, target: np.ndarray, inside: np.ndarray) -> float:
    """Dice of the best intensity window, chosen knowing the answer."""
    values, target = values[inside], target[inside]
    edges = np.linspace(*np.percentile(values, [0.1, 99.9]), 49)
    hits = np.concatenate([[0], np.histogram(values[target], edges)[0].cumsum()])
    taken = np.concatenate([[0], np.histogram(values, edges)[0].cumsum()])
    overlap = hits[None, :] - hits[:, None]
    size = taken[None, :] - taken[:, None]
    return float((2 * overlap / np.maximum(size + target.sum(), 1)).max())


def test_no_threshold_finds_the_left_atrium():
    for seed in range(3):
        subject = make_subject("heart", rng_of(20, seed), 4.0)
        target, inside = is_tissue(subject, "left_atrium"), subject.labels > 0
        ct = render_ct(subject, rng_of(seed), CT_SCANNERS["soft"], phase="arterial").array
        mr = render_mr(subject, rng_of(seed), "bSSFP", MR_SCANNERS["north_1.5T"]).array
        assert best_window_dice(ct, target, inside) < 0.5
        assert best_window_dice(mr, target, inside) < 0.5


def test_no_threshold_finds_tumors_of_the_brain_in_flair():
    found = []
    for seed in range(8):
        subject = make_subject("brain", rng_of(21, seed), 4.0, tumor=("HGG", "LGG")[seed % 2])
        scanner = list(MR_SCANNERS.values())[seed % 4]
        flair = render_mr(subject, rng_of(seed), "FLAIR", scanner, stripped=True).array
        found.append(best_window_dice(flair, is_tissue(subject, *TUMOR), flair > 0))
    assert np.mean(found) < 0.6
    assert max(found) < 0.9


def test_no_threshold_finds_the_liver_or_its_lesions():
    for seed in range(3):
        subject = make_subject("abdomen", rng_of(22, seed), 5.0, num_lesions=4)
        ct = render_ct(subject, rng_of(seed), CT_SCANNERS["soft"], phase="portal").array
        lesion = is_tissue(subject, "liver_lesion")
        assert best_window_dice(ct, lesion, subject.labels > 0) < 0.3
        assert best_window_dice(ct, lesion, is_tissue(subject, *LIVER)) < 0.75
        assert best_window_dice(ct, is_tissue(subject, *LIVER), subject.labels > 0) < 0.8


def test_not_even_the_true_atrophy_settles_the_diagnosis():
    rng = rng_of(0)
    patients, controls = (
        np.array([draw_atrophy(patient, rng) for _ in range(2000)]) for patient in (True, False)
    )
    auc = (patients[:, None] > controls[None, :]).mean()
    assert 0.85 < auc < 0.97


# Layouts


def hashes(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_subject_is_the_same_bytes_however_many_there_are(tmp_path: Path):
    for name, count in (("one", 1), ("two", 2), ("again", 2)):
        write_corpus("lits2017", tmp_path / name, count, 3, "toy")
    one, two, again = (hashes(tmp_path / name) for name in ("one", "two", "again"))
    assert two == again
    assert one.items() <= two.items()
    assert two["volume-0.nii"] != two["volume-1.nii"]


@pytest.mark.slow
def test_workers_write_the_same_bytes(tmp_path: Path):
    write_corpus("brats2018", tmp_path / "one", 3, 1, "toy", num_workers=1)
    write_corpus("brats2018", tmp_path / "two", 3, 1, "toy", num_workers=2)
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")


@pytest.mark.parametrize(
    ("name", "cases"),
    [
        ("luna16", 3),
        ("lits2017", 3),
        ("brats2018", 16),
        ("msd_heart", 3),
        ("mmwhs", 6),
        ("adni", 3),
    ],
)
def test_readers_accept_the_corpus_without_errors(tmp_path: Path, name: str, cases: int):
    write_corpus(name, tmp_path / name, 4 if name == "brats2018" else 3, 0, "toy")
    survey = inspect(get_corpus(name), tmp_path / name)
    assert len(survey.cases) == cases
    assert [f for f in survey.findings if f.severity == "error"] == []
    assert "SYNTHETIC" in (tmp_path / name / "SYNTHETIC.txt").read_text()


@pytest.mark.parametrize(
    ("corpus", "traps", "subjects"),
    [
        ("luna16", ("candidate_outside", "unknown_seriesuid"), 2),
        ("lits2017", ("empty_label", "geometry_mismatch", "label_out_of_range", "nan_voxels"), 3),
        ("lits2017", ("false_spacing",), 2),
        ("brats2018", BRATS_TRAPS, 4),
        ("msd_heart", MSD_TRAPS, 5),
        ("mmwhs", ("empty_label", "geometry_mismatch", "label_out_of_range"), 3),
        ("mmwhs", ("nan_voxels", "stray_421"), 2),
        ("adni", ("duplicate_subject", "nan_voxels"), 2),
    ],
)
def test_each_trap_is_planted_and_found(
    tmp_path: Path, corpus: str, traps: tuple[str, ...], subjects: int
):
    folder = tmp_path / corpus
    write_corpus(corpus, folder, subjects, 0, "toy", traps=traps)
    assert sorted(planted_traps(folder)) == sorted(traps)
    codes = {finding.code for finding in inspect(get_corpus(corpus), folder).findings}
    assert {"several_scans" if t == "duplicate_subject" else t for t in traps} <= codes


def test_only_the_named_volumes_have_a_false_spacing(tmp_path: Path):
    write_corpus("lits2017", tmp_path / "c", 2, 0, "toy", traps=["false_spacing"])
    names = sorted(path.name for path in (tmp_path / "c").glob("volume-*.nii"))
    assert names == ["volume-27.nii", "volume-28.nii"]
    assert planted_traps(tmp_path / "c") == {"false_spacing": ["volume-28.nii"]}


def test_annotated_nodules_lie_in_the_lungs_of_their_volume(tmp_path: Path):
    sitk = pytest.importorskip("SimpleITK")
    write_corpus("luna16", tmp_path / "c", 4, 2, "tiny")  # the fourth has another voxel order
    rows = (tmp_path / "c" / "annotations.csv").read_text().splitlines()[1:]
    assert len(rows) >= 4
    for row in rows:
        series, *place, diameter = row.split(",")
        lungs = sitk.ReadImage(str(tmp_path / "c" / "seg-lungs-LUNA16" / f"{series}.mhd"))
        x, y, z = lungs.TransformPhysicalPointToIndex([float(v) for v in place])
        block = sitk.GetArrayFromImage(lungs)[z - 1 : z + 2, y - 1 : y + 2, x - 1 : x + 2]
        assert np.isin(block, (3, 4)).any()
        assert float(diameter) > 3


def test_candidates_hold_a_hit_a_nodule_and_mostly_false_ones(tmp_path: Path):
    write_corpus("luna16", tmp_path / "c", 2, 2, "toy")
    counts = {}
    for name in ("annotations", "candidates", "candidates_V2"):
        rows = (tmp_path / "c" / f"{name}.csv").read_text().splitlines()[1:]
        counts[name] = (len(rows), sum(row.endswith(",1") for row in rows))
    nodules = counts["annotations"][0]
    assert counts["candidates"][1] == nodules
    assert nodules <= counts["candidates_V2"][1] <= 2 * nodules
    assert counts["candidates_V2"][0] > 4 * counts["candidates_V2"][1]


def test_dataset_json_lists_what_is_there(tmp_path: Path):
    write_corpus("msd_heart", tmp_path / "c", 3, 0, "toy")
    root = tmp_path / "c" / "Task02_Heart"
    listing = json.loads((root / "dataset.json").read_text())
    assert (listing["numTraining"], listing["numTest"]) == (2, 1)
    for entry in listing["training"]:
        assert (root / entry["image"]).is_file()
        assert (root / entry["label"]).is_file()
    assert (root / listing["test"][0]).is_file()


@pytest.mark.parametrize(
    "change",
    [
        {"name": "kits"},
        {"size": "huge"},
        {"num_subjects": 0},
        {"traps": ["stray_421"]},
    ],
)
def test_arguments_that_make_no_sense_are_refused(tmp_path: Path, change: dict):
    arguments = {"name": "lits2017", "num_subjects": 1, "seed": 0, "size": "toy"} | change
    with pytest.raises(ConfigError):
        write_corpus(folder=tmp_path / "c", **arguments)
    assert not (tmp_path / "c").exists()


def test_a_folder_with_files_is_left_alone(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(ConfigError, match="empty"):
        write_corpus("adni", tmp_path, 1, 0, "toy")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


# Commands


def test_the_write_command_makes_a_corpus_and_reports_errors(tmp_path: Path, capsys):
    arguments = ["write", "adni", str(tmp_path / "c"), "--subjects", "1", "--size", "toy"]
    assert main(arguments) == 0
    assert (tmp_path / "c" / "ADNI").is_dir()
    assert main(arguments) == 2
    assert "error:" in capsys.readouterr().err


def test_the_preview_command_draws_every_kind(tmp_path: Path):
    plt = pytest.importorskip("matplotlib.pyplot")
    assert main(["preview", str(tmp_path / "p.png"), "--spacing", "7"]) == 0
    picture = plt.imread(tmp_path / "p.png")
    assert picture.shape[0] > 1000
    assert picture[..., :3].std() > 0.1


@pytest.mark.slow
def test_a_processors_instructions_move_very_few_voxels(tmp_path):
    # NumPy takes the widest it finds: AVX-512 against AVX2, or AVX2 against none.
    found = np.show_config(mode="dicts")["SIMD Extensions"]["found"]
    left_out = [name for name in found if name != "X86_V3"] or found
    if not left_out:
        pytest.skip("NumPy takes the plainest instructions here")
    for folder, disabled in (("all", []), ("fewer", left_out)):
        command = [sys.executable, "-m", "training.corpora.phantom", "write", "adni"]
        environment = {**os.environ, "NPY_DISABLE_CPU_FEATURES": " ".join(disabled)}
        options = [str(tmp_path / folder), "--subjects", "16", "--size", "small"]
        subprocess.run([*command, *options], env=environment, check=True, cwd=ROOT)
    moved = voxels = 0
    for path in sorted((tmp_path / "all").rglob("*.nii")):
        other = tmp_path / "fewer" / path.relative_to(tmp_path / "all")
        one, two = (nib.load(p) for p in (path, other))
        np.testing.assert_allclose(one.affine, two.affine, rtol=1e-12)
        apart = np.asarray(one.dataobj) != np.asarray(two.dataobj)
        moved, voxels = moved + np.count_nonzero(apart), voxels + apart.size
    assert 0 < moved < 1e-5 * voxels
