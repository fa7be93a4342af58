"""I3D: counts and names of the published files, SAME padding by hand, the door, the decoder."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
import rival_checks
import torch
import torch.nn.functional as F
from rival_checks import alive, count, cube, norm_shapes, shapes_of
from torch import Tensor

from universal_model_hub import load_encoder
from universal_model_hub.errors import VolumeError, WeightsError
from universal_model_hub.features import features
from universal_model_hub.heads import ClassificationHead, Classifier
from universal_model_hub.inference import context_of
from universal_model_hub.networks.i3d import I3D, I3DEncoder, Unit
from universal_model_hub.networks.layers import same_padded
from universal_model_hub.networks.published_rivals import from_published, to_published
from universal_model_hub.saving import save_pretrained
from universal_model_hub.volume import Volume

ALL = slice(None)
# Source: Carreira and Zisserman 2017, Fig. 3, with the channels of Inception-v1: inputs, then the
# outputs of b0, b1a, b1b, b2a, b2b, b3b.
MODULES = {
    "Mixed_3b": (192, 64, 96, 128, 16, 32, 32),
    "Mixed_3c": (256, 128, 128, 192, 32, 96, 64),
    "Mixed_4b": (480, 192, 96, 208, 16, 48, 64),
    "Mixed_4c": (512, 160, 112, 224, 24, 64, 64),
    "Mixed_4d": (512, 128, 128, 256, 24, 64, 64),
    "Mixed_4e": (512, 112, 144, 288, 32, 64, 64),
    "Mixed_4f": (528, 256, 160, 320, 32, 128, 128),
    "Mixed_5b": (832, 256, 160, 320, 32, 128, 128),
    "Mixed_5c": (832, 384, 192, 384, 48, 128, 128),
}


def published_shapes(channels: int, num_classes: int | None) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a published file, spelled out without our network."""
    shapes: dict[str, tuple[int, ...]] = {}

    def unit(name: str, into: int, out: int, side: int) -> None:
        shapes[f"{name}.conv3d.weight"] = (out, into, side, side, side)
        shapes.update(norm_shapes(f"{name}.bn", out))

    unit("Conv3d_1a_7x7", channels, 64, 7)
    unit("Conv3d_2b_1x1", 64, 64, 1)
    unit("Conv3d_2c_3x3", 64, 192, 3)
    for name, (into, b0, b1a, b1b, b2a, b2b, b3b) in MODULES.items():
        unit(f"{name}.b0", into, b0, 1)
        unit(f"{name}.b1a", into, b1a, 1)
        unit(f"{name}.b1b", b1a, b1b, 3)
        unit(f"{name}.b2a", into, b2a, 1)
        unit(f"{name}.b2b", b2a, b2b, 3)
        unit(f"{name}.b3b", into, b3b, 1)
    if num_classes is not None:
        shapes["logits.conv3d.weight"] = (num_classes, 1024, 1, 1, 1)
        shapes["logits.conv3d.bias"] = (num_classes,)
    return shapes


@pytest.mark.parametrize(
    ("arguments", "backbone", "whole"),
    [
        ({"copies": 3}, 12_287_264, 12_697_264),
        ({"in_channels": 3, "copies": 1}, 12_287_264, 12_697_264),
        ({}, 12_265_312, 12_675_312),
    ],
)
def test_parameter_counts_are_the_published_ones(arguments, backbone, whole):
    with torch.device("meta"):
        encoder = I3DEncoder(**arguments)
        model = Classifier(encoder, ClassificationHead(encoder.num_features, 400))
    assert (count(encoder), count(model)) == (backbone, whole)


@pytest.mark.parametrize("copies", [2, 3])
def test_names_and_shapes_are_the_published_ones(copies):
    with torch.device("meta"):
        encoder = I3DEncoder(copies=copies)
        model = Classifier(encoder, ClassificationHead(encoder.num_features, 400))
    assert shapes_of(encoder.state_dict()) == published_shapes(copies, None)
    renamed = to_published("i3d", model.state_dict())
    assert shapes_of(renamed) == published_shapes(copies, 400)


def test_a_published_state_becomes_a_classifier_and_goes_back():
    encoder = I3DEncoder(width=4)
    model = Classifier(encoder, ClassificationHead(encoder.num_features, 5))
    published = to_published("i3d", model.state_dict())
    back = from_published("i3d", published)
    assert shapes_of(back) == shapes_of(model.state_dict())
    for name, value in model.state_dict().items():
        assert torch.equal(back[name], value), name
    bare = from_published("i3d", encoder.state_dict())  # a published encoder has no prefix
    assert all(name.startswith("encoder.") for name in bare)
    with pytest.raises(WeightsError, match=r"got decoder\.levels"):
        to_published("i3d", I3D(width=4).state_dict())


