"""Settings, orientation, modality, scaling, warnings, and the doors for training code."""

import json
import pickle
import warnings
from types import SimpleNamespace

import monai.transforms
import numpy as np
import pytest
import torch
from nibabel.orientations import aff2axcodes
from torch.utils.data import DataLoader

from universal_model_hub.errors import ConfigError, TooLargeError, VolumeError
from universal_model_hub.preprocess import (
    Preprocessing,
    PreprocessRecord,
    PreprocessTransform,
    PreprocessWarning,
    VolumeDataset,
    model_shape,
    preprocess,
)
from universal_model_hub.preprocess.modality import recognized
from universal_model_hub.preprocess.orientation import closest_axes, orient
from universal_model_hub.volume import Volume, save_volume


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def ct(shape=(24, 20, 12), spacing=(0.75, 0.875, 2.5), seed=0) -> Volume:
    """Air, a body at 40 HU, bone at 700 HU."""
    array = np.full(shape, -1000.0)
    x, y, z = (n // 4 for n in shape)
    array[x:-x, y:-y, z:-z] = 40
    array[shape[0] // 2 :, y : 2 * y, z:-z] = 700
    array += np.random.default_rng(seed).normal(0, 15, shape)
    return Volume(array.astype(np.int16), np.diag([*spacing, 1.0]))


def mr(shape=(20, 18, 10), spacing=(1.0, 1.0, 1.0), seed=0) -> Volume:
    array = np.abs(np.random.default_rng(seed).normal(300, 200, shape))
    return Volume(array.astype(np.uint16), np.diag([*spacing, 1.0]))


# Settings

CONTRACT = {
    "orientation": "RAS",
    "spacing": [1, 1, 1],
    "order": 3,
    "CT": {"clip": [-1000, 1000]},
    "MR": {"clip": [0, 4000]},
}


def test_the_defaults_are_the_contract():
    assert Preprocessing().to_json() == CONTRACT
    assert json.dumps(Preprocessing().to_json()) == json.dumps(CONTRACT)  # integers, not 1.0
    assert Preprocessing.from_json(CONTRACT) == Preprocessing.from_json({}) == Preprocessing()


@pytest.mark.parametrize(
    "settings",
    [
        Preprocessing(spacing=None),
        Preprocessing(orientation="LPS", spacing=(0.5, 0.75, 3.0), order=1),
        Preprocessing(ct_clip=(-150.5, 250.0), mr_clip=(0, 1500), ct_rescale="volume"),
        Preprocessing(mr_rescale="window", order=0),
    ],
)
def test_settings_survive_json(settings):
    assert Preprocessing.from_json(json.loads(json.dumps(settings.to_json()))) == settings


def test_native_spacing_is_a_word_or_null():
    for value in ("native", None):
        assert Preprocessing.from_json({"spacing": value}).spacing is None


@pytest.mark.parametrize(
    ("junk", "word"),
    [
        (None, "preprocessing"),
        ([], "preprocessing"),
        ({"spacing": [0, 1, 1]}, "spacing"),
        ({"spacing": [1, 1]}, "spacing"),
        ({"spacing": 1}, "spacing"),
        ({"spacing": [1, 1, float("nan")]}, "spacing"),
        ({"spacing": [1, 1, True]}, "spacing"),
        ({"spacing": [1, 1, 10**400]}, "spacing"),
        ({"spacing": "small"}, "spacing"),
        ({"orientation": "RAR"}, "orientation"),
        ({"orientation": "ras"}, "orientation"),
        ({"orientation": ["R", "A", "S"]}, "orientation"),
        ({"order": 2}, "order"),
        ({"order": "3"}, "order"),
        ({"order": True}, "order"),
        ({"order": []}, "order"),
        ({"CT": None}, "CT"),
        ({"CT": {"clip": [1000, -1000]}}, "CT clip"),
        ({"CT": {"clip": [0, 0]}}, "CT clip"),
        ({"MR": {"clip": [0, float("inf")]}}, "MR clip"),
        ({"MR": {"clip": "0-4000"}}, "MR clip"),
        ({"MR": {"rescale": "z-score"}}, "MR rescale"),
        ({"MR": {"rescale": []}}, "MR rescale"),
        ({"PET": {"clip": [0, 1]}}, "PET"),
        ({"CT": {"window": [0, 1]}}, "window"),
        ({1: 2}, "1"),
    ],
)
def test_w13_junk_settings_are_refused_by_name(junk, word):
    with pytest.raises(ConfigError, match=word):
        Preprocessing.from_json(junk)


def test_settings_come_from_a_model_a_config_or_a_mapping():
    settings = Preprocessing(spacing=(2, 2, 2))
    volume = ct()
    expected, _ = preprocess(volume, settings, "CT")
    for source in (
        SimpleNamespace(preprocessing=settings),
        {"preprocessing": settings.to_json()},
        {"preprocessing": settings},
    ):
        assert torch.equal(preprocess(volume, source, "CT")[0], expected)
    for wrong in ({}, SimpleNamespace(), None, {"preprocessing": None}):
        with pytest.raises(ConfigError, match="Expected a Preprocessing"):
            preprocess(volume, wrong, "CT")


# Orientation


def turned(degrees: float, axis: int) -> np.ndarray:
    angle = np.radians(degrees)
    i, j = [a for a in range(3) if a != axis]
    affine = np.eye(4)
    affine[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
    return affine


@pytest.mark.parametrize("codes", ["RAS", "LPS", "SRA", "PIR"])
def test_oriented_axes_point_where_the_codes_say(codes):
    rng = np.random.default_rng(0)
    for _ in range(20):
        order, signs = rng.permutation(3), rng.choice([-1.0, 1.0], 3)
        affine = turned(rng.uniform(-40, 40), int(rng.integers(3)))
        affine[:3, :3] = (affine[:3, :3] * rng.uniform(0.5, 5, 3) * signs)[:, order]
        volume = Volume(np.zeros((3, 4, 5), np.int16), affine)
        _, record = preprocess(volume, Preprocessing(codes, None), "MR")
        assert "".join(aff2axcodes(record.model_affine)) == codes


def test_a_tilt_of_exactly_45_degrees_is_resolved_alike_however_it_is_stored():
    array = np.arange(60).reshape(3, 4, 5)
    affine = turned(45, 2)
    found = set()
    for columns, signs in ((p, s) for p in ((0, 1, 2), (1, 0, 2), (2, 1, 0)) for s in (1, -1)):
        noise = np.random.default_rng(len(found)).normal(0, 1e-12, (4, 4))
        stored = affine.copy() + noise
        stored[:3, :3] = signs * stored[:3, columns]
        version = orient(array, columns, [signs < 0] * 3)
        found.add(orient(version, *closest_axes(stored, "RAS")).tobytes())
    assert len(found) == 1


def test_only_whole_axes_move_so_an_oblique_scan_keeps_its_tilt():
    affine = turned(20, 0) @ np.diag([1, 1, 1, 1.0])
    volume = Volume(np.random.default_rng(0).normal(size=(5, 6, 7)).astype(np.float32), affine)
    cube, record = preprocess(volume, Preprocessing(mr_clip=(-9, 9), mr_rescale="window"), "MR")
    np.testing.assert_allclose(record.model_affine, affine)
    np.testing.assert_allclose(cube[0, 0] * 18 - 9, volume.array, atol=1e-5)


# Grid


@pytest.mark.parametrize(
    ("shape", "spacing", "expected"),
    [
        ((512, 512, 133), (0.703125, 0.703125, 2.5), (360, 360, 332)),  # round(332.5) is even
        ((24, 20, 12), (0.8, 0.9, 2.5), (19, 18, 30)),
        ((3, 1, 1), (0.1, 0.1, 8), (1, 1, 8)),
        ((64, 64, 64), (1, 1, 1), (64, 64, 64)),
    ],
)
def test_the_model_grid_keeps_field_of_view_center_and_spacing(shape, spacing, expected):
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = -30, 10, 500
    volume = Volume(np.broadcast_to(np.int16(0), shape), affine)
    assert model_shape(volume, Preprocessing()) == expected
    small = Volume(np.zeros((1, 1, 1), np.int16), affine)
    _, record = preprocess(small, Preprocessing(), "MR")
    np.testing.assert_allclose(np.diag(record.model_affine), 1)
    middle = record.model_affine @ [*((n - 1) / 2 for n in record.model_shape), 1]
    np.testing.assert_allclose(middle[:3], [-30, 10, 500], atol=1e-9)


def test_a_spacing_that_float32_shaved_is_not_interpolated():
    affine = np.diag([np.float32(0.99999994), 1, 1.0000001, 1]).astype(float)
    volume = Volume(mr().array, affine)
    cube, record = preprocess(volume, Preprocessing(mr_clip=(0, 9000)), "MR")
    assert record.scale == (1, 1, 1)
    low, high = record.intensity_range
    expected = (torch.from_numpy(volume.array.astype(np.float32)) - low) / (high - low)
    assert torch.equal(cube[0, 0], expected)


def test_native_spacing_keeps_the_voxels():
    volume = ct()
    cube, record = preprocess(volume, Preprocessing(spacing=None), "CT")
    expected = (np.clip(volume.array, -1000, 1000).astype(np.float32) + 1000) / 2000
    assert np.array_equal(cube[0, 0].numpy(), expected)
    assert np.array_equal(record.model_affine, volume.affine)


def test_i14_units_gone_wrong_are_refused_before_any_memory_is_taken():
    meters = Volume(np.zeros((64, 64, 64), np.int16), np.diag([1e5, 1e5, 1e5, 1]))
    with pytest.raises(TooLargeError, match=r"at most 8.0 GiB.*GiB"):
        preprocess(meters, Preprocessing(), "MR")
    with pytest.raises(TooLargeError, match="max_bytes"):
        preprocess(ct(), Preprocessing(), "CT", max_bytes=1000)


# Intensities


def test_ct_is_scaled_by_the_window_so_that_hounsfield_units_stay_absolute():
    array = np.array([-3024, -1000, -500, 0, 250, 1000, 3071], np.int16).reshape(7, 1, 1)
    volume = Volume(np.repeat(array, 4, axis=1), np.eye(4))
    cube, record = preprocess(volume, Preprocessing(), "CT")
    assert cube[0, 0, :, 0, 0].tolist() == [0, 0, 0.25, 0.5, 0.625, 1, 1]
    assert record.intensity_range == (-1000, 1000)


def test_mr_is_scaled_by_its_own_extremes_after_clipping():
    array = np.array([100, 200, 1100, 9000], np.uint16).reshape(4, 1, 1)
    cube, record = preprocess(Volume(array, np.eye(4)), Preprocessing(), "MR")
    np.testing.assert_allclose(cube[0, 0, :, 0, 0], [0, 100 / 3900, 1000 / 3900, 1], rtol=1e-6)
    assert record.intensity_range == (100, 4000)


def test_either_rule_can_be_set_for_either_modality():
    volume = Volume(np.array([0, 500, 2000], np.int16).reshape(3, 1, 1), np.eye(4))
    paper = Preprocessing(ct_rescale="volume", mr_rescale="window")
    with pytest.warns(PreprocessWarning, match="intercept"):
        by_volume, _ = preprocess(volume, paper, "CT")
    by_window, _ = preprocess(volume, paper, "MR")
    assert by_volume[0, 0, :, 0, 0].tolist() == [0, 0.5, 1]
    assert by_window[0, 0, :, 0, 0].tolist() == [0, 0.125, 0.5]


@pytest.mark.parametrize("value", [-2000, 0, 40, 5000])
@pytest.mark.parametrize("modality", ["CT", "MR"])
@pytest.mark.filterwarnings("ignore::universal_model_hub.preprocess.PreprocessWarning")
def test_i19_a_constant_volume_gives_no_nan(value, modality):
    volume = Volume(np.full((5, 4, 3), value, np.int16), np.diag([0.7, 1, 3, 1]))
    cube, _ = preprocess(volume, Preprocessing(ct_rescale="volume"), modality)
    assert torch.equal(cube, torch.zeros_like(cube))
    cube, _ = preprocess(volume, Preprocessing(mr_rescale="window"), modality)
    low, high = Preprocessing().clip(modality)
    np.testing.assert_allclose(cube, (np.clip(value, low, high) - low) / (high - low), atol=1e-6)


def test_padding_does_not_ring_into_the_tissue_beside_it():
    array = np.full((40, 8, 8), 40, np.int16)
    array[:20] = -3024
    volume = Volume(array, np.diag([0.7, 0.7, 0.7, 1]))
    cube, _ = preprocess(volume, Preprocessing(), "CT")
    # A cubic spline overshoots a step by at most a fifth of it: here of 1,040 and not of 3,064 HU.
    assert (cube * 2000 - 1000).max() < 40 + 0.2 * 1040


@pytest.mark.parametrize("order", [0, 1, 3])
def test_the_result_is_float32_within_0_and_1_and_the_volume_is_left_alone(order):
    rng = np.random.default_rng(0)
    array = rng.integers(-3000, 3000, (15, 14, 13)).astype(np.int16)
    before = array.copy()
    array.flags.writeable = False
    volume = Volume(array, np.diag([0.7, 1.1, 2.2, 1]))
    for modality in ("CT", "MR"):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", PreprocessWarning)
            cube, _ = preprocess(volume, Preprocessing(order=order), modality)
        assert cube.dtype == torch.float32
        assert cube.shape == (1, 1, *model_shape(volume, Preprocessing()))
        assert cube.is_contiguous()
        assert cube.min() == 0
        assert cube.max() == 1
        cube.zero_()
    assert np.array_equal(array, before)


@pytest.mark.parametrize("where", ["everywhere", "one voxel"])
def test_i18_nan_is_refused(where):
    array = mr((120, 110, 100)).array.astype(np.float32)  # large enough to be sampled sparsely
    if where == "everywhere":
        array[:] = np.nan
    array[1, 1, 1] = np.nan
    with pytest.raises(VolumeError, match="NaN"):
        preprocess(Volume(array, np.eye(4)), Preprocessing(), "MR")


def test_infinite_voxels_are_clipped():
    array = mr().array.astype(np.float32)
    array[0, 0, 0], array[5, 5, 5] = -np.inf, np.inf
    cube, _ = preprocess(Volume(array, np.diag([0.7, 0.8, 1.3, 1])), Preprocessing(), "MR")
    assert cube.isfinite().all()


# Modality


def test_auto_recognizes_hounsfield_units_and_says_why():
    _, record = preprocess(ct(), Preprocessing())
    assert record.modality == "CT"
    assert "below -500" in record.modality_reason
    _, record = preprocess(mr(), Preprocessing())
    assert record.modality == "MR"
    assert "no Hounsfield units" in record.modality_reason


@pytest.mark.parametrize(
    ("values", "modality", "doubt"),
    [
        (np.r_[np.full(60, -1024.0), np.full(40, 40.0)], "CT", ""),
        (np.r_[np.full(30, -3024.0), np.full(50, 60.0), 3071], "CT", ""),
        (np.r_[np.linspace(-150, 300, 99), 900], "CT", "no air"),  # the inside of an abdomen
        (np.linspace(0, 3000, 100), "MR", ""),
        (np.r_[np.linspace(0, 3000, 999), -3], "MR", ""),  # a spline's overshoot
        (np.linspace(0, 1, 100), "MR", "rescaled"),
        (np.linspace(-1, 1, 100), "MR", "normalized"),
        (np.random.default_rng(0).normal(size=999) * 1.5, "MR", "normalized"),
        (np.linspace(-4096, 4095, 100), "MR", "above 1500"),  # a phase image
        (np.zeros(10), "MR", "constant"),
        (np.full(10, -1000.0), "MR", "constant"),
    ],
)
def test_f11_the_modality_is_told_by_the_intensities_and_doubt_is_named(values, modality, doubt):
    choice = recognized(values)
    assert choice.modality == modality
    assert doubt in choice.doubt
    assert bool(choice.doubt) == bool(doubt)


def test_f11_a_doubtful_guess_is_a_warning_at_the_callers_line():
    volume = Volume(np.linspace(0, 1, 60, dtype=np.float32).reshape(3, 4, 5), np.eye(4))
    with pytest.warns(PreprocessWarning, match=r"Taken as MR.*rescaled.*modality='CT'") as caught:
        _, record = preprocess(volume, Preprocessing())
    assert caught[0].filename == __file__
    assert "rescaled" in record.modality_reason


@pytest.mark.parametrize(
    ("array", "modality", "word"),
    [
        (np.linspace(0, 1, 60, dtype=np.float32), "CT", "no Hounsfield units"),
        (np.zeros(60, np.float32), "CT", "no Hounsfield units"),
        (np.linspace(0, 4095, 60).astype(np.uint16), "CT", "intercept"),
        (np.linspace(-1024, 1500, 60).astype(np.int16), "MR", "look like Hounsfield units"),
    ],
)
def test_f11_intensities_that_contradict_the_given_modality_are_a_warning(array, modality, word):
    volume = Volume(array.reshape(3, 4, 5), np.eye(4))
    with pytest.warns(PreprocessWarning, match=word):
        _, record = preprocess(volume, Preprocessing(), modality)
    assert record.modality == modality


def test_what_fits_gives_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for modality in ("CT", "auto"):
            preprocess(ct(), Preprocessing(), modality)
        for modality in ("MR", "auto"):
            preprocess(mr(), Preprocessing(), modality)


@pytest.mark.parametrize("modality", ["ct", "PET", "", None, 1, ["CT"]])
def test_an_unknown_modality_is_refused(modality):
    with pytest.raises(ConfigError, match="'CT', 'MR' or 'auto'"):
        preprocess(ct(), Preprocessing(), modality)


# What the weights saw

SEEN = {
    "modalities": ["CT"],
    "spacing": [[0.5, 0.5, 0.5], [3, 3, 3]],
    "field_of_view_mm": [[10, 10, 10], [500, 500, 500]],
    "intensity": {"CT": [-1000, 1000]},
}


def seen_warning(volume, modality="CT", **changes):
    config = {"preprocessing": CONTRACT, "seen": {**SEEN, **changes}}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        preprocess(volume, config, modality)
    messages = [str(w.message) for w in caught]
    assert len(messages) <= 1
    return messages[0] if messages else ""


def test_a_scan_within_what_was_seen_gives_no_warning():
    assert seen_warning(ct()) == ""
    assert seen_warning(ct(), modalities=None, spacing=None, intensity={}) == ""


@pytest.mark.parametrize(
    ("volume", "modality", "changes", "words"),
    [
        (ct(spacing=(0.8, 0.9, 5)), "CT", {}, "spacing along z 5 mm (seen: 0.5 to 3 mm)"),
        (ct(spacing=(0.3, 0.9, 2)), "CT", {}, "spacing along x 0.3 mm; field of view along x"),
        (mr(), "MR", {}, "modality MR (seen: CT)"),
        (ct(), "CT", {"intensity": {"CT": [-200, 300]}}, "intensity -1000 to 7"),
    ],
)
def test_what_lies_outside_what_was_seen_is_named(volume, modality, changes, words):
    message = seen_warning(volume, modality, **changes)
    assert "outside what the weights were trained on" in message
    for part in words.split("; "):
        assert part.split(" mm")[0] in message


def test_axes_are_compared_in_the_models_order():
    thick_x = Volume(ct().array.transpose(2, 0, 1), np.diag([2.5, 0.8, 0.9, 1]))
    assert "spacing along x" in seen_warning(thick_x, spacing=[[0.5] * 3, [1, 1, 3]])
    axes = np.zeros((4, 4))
    axes[[2, 0, 1, 3], [0, 1, 2, 3]] = 2.5, 0.8, 0.9, 1  # the first axis runs along z
    thick_z = Volume(thick_x.array, axes)
    assert seen_warning(thick_z, spacing=[[0.5] * 3, [1, 1, 3]]) == ""


@pytest.mark.parametrize("holder", ["model", "config"])
def test_what_was_seen_is_found_on_models_and_configs(holder):
    config = SimpleNamespace(preprocessing=Preprocessing(), seen=SEEN)
    model = SimpleNamespace(preprocessing=Preprocessing(), config=config)
    with pytest.warns(PreprocessWarning, match="modality MR"):
        preprocess(mr(), model if holder == "model" else config, "MR")


@pytest.mark.parametrize(
    "junk",
    [
        {"modalities": "CT"},
        {"spacing": [1, 2]},
        {"spacing": [[1, 1, 1]]},
        {"spacing": [[1, 1], [2, 2]]},
        {"field_of_view_mm": "large"},
        {"intensity": [0, 1]},
        {"intensity": {"CT": 3}},
        {"intensity": {"CT": ["a", "b"]}},
    ],
)
def test_w13_a_malformed_range_is_refused_by_name(junk):
    with pytest.raises(ConfigError, match=next(iter(junk))):
        preprocess(ct(), {"preprocessing": CONTRACT, "seen": junk}, "CT")
    with pytest.raises(ConfigError, match="seen"):
        preprocess(ct(), {"preprocessing": CONTRACT, "seen": [junk]}, "CT")


# The record


def test_the_record_survives_json():
    _, record = preprocess(ct(), Preprocessing("LPI"))
    again = PreprocessRecord.from_json(json.loads(json.dumps(record.to_json())))
    assert again.to_json() == record.to_json()
    values = torch.rand(record.model_shape)
    assert torch.equal(again.back(values), record.back(values))
    assert again.source_affine.dtype == np.float64


@pytest.mark.parametrize(
    ("name", "value"),
    [("axes", [0, 1]), ("source_affine", [[1]]), ("scale", ["a", 1, 1]), ("offset", [1, 1, None])],
)
def test_a_damaged_record_is_refused(name, value):
    entries = preprocess(ct(), Preprocessing())[1].to_json()
    with pytest.raises(ConfigError, match=name):
        PreprocessRecord.from_json({**entries, name: value})
    del entries[name]
    with pytest.raises(ConfigError, match="Expected a record"):
        PreprocessRecord.from_json(entries)


def test_what_belongs_to_another_grid_is_refused():
    _, record = preprocess(ct(), Preprocessing())
    with pytest.raises(VolumeError, match="model grid"):
        record.back(torch.zeros(3, 3, 3))
    with pytest.raises(VolumeError, match="own grid"):
        record.unorient(np.zeros((3, 3, 3)))
    with pytest.raises(TooLargeError):
        record.back(torch.zeros(record.model_shape), max_bytes=100)


# Training code


@pytest.fixture
def scans(tmp_path):
    for seed in range(2):
        save_volume(ct(seed=seed), tmp_path / f"{seed}.nii.gz")
    return sorted(tmp_path.glob("*.nii.gz"))


def test_a_data_set_holds_what_preprocess_gives(scans):
    data = VolumeDataset(scans, Preprocessing(), "CT")
    expected, record = preprocess(ct(seed=1), Preprocessing(), "CT")
    assert len(data) == 2
    assert torch.equal(data[1]["volume"], expected[0])
    assert np.array_equal(data[1]["affine"].numpy(), record.model_affine)
    assert (data[1]["path"], data[1]["modality"]) == (str(scans[1]), "CT")


def test_a_loader_batches_the_data_set(scans):
    batch = next(iter(DataLoader(VolumeDataset(scans, Preprocessing()), batch_size=2)))
    assert batch["volume"].shape == (2, 1, 18, 18, 30)
    assert batch["affine"].shape == (2, 4, 4)
    assert batch["modality"] == ["CT", "CT"]


def test_a_data_set_carries_the_settings_of_a_model_but_not_the_model(scans):
    model = torch.nn.Linear(1000, 1000)
    vars(model)["preprocessing"] = Preprocessing(spacing=(2, 2, 2))
    data = pickle.loads(pickle.dumps(VolumeDataset(scans, model)))
    assert data[0]["volume"].shape == (1, 9, 9, 15)
    assert len(pickle.dumps(data)) < 5000


def test_a_single_path_for_a_list_is_refused(scans):
    with pytest.raises(ConfigError, match="list"):
        VolumeDataset(scans[0], Preprocessing())


def test_a_missing_scan_is_a_typed_error(tmp_path):
    with pytest.raises(VolumeError, match=r"none\.nii"):
        VolumeDataset([tmp_path / "none.nii"], Preprocessing())[0]


def test_the_transform_takes_paths_volumes_and_dictionaries(scans):
    expected, record = preprocess(ct(), Preprocessing(), "CT")
    step = PreprocessTransform(Preprocessing(), modality="CT")
    assert torch.equal(step(str(scans[0])), expected[0])
    assert torch.equal(step(ct()), expected[0])
    given = {"image": scans[0], "label": 3}
    result = step(given)
    assert torch.equal(result["image"], expected[0])
    assert np.array_equal(result["image_affine"].numpy(), record.model_affine)
    assert result["label"] == 3
    assert given == {"image": scans[0], "label": 3}


def test_the_transform_stands_first_in_a_monai_compose(scans):
    compose = monai.transforms.Compose(
        [
            PreprocessTransform(Preprocessing(), keys=("ct",)),
            monai.transforms.SpatialPadd(keys="ct", spatial_size=(32, 32, 32)),
            monai.transforms.RandFlipd(keys="ct", prob=1.0, spatial_axis=0),
        ]
    )
    expected, _ = preprocess(ct(), Preprocessing(), "CT")
    result = compose({"ct": str(scans[0])})
    assert result["ct"].shape == (1, 32, 32, 32)
    # Padded by 7 voxels on either side along x, then mirrored.
    assert np.array_equal(result["ct"][:, 7:25, 7:25, 1:31].numpy(), expected[0].flip(1).numpy())
    plain = monai.transforms.Compose([PreprocessTransform(Preprocessing())])
    assert torch.equal(torch.as_tensor(plain(str(scans[0]))), expected[0])


def test_the_transform_refuses_what_it_cannot_read(scans):
    step = PreprocessTransform(Preprocessing(), keys="image")
    with pytest.raises(ConfigError, match="image"):
        step({"scan": scans[0]})
    with pytest.raises(ConfigError, match="put it first"):
        step(torch.zeros(3, 3, 3))
