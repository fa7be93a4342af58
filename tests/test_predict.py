"""Whole-volume inference: equal to one pass, within memory, and clear when it cannot be."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_predict_geometry import Threshold
from test_tiles import random_unet
from torch import nn

from universal_model_hub.errors import ConfigError, TooLargeError, VolumeError, WeightsError
from universal_model_hub.heads import ClassificationHead, Classifier
from universal_model_hub.memory import (
    MARGIN,
    MIB,
    SLACK,
    Budget,
    activation_bytes,
    free_bytes,
    memory_budget,
)
from universal_model_hub.networks.unet3d import Encoder, UNet3D
from universal_model_hub.predict import PredictWarning, embed, features, predict
from universal_model_hub.preprocess import Preprocessing, PreprocessWarning, preprocess
from universal_model_hub.volume import Volume, save_volume

ROOT = Path(__file__).parent.parent
# Not `from universal_model_hub import predict`: that is the function.
job_module = importlib.import_module("universal_model_hub.job")
predict_module = importlib.import_module("universal_model_hub.predict")


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def noise_scan(shape=(70, 45, 19), spacing=(1.0, 1.0, 1.0), seed=0) -> Volume:
    array = np.random.default_rng(seed).integers(-900, 900, shape).astype(np.int16)
    return Volume(array, np.diag([*spacing, 1.0]))


def segmenter(**arguments) -> UNet3D:
    model = random_unet(**arguments)
    model.preprocessing = Preprocessing()
    model.head_trained = True
    return model


CHUNKS_HELD = predict_module.CHUNKS_HELD


def tile_limit(model: nn.Module, scan: Volume, side: int, channels=3) -> int:
    """Return a memory limit in which tiles of about ``side`` voxels a side fit."""
    cube = torch.zeros(1, 1, 16, 16, 16)
    _, bytes_per_voxel = activation_bytes(model, cube)
    fixed = scan.array.size * (8 + 2 + CHUNKS_HELD * 4 * channels)
    return int(SLACK + fixed + (bytes_per_voxel + 4 * channels) * side**3)


def count_calls(monkeypatch) -> list[tuple[int, ...]]:
    """Record the shape of every batch that runs."""
    shapes: list[tuple[int, ...]] = []
    original = predict_module.make_job

    def counted(*args, **kwargs):
        job = original(*args, **kwargs)
        job.runner.network.register_forward_pre_hook(
            lambda module, inputs: shapes.append(tuple(inputs[0].shape))
        )
        return job

    monkeypatch.setattr(predict_module, "make_job", counted)
    return shapes


def test_f03_probabilities_equal_one_pass_over_the_whole_scan(monkeypatch):
    model, scan = segmenter(), noise_scan((141, 37, 19))
    grid, _ = preprocess(scan, model, "CT")
    with torch.inference_mode():
        expected = model(grid)[0].softmax(0).numpy()
    shapes = count_calls(monkeypatch)

    maps = predict(
        model,
        scan,
        modality="CT",
        output="probabilities",
        memory_limit=tile_limit(model, scan, 48) + scan.array.size * 24,
    )

    assert len(shapes) > 2  # the probe, and more than one tile
    for index, volume in maps.items():
        np.testing.assert_allclose(volume.array, expected[index], atol=1e-5)


def test_f01_a_volume_smaller_than_any_cube_is_padded_and_cropped_back():
    model, scan = segmenter(), noise_scan((5, 3, 2))
    grid, _ = preprocess(scan, model, "CT")
    with torch.inference_mode():
        expected = model(grid)[0].argmax(0).numpy()

    for tiling in ("exact", "gaussian"):
        labels = predict(model, scan, modality="CT", tiling=tiling)
        assert np.array_equal(labels.array, expected)


def test_f04_a_run_that_cannot_fit_names_need_and_limit(monkeypatch):
    model, scan = segmenter(), Volume(np.zeros((512, 512, 400), np.int16), np.eye(4))
    monkeypatch.setattr(job_module, "preprocess_channels", None)  # never called: the error is first

    with pytest.raises(TooLargeError, match=r"within 1 MiB .*memory_limit.* at least [\d,]+ MiB"):
        predict(model, scan, modality="CT", memory_limit=MIB)
    need = SLACK + scan.array.size * (8 + 2) + 4 * 2**20
    for tiling in ("exact", "gaussian"):
        with pytest.raises(TooLargeError, match=r"answer, [1-9]\d* MiB for the smallest tile"):
            predict(model, scan, modality="CT", memory_limit=need, tiling=tiling)


def test_f04_probabilities_of_many_classes_are_counted_before_the_run():
    model = segmenter(out_channels=100)
    scan = noise_scan((64, 64, 64))

    with pytest.raises(TooLargeError, match="memory_limit"):
        predict(model, scan, modality="CT", output="probabilities", memory_limit=320 * MIB)
    predict(model, noise_scan((16, 16, 16)), modality="CT", memory_limit=320 * MIB)


def test_f05_out_of_memory_starts_over_with_smaller_tiles(monkeypatch):
    class Greedy(Threshold):
        def forward(self, x):
            if x.shape[2:].numel() > 9000:
                raise torch.OutOfMemoryError("out of memory")
            return super().forward(x)

    scan = noise_scan((40, 30, 20))
    expected = predict(Threshold(), scan, modality="CT").array

    with pytest.warns(PredictWarning, match="starting over") as caught:
        labels = predict(Greedy(), scan, modality="CT")

    assert np.array_equal(labels.array, expected)
    assert [str(w.message).split(" voxels")[0].split()[-1] for w in caught] == ["24,000", "12,000"]


def test_f05_without_room_for_the_smallest_tile_it_ends():
    class Greedy(Threshold):
        def forward(self, x):
            if x.shape[2] != 16:  # the probe
                raise torch.OutOfMemoryError("out of memory")
            return super().forward(x)

    with pytest.warns(PredictWarning), pytest.raises(TooLargeError, match="had left"):
        predict(Greedy(), noise_scan((8, 4, 4)), modality="CT")
    with pytest.warns(PredictWarning), pytest.raises(TooLargeError, match="had left"):
        predict(Greedy(), noise_scan((8, 4, 4)), modality="CT", tiling="gaussian")


def test_f06_nonfinite_logits_are_refused():
    model = segmenter()
    model.head.bias.data[1] = torch.nan

    with pytest.raises(WeightsError, match="NaN or infinity in the tile"):
        predict(model, noise_scan((12, 12, 12)), modality="CT")


def test_f07_an_empty_mask_is_a_result_with_a_note():
    scan = noise_scan((9, 9, 9))
    scan.array[...] = np.minimum(scan.array, 90)

    with pytest.warns(PredictWarning, match="taken as CT, has intensities from -9.* to 90"):
        labels = predict(Threshold(), scan, modality="CT")

    assert not labels.array.any()


def test_f09_a_model_in_training_mode_answers_as_in_eval_mode():
    model, scan = segmenter(), noise_scan((24, 17, 9))
    expected = predict(model, scan, modality="CT").array

    labels = predict(model.train(), scan, modality="CT")

    assert model.training
    assert np.array_equal(labels.array, expected)


def test_f10_memory_tile_batch_and_threads_do_not_change_the_answer():
    model, scan = segmenter(), noise_scan((120, 40, 21), spacing=(1.0, 0.8, 1.3))
    limit = tile_limit(model, scan, 50) + scan.array.size * 24
    options = {"modality": "CT", "output": "probabilities"}
    whole = predict(model, scan, **options)

    for changed in ({"memory_limit": limit}, {"memory_limit": 2 * limit, "tile_batch": 2}):
        other = predict(model, scan, **options, **changed)
        for index in whole:
            np.testing.assert_allclose(other[index].array, whole[index].array, atol=1e-5)
    torch.set_num_threads(2)
    again = predict(model, scan, modality="CT").array
    torch.set_num_threads(1)
    assert np.array_equal(again, predict(model, scan, modality="CT").array)


def test_f11_intensities_of_another_range_are_warned_of():
    scan = Volume(np.random.default_rng(0).random((12, 12, 12), np.float32), np.eye(4))

    with (
        pytest.warns(PredictWarning, match="No voxel got a label"),
        pytest.warns(PreprocessWarning, match="no Hounsfield units"),
    ):
        predict(Threshold(), scan, modality="CT")


def test_one_logit_is_binary_at_zero():
    class Binary(Threshold):
        def forward(self, x):
            return super().forward(x)[:, 1:]

    scan = noise_scan((12, 11, 10))

    labels = predict(Binary(), scan, modality="CT")
    maps = predict(Binary(), scan, modality="CT", output="probabilities")

    assert np.array_equal(labels.array, (scan.array > 100).astype(np.uint8))
    assert list(maps) == [1]
    assert np.array_equal(maps[1].array > 0.5, labels.array > 0)


def test_gaussian_windows_are_near_the_exact_answer_for_a_small_reach():
    model = segmenter()
    scan = noise_scan((90, 70, 40))

    exact = predict(model, scan, modality="CT", output="probabilities")
    blended = predict(
        model, scan, modality="CT", output="probabilities", tiling="gaussian", tile_batch=2
    )

    difference = np.abs(exact[0].array - blended[0].array)
    assert difference.max() > 1e-4  # another estimator
    assert difference.mean() < 0.05


@pytest.mark.parametrize(("overlap", "windows"), [(0.0, 4), (0.5, 9), (0.75, 16)])
def test_the_overlap_of_windows_says_how_many_there_are(monkeypatch, overlap, windows):
    shapes = count_calls(monkeypatch)
    scan = noise_scan((56, 56, 32))
    options = {"tiling": "gaussian", "window": (32, 32, 32), "overlap": overlap}

    labels = predict(Threshold(), scan, modality="CT", **options)

    assert shapes.count((1, 1, 32, 32, 32)) == windows
    np.testing.assert_array_equal(labels.array, scan.array > 100)


def test_batch_statistics_run_window_by_window_and_say_so(monkeypatch):
    torch.manual_seed(0)
    model = UNet3D(width=2, out_channels=2, activation=None, normalization="batch").eval()
    model.preprocessing = Preprocessing()
    shapes = count_calls(monkeypatch)

    with pytest.warns(PredictWarning, match="not equivalent to the whole"):
        labels = predict(model, noise_scan((80, 64, 32)), modality="CT", tile_batch=4)

    assert labels.shape == (80, 64, 32)
    assert shapes[1:] == [(1, 1, 64, 64, 32)] * 2


def test_an_untrained_head_is_refused_before_the_scan_is_read():
    model = segmenter()
    model.head_trained = False

    with pytest.raises(WeightsError, match=r"model\.head_trained = True"):
        predict(model, "no-such-scan.nii.gz")


def test_the_restoration_network_is_no_segmenter():
    model = UNet3D(width=2)
    model.preprocessing = Preprocessing()
    with pytest.raises(WeightsError, match="restoration"):
        predict(model, noise_scan())


@pytest.mark.parametrize("kind", ["encoder", "classifier", "pooled"])
def test_a_model_without_a_map_of_logits_is_refused(kind):
    encoder = Encoder(width=2)
    models = {
        "encoder": encoder,
        "classifier": Classifier(encoder, ClassificationHead(32, 2)),
        "pooled": nn.AvgPool3d(2),
    }
    model = models[kind].eval()
    model.preprocessing = Preprocessing()

    with pytest.raises(WeightsError, match=r"call embed\(\)"):
        predict(model, noise_scan())


def test_a_network_of_other_input_channels_is_refused():
    model = UNet3D(in_channels=4, out_channels=2, width=2, activation=None).eval()
    model.preprocessing = Preprocessing()
    with pytest.raises(ConfigError, match="in_channels=1"):
        predict(model, noise_scan())


def test_a_network_that_hides_its_context_runs_in_one_pass_only():
    torch.manual_seed(0)
    model = nn.Conv3d(1, 2, 3, padding=1)
    model.preprocessing = Preprocessing()
    scan = noise_scan((40, 40, 40))

    assert predict(model, scan, modality="CT").shape == scan.shape
    with pytest.raises(ConfigError, match=r"Set model\.halo"):
        predict(model, scan, modality="CT", memory_limit=tile_limit(model, scan, 20, 2))


@pytest.mark.parametrize(
    "options",
    [
        {"output": "masks"},
        {"tiling": "random"},
        {"precision": "float16"},
        {"tile_batch": 0},
        {"memory_limit": -1},
        {"window": (64, 64)},
        {"window": (64, 64, 0)},
        {"overlap": 1.0},
        {"overlap": -0.1},
        {"overlap": "half"},
        {"device": "abacus"},
    ],
)
def test_options_are_checked(options):
    with pytest.raises(ConfigError, match="Expected"):
        predict(Threshold(), noise_scan((6, 6, 6)), modality="CT", **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_c08_cuda_without_cuda():
    with pytest.raises(ConfigError, match="cuda"):
        predict(Threshold(), noise_scan((6, 6, 6)), device="cuda")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("tiling", ["exact", "gaussian"])
def test_cuda_gives_what_the_cpu_gives(tiling):
    model, scan = segmenter(), noise_scan((120, 70, 40), spacing=(0.8, 1.0, 1.3))
    options = {"modality": "CT", "output": "probabilities", "tiling": tiling}
    expected = predict(model, scan, **options)

    maps = predict(model, scan, device="cuda", tile_batch=2, **options)
    vector = embed(model, scan, modality="CT", device="cuda")

    for index, volume in maps.items():
        np.testing.assert_allclose(volume.array, expected[index].array, atol=1e-4)
    np.testing.assert_allclose(vector, embed(model, scan, modality="CT"), atol=1e-4)
    rounded = predict(model, scan, modality="CT", device="cuda", precision="bfloat16")
    assert np.mean(rounded.array == predict(model, scan, modality="CT").array) > 0.9


def test_bfloat16_on_a_cpu_without_it_is_refused(monkeypatch):
    monkeypatch.setattr("universal_model_hub.devices.cpu_has_bfloat16", lambda: False)
    with pytest.raises(ConfigError, match=r"AVX-512.*Use float32, or a GPU"):
        predict(Threshold(), noise_scan((6, 6, 6)), precision="bfloat16")


@pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="needs a CPU with bfloat16"
)
def test_bfloat16_labels_are_nearly_those_of_float32():
    model, scan = segmenter(), noise_scan((40, 32, 24))
    exact = predict(model, scan, modality="CT").array
    rounded = predict(model, scan, modality="CT", precision="bfloat16").array
    assert np.mean(exact == rounded) > 0.9


def test_a_model_without_preprocessing_says_so():
    with pytest.raises(ConfigError, match="Expected a Preprocessing"):
        predict(nn.Identity(), noise_scan())


def test_c01_a_missing_scan():
    with pytest.raises((VolumeError, OSError)):
        predict(Threshold(), "no-such-scan.nii.gz")


def test_progress_goes_to_stderr_only_when_wanted(capfd):
    scan = noise_scan((12, 11, 10))

    predict(Threshold(), scan, modality="CT")
    assert capfd.readouterr() == ("", "")
    predict(Threshold(), scan, modality="CT", progress=True)
    output = capfd.readouterr()
    assert output.out == ""
    assert "1/1" in output.err


@pytest.mark.parametrize("shape", [(133, 37, 29), (5, 9, 3), (64, 8, 8)])
def test_embed_equals_the_encoder_on_the_whole_scan(shape):
    model, scan = segmenter(), noise_scan(shape)
    grid, _ = preprocess(scan, model, "CT")
    with torch.inference_mode():
        expected = model.encoder.embed(grid)[0].numpy()

    whole = embed(model, scan, modality="CT")
    tiled = embed(model, scan, modality="CT", memory_limit=_encoder_limit(model, scan))

    assert whole.dtype == np.float32
    assert whole.shape == (64,)
    np.testing.assert_allclose(whole, expected, atol=1e-5)
    np.testing.assert_allclose(tiled, expected, atol=1e-5)


def _encoder_limit(model: UNet3D, scan: Volume) -> int:
    _, bytes_per_voxel = activation_bytes(model.encoder, torch.zeros(1, 1, 16, 16, 16))
    return int(SLACK + scan.array.size * 10 + bytes_per_voxel * 110_000)


def test_embed_takes_encoders_classifiers_and_files(tmp_path):
    torch.manual_seed(0)
    encoder = Encoder(width=2, out_indices=(0, 1)).eval()
    classifier = Classifier(encoder, ClassificationHead(32, 2)).eval()
    encoder.preprocessing = classifier.preprocessing = Preprocessing()
    scan = noise_scan((20, 17, 9))
    save_volume(scan, tmp_path / "scan.nii.gz")

    vectors = [
        embed(encoder, scan, modality="CT"),
        embed(classifier, scan, modality="CT"),
        embed(encoder, tmp_path / "scan.nii.gz", modality="CT"),
    ]

    assert all(np.array_equal(vectors[0], vector) for vector in vectors)
    assert encoder.out_indices == (0, 1)


def test_embed_refuses_what_has_no_feature_maps():
    with pytest.raises(ConfigError, match="load_encoder"):
        embed(Threshold(), noise_scan((8, 8, 8)))


def test_f06_embed_refuses_nonfinite_features():
    encoder = Encoder(width=2).eval()
    encoder.preprocessing = Preprocessing()
    encoder.levels[3].units[1].norm.bias.data[0] = torch.inf
    with pytest.raises(WeightsError, match="NaN or infinity"):
        embed(encoder, noise_scan((8, 8, 8)), modality="CT")


def test_embed_under_batch_statistics_runs_windows():
    torch.manual_seed(0)
    encoder = Encoder(width=2, normalization="batch").eval()
    encoder.preprocessing = Preprocessing()
    scan = noise_scan((128, 64, 32))
    grid, _ = preprocess(scan, encoder, "CT")
    with torch.inference_mode():
        halves = [encoder.embed(half)[0].numpy() for half in grid.split(64, dim=2)]

    with pytest.warns(PredictWarning, match="windows"):
        vector = embed(encoder, scan, modality="CT", tile_batch=2)

    np.testing.assert_allclose(vector, np.mean(halves, axis=0), atol=1e-5)


def test_feature_maps_know_where_they_lie():
    """Level 0 of an encoder that passes the intensity on: features against the world."""
    encoder = Encoder(width=2).eval()
    encoder.preprocessing = Preprocessing(spacing=(2.0, 2.0, 2.0), order=1)
    scan = noise_scan((40, 30, 20), spacing=(1.0, 2.0, 4.0))
    _, record = preprocess(scan, encoder, "CT")

    fine = features(encoder, scan, 0, modality="CT")
    deep = features(encoder, scan, modality="CT")

    assert fine.array.shape == (4, 20, 30, 40)
    assert deep.array.shape == (32, 3, 4, 5)
    np.testing.assert_allclose(fine.affine, record.model_affine)
    # The first deep voxel spans 8 voxels of 2 mm: its center is 7 mm beyond the first center.
    start = deep.affine[:3, 3] - fine.affine[:3, 3]
    np.testing.assert_allclose(start, [7, 7, 7])
    np.testing.assert_allclose(np.diag(deep.affine)[:3], [16, 16, 16])


@pytest.mark.parametrize("level", [0, 1, 2, 3])
def test_feature_maps_equal_the_encoder_on_the_whole_scan(level):
    model, scan = segmenter(), noise_scan((101, 37, 13))
    grid, _ = preprocess(scan, model, "CT")
    with torch.inference_mode():
        expected = model.encoder(grid)[level][0].numpy()

    limit = _encoder_limit(model, scan) + 2 * expected.nbytes
    result = features(model, scan, level, modality="CT", memory_limit=limit)

    np.testing.assert_allclose(result.array, expected, atol=1e-5)


def test_a_level_beyond_the_encoder_is_refused():
    with pytest.raises(ConfigError, match="level"):
        features(segmenter(), noise_scan((8, 8, 8)), 4)


def test_the_budget_counts_what_is_held_from_start_to_end():
    budget = memory_budget(
        100 * MIB + SLACK, torch.device("cpu"), on_host=40 * MIB, on_device=20 * MIB
    )

    assert budget.voxels(1024) == (100 - 60) * 1024
    assert "64 MiB" in str(Budget(MIB, 0, "x").too_large(64 * MIB))
    budget.require(40 * MIB)
    with pytest.raises(TooLargeError, match=f"at least {101 + SLACK // MIB} MiB"):
        budget.require(41 * MIB)
    assert memory_budget(None, torch.device("cpu"), on_host=0, on_device=0).limit < free_bytes(
        torch.device("cpu")
    )


def test_activations_are_counted_at_their_peak():
    # The input's channel and, while the second convolution runs, its 4 in and 2 out; 4 bytes each.
    model = nn.Sequential(nn.Conv3d(1, 4, 1), nn.Conv3d(4, 2, 1))

    output, per_voxel = activation_bytes(model, torch.zeros(1, 1, 8, 8, 8))

    assert output.shape == (1, 2, 8, 8, 8)
    assert per_voxel == pytest.approx(MARGIN * 4 * 7)


MEMORY_CHILD = """
import ctypes, json, re, sys, numpy as np, torch
from pathlib import Path
torch.set_num_threads(1)
from universal_model_hub.networks.unet3d import UNet3D
from universal_model_hub.predict import embed, predict
from universal_model_hub.preprocess import Preprocessing
from universal_model_hub.volume import Volume
def held(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
def scan(shape):
    array = np.random.default_rng(0).integers(-1000, 1000, shape).astype(np.int16)
    return Volume(array, np.eye(4))
model = UNet3D(width=4, out_channels=3, activation=None).eval()
model.preprocessing = Preprocessing()
for name, limit in json.loads(sys.argv[1]).items():
    run = embed if name == "embed" else predict
    options = {"tiling": "gaussian"} if name == "gaussian" else {}
    run(model, scan((16, 16, 16)), modality="CT", **options)
    large = scan((112, 96, 64))
    ctypes.CDLL(None).malloc_trim(0)  # what earlier runs left behind
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = held("VmRSS")
    run(model, large, modality="CT", memory_limit=limit, **options)
    print(json.dumps([name, held("VmHWM") - before]))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_f04_the_memory_limit_holds():
    limits = {"embed": 230 * MIB, "gaussian": 260 * MIB, "predict": 460 * MIB}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEMORY_CHILD, json.dumps(limits)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    used = dict(json.loads(line) for line in done.stdout.splitlines())
    assert used.keys() == limits.keys()
    for name, limit in limits.items():
        assert used[name] <= limit, name
        assert used[name] >= 0.5 * (limit - SLACK), name  # and the estimate is of that order
