"""MedicalNet's ResNets: counts and names of the published files, MONAI as an oracle."""

from functools import partial

import numpy as np
import pytest
import rival_checks
import torch
from monai.networks.nets.resnet import ResNet
from rival_checks import alive, count, cube, norm_shapes, shapes_of
from torch import Tensor, nn

from universal_model_hub import load_encoder, load_unet
from universal_model_hub.config import check_arguments
from universal_model_hub.errors import ConfigError, VolumeError, WeightsError
from universal_model_hub.heads import ClassificationHead, Classifier
from universal_model_hub.networks.published_rivals import from_published, to_published
from universal_model_hub.networks.resnet3d import (
    BasicBlock,
    Bottleneck,
    PlainShortcut,
    ResNet3D,
    ResNetEncoder,
)
from universal_model_hub.saving import save_pretrained

# Source: MedicalNet, counted at its published code: blocks, backbone, backbone and head of 2.
PUBLISHED = {
    10: ((1, 1, 1, 1), 14_355_520, 14_514_464),
    18: ((2, 2, 2, 2), 32_986_176, 33_145_120),
    34: ((3, 4, 6, 3), 63_295_808, 63_454_752),
    50: ((3, 4, 6, 3), 46_155_072, 46_707_232),
    101: ((3, 4, 23, 3), 85_201_216, 85_753_376),
    152: ((3, 8, 36, 3), 117_359_936, 117_912_096),
    200: ((3, 24, 36, 3), 126_559_552, 127_111_712),
}


