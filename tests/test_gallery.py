"""Pictures of what the released weights have learned."""

import numpy as np

from training.release import gallery
from training.release.arms import find_arms
from training.release.feature_planes import draw_features, principal_components
from training.release.probes import ProbeCubes
from universal_model_hub.volume import Volume


def test_features_are_drawn_below_the_scan_a_row_for_each_network():
    rng = np.random.default_rng(0)
    volume = Volume(rng.normal(size=(8, 10, 12)).astype(np.float32), np.eye(4))
    maps = {name: rng.normal(size=(5, 4, 5, 6)).astype(np.float32) for name in ("a", "b")}
    figure = draw_features(volume, maps, None)
    assert [axis.get_ylabel() for axis in figure.axes[::3]] == ["", "a", "b"]


def test_the_first_component_is_where_the_features_differ_most():
    maps = np.zeros((3, 4, 4, 4), np.float32)
    maps[1, 2:] = 5.0  # one half of the volume
    maps[2] = np.random.default_rng(0).normal(0, 0.1, (4, 4, 4))
    colors = principal_components(maps)
    assert colors.shape == (4, 4, 4, 3)
    assert abs(float(colors[2:, ..., 0].mean() - colors[:2, ..., 0].mean())) > 0.9


def test_every_region_and_modality_has_a_mark_in_the_embedding():
    rng = np.random.default_rng(0)
    count = 32
    found = ProbeCubes(
        rng.random((count, 16, 16, 16), np.float32),
        np.array(["CT", "MR"] * (count // 2)),
        np.array(["brain", "brain", "heart", "heart"] * (count // 4)),
        np.array([f"s{i}" for i in range(count)]),
    )
    arms = find_arms(["unet3d-compact"])
    figure = gallery.embedding(found, {"random network": arms.scratch[0], "again": arms.scratch[0]})
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["brain, CT", "brain, MR", "heart, CT", "heart, MR"]


def test_the_ready_segmenters_classes_are_those_it_was_trained_on():
    names = gallery.label_names(gallery.load_segmenter(gallery.SEGMENTER))
    assert set(names) <= set(gallery.CLASSES)