def low_padding(side: int, kernel: int, stride: int) -> int:
    """How many zeros TensorFlow's SAME puts before a side."""
    total = max(0, (math.ceil(side / stride) - 1) * stride + kernel - side)
    return total // 2


def slow_same_conv(x: np.ndarray, weight: np.ndarray, stride: int) -> np.ndarray:
    """SAME convolution of (C, T, H, W), one output voxel after the other."""
    kernel = weight.shape[2]
    sides = [math.ceil(n / stride) for n in x.shape[1:]]
    out = np.zeros((len(weight), *sides))
    for place in itertools.product(*(range(n) for n in sides)):
        for offset in itertools.product(range(kernel), repeat=3):
            voxel = [
                i * stride + o - low_padding(n, kernel, stride)
                for i, o, n in zip(place, offset, x.shape[1:], strict=True)
            ]
            if all(0 <= v < n for v, n in zip(voxel, x.shape[1:], strict=True)):
                out[(ALL, *place)] += weight[(ALL, ALL, *offset)] @ x[(ALL, *voxel)]
    return out


@pytest.mark.parametrize("kernel", [1, 3, 7])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("shape", [(1, 4, 5), (6, 3, 2)])
def test_units_pad_as_a_slow_same_convolution(kernel, stride, shape):
    torch.manual_seed(0)
    unit = Unit(2, 3, kernel, stride).eval()
    unit.bn.eps = 0.0
    nn_bias = 50.0  # the ReLU lets everything pass
    torch.nn.init.constant_(unit.bn.bias, nn_bias)
    x = cube(1, 2, *shape)
    expected = slow_same_conv(x[0].double().numpy(), unit.conv3d.weight.detach().numpy(), stride)
    with torch.no_grad():
        np.testing.assert_allclose(unit(x)[0] - nn_bias, expected, atol=2e-5)


@pytest.mark.parametrize(("kernel", "stride"), [((1, 3, 3), (1, 2, 2)), ((2, 2, 2), (2, 2, 2))])
@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 7, 6)])
def test_pooling_sees_the_windows_of_same(kernel, stride, shape):
    x = cube(1, 1, *shape)
    found = F.max_pool3d(same_padded(x, kernel, stride), kernel, stride)[0, 0]
    assert found.shape == tuple(math.ceil(n / s) for n, s in zip(shape, stride, strict=True))
    for place in itertools.product(*(range(n) for n in found.shape)):
        window = []
        for i, n, k, s in zip(place, shape, kernel, stride, strict=True):
            start = i * s - low_padding(n, k, s)
            window.append(slice(max(0, start), min(n, start + k)))
        assert found[place] == x[0, 0][tuple(window)].max()