def published_shapes(depth: int, num_classes: int | None) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a published file, spelled out without our network."""
    expansion = 4 if depth >= 50 else 1
    shapes = {"conv1.weight": (64, 1, 7, 7, 7), **norm_shapes("bn1", 64)}
    inputs = 64
    for stage, blocks in enumerate(PUBLISHED[depth][0]):
        planes = 64 * 2**stage
        for k in range(blocks):
            name, outputs = f"layer{stage + 1}.{k}", expansion * planes
            convs = [(planes, inputs, 3), (planes, planes, 3)]
            if depth >= 50:
                convs = [(planes, inputs, 1), (planes, planes, 3), (outputs, planes, 1)]
            for number, (out, into, side) in enumerate(convs, start=1):
                shapes[f"{name}.conv{number}.weight"] = (out, into, side, side, side)
                shapes |= norm_shapes(f"{name}.bn{number}", out)
            if depth not in (18, 34) and k == 0 and (stage > 0 or inputs != outputs):
                shapes[f"{name}.downsample.0.weight"] = (outputs, inputs, 1, 1, 1)
                shapes |= norm_shapes(f"{name}.downsample.1", outputs)
            inputs = outputs
    if num_classes is not None:
        shapes["conv_seg.0.weight"] = (inputs, 32, 2, 2, 2)
        shapes["conv_seg.0.bias"] = (32,)
        shapes |= norm_shapes("conv_seg.1", 32)
        shapes["conv_seg.3.weight"] = (32, 32, 3, 3, 3)
        shapes |= norm_shapes("conv_seg.4", 32)
        shapes["conv_seg.6.weight"] = (num_classes, 32, 1, 1, 1)
    return shapes


@pytest.mark.parametrize("depth", PUBLISHED)
def test_parameter_counts_are_the_published_ones(depth):
    _, backbone, whole = PUBLISHED[depth]
    with torch.device("meta"):
        network = ResNet3D(depth=depth)
    assert (count(network.encoder), count(network)) == (backbone, whole)


def test_the_readme_of_medicalnet_counts_the_running_statistics_too():
    figures = {}
    for depth in (10, 200):
        with torch.device("meta"):
            encoder = ResNetEncoder(depth=depth)
        buffers = sum(b.numel() for b in encoder.buffers() if b.ndim > 0)
        figures[depth] = round((count(encoder) + buffers) / 1e6, 2)
    assert figures == {10: 14.36, 200: 126.74}


@pytest.mark.parametrize("depth", PUBLISHED)
def test_names_and_shapes_are_the_published_ones(depth):
    with torch.device("meta"):
        network = ResNet3D(depth=depth, out_channels=3)
    assert shapes_of(network.encoder.state_dict()) == published_shapes(depth, None)
    renamed = to_published("resnet3d", network.state_dict())
    assert shapes_of(renamed) == published_shapes(depth, 3)


def test_a_published_state_loads_with_its_prefix_and_goes_back():
    network = ResNet3D(width=4, depth=10)
    state = network.state_dict()
    published = to_published("resnet3d", state)
    back = from_published("resnet3d", {f"module.{n}": v for n, v in published.items()})
    assert list(back) == list(state)
    assert all(back[name] is value for name, value in state.items())
    with pytest.raises(WeightsError, match="each tensor once"):
        from_published("resnet3d", {**published, "module.bn1.bias": torch.zeros(4)})
    classifier = Classifier(network.encoder, ClassificationHead(32, 2))
    with pytest.raises(WeightsError, match=r"got head.linear.weight"):
        to_published("resnet3d", classifier.state_dict())
    with pytest.raises(ConfigError, match="resnet3d, i3d, dense_vnet"):
        to_published("unet3d", network.state_dict())


def monai_resnet(depth: int, width: int) -> ResNet:
    """MONAI's network of the same blocks, its last stages dilated as MedicalNet's are."""
    block = "bottleneck" if depth >= 50 else "basic"
    model = ResNet(
        block,
        list(PUBLISHED[depth][0]),
        [width * 2**k for k in range(4)],
        n_input_channels=1,
        conv1_t_stride=2,
        shortcut_type="A" if depth in (18, 34) else "B",
        bias_downsample=False,
        feed_forward=False,
    )
    for stage, dilation in ((model.layer3, 2), (model.layer4, 4)):
        for module in stage.modules():
            if isinstance(module, nn.Conv3d):
                module.stride = (1, 1, 1)
                if module.kernel_size == (3, 3, 3):
                    module.dilation = module.padding = (dilation,) * 3
        shortcut = stage[0].downsample
        if isinstance(shortcut, partial):
            planes = shortcut.keywords["planes"]
            stage[0].downsample = partial(shortcut.func, planes=planes, stride=1)
    return model


@pytest.mark.parametrize("depth", [10, 18, 34, 50, 101])
def test_features_agree_with_monai_on_the_swapped_axes(depth):
    torch.manual_seed(0)
    encoder = alive(ResNetEncoder(width=4, depth=depth))
    oracle = monai_resnet(depth, 4).eval()
    oracle.load_state_dict(encoder.state_dict(), strict=True)
    stages: list[Tensor] = []
    for stage in (oracle.layer1, oracle.layer2, oracle.layer3, oracle.layer4):
        stage.register_forward_hook(lambda module, inputs, output: stages.append(output))
    x = cube(2, 1, 32, 24, 16)
    with torch.no_grad():
        features = encoder(x)
        pooled = oracle(x.transpose(2, 4))  # slices first
        np.testing.assert_allclose(encoder.embed(x), pooled, atol=1e-4, rtol=1e-4)
    assert pooled.std() > 0.01
    for ours, theirs in zip(features[1:], stages, strict=True):
        torch.testing.assert_close(ours, theirs.transpose(2, 4), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", [(1, 1, 1), (9, 16, 3), (16, 8, 24), (13, 1, 30)])
def test_any_size_is_padded_with_zeros_at_the_high_end_and_cropped(shape):
    model = alive(ResNet3D(width=4, depth=10, out_channels=3))
    x = cube(1, 1, *shape)
    padded = torch.zeros(1, 1, *(-(-side // 8) * 8 for side in shape))
    padded[:, :, : shape[0], : shape[1], : shape[2]] = x
    with torch.no_grad():
        whole = model(padded)[:, :, : shape[0], : shape[1], : shape[2]]
        torch.testing.assert_close(model(x), whole, atol=1e-6, rtol=0)
        features = model.encoder(x)
    for feature, info in zip(features, model.encoder.feature_info, strict=True):
        sides = (-(-side // info.stride) for side in shape)
        assert feature.shape == (1, info.channels, *sides)


def test_logits_lie_on_a_quarter_of_the_grid_and_are_interpolated_to_it():
    model = alive(ResNet3D(width=4, depth=10))
    x = cube(1, 1, 16, 24, 8)
    with torch.no_grad():
        deepest = model.encoder.pyramid(x)[-1].transpose(2, 4)
        quarter = model.head(model.decoder(deepest)).transpose(2, 4).double().numpy()
        found = model(x)
    assert quarter.shape == (1, 2, 4, 6, 2)
    for axis, side in ((2, 16), (3, 24), (4, 8)):
        centers = (np.arange(side) + 0.5) / 4 - 0.5  # np.interp holds the outermost values
        quarter = np.apply_along_axis(
            lambda line, at: np.interp(at, np.arange(len(line)), line), axis, quarter, centers
        )
    np.testing.assert_allclose(found, quarter, atol=1e-5)


def test_a_batch_of_the_wrong_shape_is_refused():
    for network in (ResNet3D(width=2, depth=10), ResNetEncoder(width=2, depth=10)):
        with pytest.raises(VolumeError, match="N, C, X, Y, Z"):
            network(torch.zeros(1, 8, 8, 8))


def test_a_plain_shortcut_takes_every_second_voxel_and_adds_zero_channels():
    x = cube(2, 3, 5, 4, 2).requires_grad_()
    out = PlainShortcut(channels=5, stride=2)(x)
    assert out.shape == (2, 5, 3, 2, 1)
    assert torch.equal(out[:, :3], x[:, :, [0, 2, 4]][:, :, :, [0, 2]][:, :, :, :, [0]])
    assert not out[:, 3:].any()
    assert not out.requires_grad


def test_no_gradient_passes_a_plain_shortcut_and_one_passes_type_b():
    gradients = {}
    for plain in (True, False):
        block = BasicBlock(2, 4, 2, 1, plain=plain).eval()
        nn.init.zeros_(block.bn2.weight)  # what is left is the shortcut
        nn.init.constant_(block.bn2.bias, 10.0)  # above the last ReLU's kink
        x = cube(1, 2, 4, 4, 4).requires_grad_()
        block(x).sum().backward()
        gradients[plain] = float(x.grad.abs().sum())
    assert gradients[True] == 0
    assert gradients[False] > 0


def test_plain_shortcuts_are_those_of_18_and_34_where_channels_change():
    for depth in PUBLISHED:
        with torch.device("meta"):
            encoder = ResNetEncoder(depth=depth)
        plain = sum(isinstance(module, PlainShortcut) for module in encoder.modules())
        assert plain == (3 if depth in (18, 34) else 0)
        wanted = Bottleneck if depth >= 50 else BasicBlock
        assert type(encoder.layer1[0]) is wanted


@pytest.mark.parametrize(("depth", "beyond"), [(10, 121), (18, 241), (50, 237)])
def test_halo_is_the_receptive_field_rounded_up_to_the_stride(depth, beyond):
    model = rival_checks.all_open(ResNet3D(width=1, depth=depth))
    size, block = 576, 288
    deepest = rival_checks.reach(
        model.encoder, lambda m, x: m(x)[-1][0, :, block // 8], block, size
    )
    output = rival_checks.reach(model, lambda m, x: m(x)[0, 0, block : block + 8], block, size)
    assert (max(deepest), max(output)) == (beyond, beyond + 8)
    assert model.encoder.halo == -(-beyond // 8) * 8
    assert model.halo == model.encoder.halo + 8


def test_a_tile_with_its_halo_gives_what_the_whole_gives():
    model = alive(ResNet3D(width=4, depth=10))
    core, halo = slice(160, 192), 136
    read = slice(core.start - halo, core.stop + halo)
    rival_checks.check_tile_equals_whole(model, read, core, 360)


def test_eval_is_a_function_of_each_cube():
    rival_checks.check_eval_is_a_function_of_each_cube(alive(ResNet3D(width=4, depth=18)))


@pytest.mark.parametrize("depth", [10, 18, 50])
def test_the_network_learns_one_cube(depth):
    torch.manual_seed(0)
    rival_checks.check_learns(ResNet3D(width=8, depth=depth))


def test_checkpointing_gives_the_same_gradients_and_running_statistics():
    rival_checks.check_checkpointing(partial(ResNet3D, width=2, depth=18))


def test_convolutions_start_with_the_spread_of_the_published_ones():
    torch.manual_seed(0)
    model = ResNet3D(width=16, depth=10)
    conv = model.encoder.layer3[0].conv2  # 64 outputs of 27 voxels each
    assert float(conv.weight.detach().std()) == pytest.approx((2 / (64 * 27)) ** 0.5, rel=0.02)


@pytest.mark.parametrize("depth", [10, 18, 50])
def test_model_folders_hold_network_encoder_and_classifier(tmp_path, depth):
    torch.manual_seed(0)
    rival_checks.check_folders(alive(ResNet3D(width=2, depth=depth)), tmp_path)


def test_a_saved_network_segments_and_embeds_scans_and_takes_more_channels(tmp_path):
    torch.manual_seed(0)
    folder = save_pretrained(alive(ResNet3D(width=4, depth=10)), tmp_path / "net")
    rival_checks.check_scans(folder)
    rival_checks.check_input_channels(folder)


def test_what_only_a_unet_has_is_refused(tmp_path):
    folder = save_pretrained(ResNet3D(width=2, depth=10), tmp_path / "net")
    with pytest.raises(WeightsError, match=r"of a unet3d, .* is of resnet3d. Use load_segmenter"):
        load_unet(folder)
    with pytest.raises(ConfigError, match=r"arguments of resnet3d .*got 'normalization'"):
        load_encoder(folder, normalization="batch")


@pytest.mark.parametrize("depth", [11, True, "10", None])
def test_a_depth_that_does_not_exist_is_refused(depth):
    with pytest.raises(ConfigError, match="depth"):
        check_arguments("segmenter", "resnet3d", {"depth": depth})
    if depth == 11:
        with pytest.raises(ConfigError, match="10, 18, 34, 50, 101, 152, 200, got 11"):
            ResNetEncoder(depth=depth)
