"""Models with several channels: one scan each, on one grid, from preprocessing to the command."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import universal_model_hub as umh
from universal_model_hub.cli.main import main
from universal_model_hub.config import config_from_json
from universal_model_hub.errors import ConfigError, GeometryError
from universal_model_hub.fit.training.transfer import build_model
from universal_model_hub.predict import embed
from universal_model_hub.preprocess import Preprocessing, preprocess, preprocess_channels

AFFINE = np.diag([-1.0, 1.0, 1.5, 1.0])
CHANNELS = [{"name": "CT", "modality": "CT"}, {"name": "T1", "modality": "MR"}]


def scans(shift: float = 0.0) -> list[umh.Volume]:
    rng = np.random.default_rng(0)
    moved = AFFINE.copy()
    moved[0, 3] = shift
    ct = rng.normal(0, 300, (19, 18, 14)).astype(np.int16)
    mr = rng.gamma(2, 300, (19, 18, 14)).astype(np.int16)
    return [umh.Volume(ct, AFFINE), umh.Volume(mr, moved)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    model = build_model(None, num_classes=3, arguments={"width": 2}, in_channels=2)
    with torch.no_grad():
        model.head.weight.mul_(30)  # a network that is not trained tells hardly anything apart
    where = tmp_path_factory.mktemp("two") / "two"
    as_it_is = Preprocessing(spacing=None)
    return umh.save_pretrained(model, where, channels=CHANNELS, preprocessing=as_it_is)


def test_channels_are_stacked_each_by_its_own_modality():
    settings = Preprocessing()
    cube, record = preprocess_channels(scans(), settings, ["CT", "MR"])
    ct, mr = (preprocess(v, settings, m)[0] for v, m in zip(scans(), ("CT", "MR"), strict=True))
    assert torch.equal(cube, torch.cat([ct, mr], dim=1))
    assert record.source_shape == (19, 18, 14)
    single, _ = preprocess_channels(scans()[:1], settings, "CT")
    assert torch.equal(single, ct)


def test_channels_on_two_grids_or_without_a_modality_are_refused():
    with pytest.raises(GeometryError, match=r"channel 2 .* up to 3\.0 mm off"):
        preprocess_channels(scans(shift=3.0), Preprocessing(), "CT")
    with pytest.raises(ConfigError, match="each of 2 channels, got 3"):
        preprocess_channels(scans(), Preprocessing(), ["CT", "MR", "MR"])
    preprocess_channels(scans(shift=0.05), Preprocessing(), ["CT", "MR"])


def test_a_model_folder_says_what_its_channels_are(folder):
    model = umh.load_segmenter(folder)
    assert [dict(channel) for channel in model.config.channels] == CHANNELS
    assert "2. T1: MR" in (folder / "README.md").read_text()
    with pytest.warns(UserWarning, match="2 input channels"):
        assert umh.load_encoder(folder).config.channels is None
    saved = json.loads((folder / "config.json").read_text())
    for broken in (CHANNELS[:1], [*CHANNELS[:1], {"name": "x", "modality": "PET"}], "CT"):
        with pytest.raises(ConfigError, match="channel"):
            config_from_json({**saved, "channels": broken})


def test_prediction_of_two_channels_is_that_of_the_stacked_cube(folder):
    model = umh.load_segmenter(folder)
    found = umh.predict(model, scans(), output="probabilities")
    cube, record = preprocess_channels(scans(), model, ["CT", "MR"])
    with torch.inference_mode():
        logits = model(cube)[0]
    own = torch.stack([record.back(channel, 1) for channel in logits]).softmax(dim=0)
    for label, volume in found.items():
        assert volume.shape == (19, 18, 14)
        np.testing.assert_allclose(volume.array, own[label].numpy(), atol=1e-5)
    again = umh.predict(model, scans(), output="probabilities", modality=("CT", "MR"))
    np.testing.assert_array_equal(found[0].array, again[0].array)
    swapped = umh.predict(model, scans()[::-1], output="probabilities", modality=("MR", "CT"))
    assert np.abs(swapped[0].array - found[0].array).max() > 1e-3


def test_tiles_of_two_channels_equal_one_pass(folder):
    rng = np.random.default_rng(1)
    large = [umh.Volume(rng.normal(0, 300, (150, 40, 40)).astype(np.int16), np.eye(4))] * 2
    model = umh.load_segmenter(folder)
    whole = umh.predict(model, large, output="probabilities")
    tiles = umh.predict(model, large, output="probabilities", memory_limit=210 * 2**20)
    for label, volume in whole.items():
        np.testing.assert_allclose(tiles[label].array, volume.array, atol=1e-5)


def test_another_number_of_scans_is_refused_with_the_names_of_the_channels(folder):
    model = umh.load_segmenter(folder)
    for given in (scans()[0], scans() + scans()[:1]):
        with pytest.raises(ConfigError, match=r"2 channels \(CT, T1\), got"):
            umh.predict(model, given)
    encoder = umh.load_encoder(folder, in_channels=None)
    assert embed(encoder, scans()).shape == (32,)


def test_one_examination_from_files_in_order(folder, tmp_path):
    paths = [tmp_path / "ct.nii.gz", tmp_path / "mr.nii.gz"]
    for volume, path in zip(scans(), paths, strict=True):
        umh.save_volume(volume, path)
    out = tmp_path / "labels.nii.gz"
    assert main(["segment", *map(str, paths), "-o", str(out), "--model", str(folder)]) == 0
    expected = umh.predict(umh.load_segmenter(folder), scans())
    np.testing.assert_array_equal(umh.load_volume(out).array, expected.array)


def test_a_folder_is_grouped_by_number_and_a_missing_channel_fails_alone(folder, tmp_path, capsys):
    source = tmp_path / "scans"
    source.mkdir()
    for name in ("a", "b"):
        for number, volume in enumerate(scans()):
            umh.save_volume(volume, source / f"{name}_{number:04d}.nii.gz")
    (source / "b_0001.nii.gz").unlink()
    out = tmp_path / "out"
    code = main(["segment", str(source), "-o", str(out), "--model", str(folder)])
    assert code == 2
    assert [path.name for path in out.iterdir()] == ["a.nii.gz"]
    assert "2 channels (CT, T1), got 1" in capsys.readouterr().err