def float64_features(state: dict[str, Tensor], x: Tensor) -> list[Tensor]:
    """Evaluate a published state on (N, C, T, H, W), by its names, in float64."""
    state = {name: value.double() for name, value in state.items()}

    def padded(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
        parts: list[int] = []
        for n, k, s in reversed(list(zip(x.shape[2:], kernel, stride, strict=True))):
            low = low_padding(n, k, s)
            parts += [low, max(0, (math.ceil(n / s) - 1) * s + k - n) - low]
        return F.pad(x, parts)

    def unit(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = state[f"{name}.conv3d.weight"]
        x = F.conv3d(padded(x, weight.shape[2:], (stride,) * 3), weight, stride=stride)
        scale = state[f"{name}.bn.weight"] / (state[f"{name}.bn.running_var"] + 1e-3).sqrt()
        shift = state[f"{name}.bn.bias"] - state[f"{name}.bn.running_mean"] * scale
        return (x * scale[:, None, None, None] + shift[:, None, None, None]).clamp(min=0)

    def pool(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
        return F.max_pool3d(padded(x, kernel, stride), kernel, stride)

    def mixed(x: Tensor, name: str) -> Tensor:
        pooled = unit(pool(x, (3, 3, 3), (1, 1, 1)), f"{name}.b3b")
        one = unit(unit(x, f"{name}.b1a"), f"{name}.b1b")
        two = unit(unit(x, f"{name}.b2a"), f"{name}.b2b")
        return torch.cat([unit(x, f"{name}.b0"), one, two, pooled], dim=1)

    features = [unit(x.double(), "Conv3d_1a_7x7", 2)]
    x = unit(pool(features[0], (1, 3, 3), (1, 2, 2)), "Conv3d_2b_1x1")
    features.append(unit(x, "Conv3d_2c_3x3"))
    for poolings, parts in (
        (((1, 3, 3), (1, 2, 2)), ("3b", "3c")),
        (((3, 3, 3), (2, 2, 2)), ("4b", "4c", "4d", "4e", "4f")),
        (((2, 2, 2), (2, 2, 2)), ("5b", "5c")),
    ):
        x = pool(features[-1], *poolings)
        for part in parts:
            x = mixed(x, f"Mixed_{part}")
        features.append(x)
    return features


@pytest.mark.parametrize("shape", [(32, 32, 16), (37, 21, 11)])
def test_features_agree_with_a_float64_evaluation_by_published_names(shape):
    torch.manual_seed(0)
    encoder = alive(I3DEncoder(width=16))
    x = cube(1, 1, *shape)
    video = torch.cat([2 * x - 1] * 2, dim=1).permute(0, 1, 4, 3, 2)  # T, H, W are Z, Y, X
    expected = float64_features(encoder.state_dict(), video)
    with torch.no_grad():
        found = encoder(x)
    assert expected[-1].std() > 1e-3
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs.permute(0, 1, 4, 3, 2), atol=1e-4, rtol=1e-4)
    pooled = expected[-1].mean(dim=(2, 3, 4))
    np.testing.assert_allclose(encoder.embed(x).detach(), pooled, atol=1e-4, rtol=1e-4)


def test_the_door_scales_repeats_and_takes_z_for_time():
    x = cube(1, 2, 4, 5, 3)
    video = I3DEncoder(in_channels=2, width=2, copies=3).video(x)
    assert video.shape == (1, 6, 3, 5, 4)
    for channel in range(6):
        assert video[0, channel, 2, 1, 3] == 2 * x[0, channel % 2, 3, 1, 2] - 1


def test_end_points_of_a_video_have_the_published_sizes():
    with torch.device("meta"):
        points = I3DEncoder(copies=3).end_points(torch.empty(1, 3, 64, 224, 224))
    assert [tuple(point.shape[1:]) for point in points] == [
        (64, 32, 112, 112),
        (192, 32, 56, 56),
        (480, 32, 28, 28),
        (832, 16, 14, 14),
        (1024, 8, 7, 7),
    ]


@pytest.mark.parametrize("shape", [(1, 1, 1), (9, 16, 3), (33, 8, 17)])
def test_any_size_goes_through_as_it_is(shape):
    model = alive(I3D(width=4, out_channels=3))
    x = cube(1, 1, *shape)
    assert model(x).shape == (1, 3, *shape)
    for feature, info in zip(model.encoder(x), model.encoder.feature_info, strict=True):
        sides = (math.ceil(n / s) for n, s in zip(shape, info.stride, strict=True))
        assert feature.shape == (1, info.channels, *sides)
    with pytest.raises(VolumeError, match="N, C, X, Y, Z"):
        model(x[0])


def test_odd_sizes_are_why_there_are_no_exact_tiles():
    """The first nine of ten voxels are padded differently from nine alone, at the low end."""
    encoder = alive(I3DEncoder(width=4, out_indices=(0,)))
    x = cube(1, 1, 40, 8, 8)
    whole, part = encoder(x)[0][:, :, 0], encoder(x[:, :, :39])[0][:, :, 0]
    assert (whole - part).abs().max() > 1e-3
    assert context_of(I3D(width=2)) is None


def test_widths_keep_the_proportions():
    with torch.device("meta"):
        full, quarter, odd = I3DEncoder(), I3DEncoder(width=16), I3DEncoder(width=3)
    for a, b in zip(full.maps, quarter.maps, strict=True):
        assert a.channels == 4 * b.channels
    assert min(p.shape[0] for p in odd.parameters()) >= 1
    assert count(quarter) < count(full) / 15


def test_eval_is_a_function_of_each_cube():
    rival_checks.check_eval_is_a_function_of_each_cube(alive(I3D(width=8)))


def test_the_network_learns_one_cube():
    torch.manual_seed(0)
    rival_checks.check_learns(I3D(width=8))


def test_checkpointing_gives_the_same_gradients_and_running_statistics():
    rival_checks.check_checkpointing(partial(I3D, width=4))


@pytest.mark.parametrize("copies", [2, 3])
def test_model_folders_hold_network_encoder_and_classifier(tmp_path, copies):
    torch.manual_seed(0)
    rival_checks.check_folders(alive(I3D(width=4, copies=copies)), tmp_path)


def test_a_saved_network_segments_and_embeds_scans_and_takes_more_channels(tmp_path):
    torch.manual_seed(0)
    folder = save_pretrained(alive(I3D(width=4)), tmp_path / "net")
    rival_checks.check_scans(folder)
    rival_checks.check_input_channels(folder)


def test_feature_maps_of_a_scan_have_a_stride_on_each_axis(tmp_path):
    torch.manual_seed(0)
    folder = save_pretrained(alive(I3DEncoder(width=4)), tmp_path / "net")
    scan = Volume(cube(70, 40, 20).numpy(), np.eye(4))
    found = features(load_encoder(folder), scan, modality="MR")
    assert found.array.shape == (64, 3, 2, 3)
    assert np.diag(found.affine).tolist() == [32, 32, 8, 1]
    assert found.affine[:3, 3].tolist() == [15.5, 15.5, 3.5]
