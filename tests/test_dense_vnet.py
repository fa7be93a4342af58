"""Dense V-Net: counts, shapes and names of NiftyNet's, its padding and resizing by hand."""

import itertools
import math
from functools import partial

import numpy as np
import pytest
import rival_checks
import torch
from rival_checks import alive, count, cube, norm_shapes, shapes_of

from universal_model_hub import load_encoder, load_segmenter
from universal_model_hub.errors import ConfigError, VolumeError, WeightsError
from universal_model_hub.inference import context_of
from universal_model_hub.networks.dense_vnet import (
    DenseVNet,
    DenseVNetEncoder,
    Unit,
    _halved,
    resized,
)
from universal_model_hub.networks.published_rivals import from_published, to_published
from universal_model_hub.saving import save_pretrained
from universal_model_hub.tiles import Context

ALL = slice(None)


def own_shapes(num_classes: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the whole network, spelled out from Gibson et al. and NiftyNet."""
    shapes = dict(norm_shapes("encoder.image_norm", 1))

    def unit(name: str, into: int, out: int, side: int = 3) -> None:
        shapes[f"{name}.conv.weight"] = (out, into, side, side, side)
        shapes.update(norm_shapes(f"{name}.norm", out))

    unit("encoder.stem", 1, 24, 5)
    stacks = []
    for k, (inputs, units, growth) in enumerate(((25, 5, 4), (24, 10, 8), (24, 10, 16))):
        for number in range(units):
            unit(f"encoder.blocks.{k}.units.{number}", inputs + number * growth, growth)
        stacks.append(inputs + units * growth)
    assert stacks == [45, 104, 184]
    for k in (0, 1):
        unit(f"encoder.downs.{k}", stacks[k], 24)
    for k, out in enumerate((12, 24, 24)):
        unit(f"decoder.skips.{k}", stacks[k], out)
    shapes["head.weight"] = (num_classes, 61, 3, 3, 3)
    shapes["head.bias"] = (num_classes,)
    return shapes


@pytest.mark.parametrize(
    ("arguments", "parameters"),
    [
        ({"out_channels": 9}, 878_514),
        ({"out_channels": 2}, 866_978),
        ({"out_channels": 9, "prior": "spatial"}, 878_514 + 13_824),
    ],
)
def test_parameter_counts_are_those_of_niftynet(arguments, parameters):
    with torch.device("meta"):
        assert count(DenseVNet(**arguments)) == parameters


def test_names_and_shapes_are_those_of_the_layers():
    with torch.device("meta"):
        state = DenseVNet(out_channels=9).state_dict()
    assert shapes_of(state) == own_shapes(9)


def test_tensorflow_names_and_axes_there_and_back():
    torch.manual_seed(0)
    model = alive(DenseVNet(out_channels=9, prior="spatial"))
    state = model.state_dict()
    published = to_published("dense_vnet", state)
    kernels = {n: tuple(v.shape) for n, v in published.items() if n.endswith("/w")}
    assert kernels["DenseVNet/conv_bn/conv_/w"] == (5, 5, 5, 1, 24)
    block = "DenseVNet/dense_feature_stack_block_2"
    unit = f"{block}/dense_feature_stack_block/conv_bn_relu_9/conv_/w"
    assert kernels[unit] == (3, 3, 3, 24 + 9 * 16, 16)
    assert kernels[f"{block}/conv_bn_relu/conv_/w"] == (3, 3, 3, 184, 24)
    assert f"{block}/conv_bn_relu_1/conv_/w" not in kernels  # no way down from the last block
    assert kernels["DenseVNet/conv/conv_/w"] == (3, 3, 3, 61, 9)
    assert len(kernels) == 1 + 25 + 3 + 2 + 1
    assert published["DenseVNet/spatial_prior_block/prior"].shape == (24, 24, 24)
    stem = state["encoder.stem.conv.weight"]
    assert published["DenseVNet/conv_bn/conv_/w"][4, 0, 2, 0, 7] == stem[7, 0, 4, 0, 2]
    gamma = published["DenseVNet/conv_bn/bn_/gamma"]
    assert torch.equal(gamma, state["encoder.stem.norm.weight"])
    back = from_published("dense_vnet", published)
    assert shapes_of(back) == shapes_of(state)
    assert all(torch.equal(back[name], state[name]) for name in state)


def test_tensorflow_variables_that_do_not_fit_are_refused():
    published = to_published("dense_vnet", DenseVNet(width=3).state_dict())
    with pytest.raises(WeightsError, match=r"1 are missing or unexpected .*conv_/b"):
        from_published("dense_vnet", {n: v for n, v in published.items() if not n.endswith("/b")})
    with pytest.raises(WeightsError, match=r"1 are missing or unexpected .*Adam"):
        from_published("dense_vnet", {**published, "w/Adam": torch.zeros(1)})


def windows(side: int, kernel: int, stride: int) -> list[range]:
    """The voxels, some outside, that TensorFlow's SAME gives each output voxel of an axis."""
    total = max(0, (math.ceil(side / stride) - 1) * stride + kernel - side)
    starts = (i * stride - total // 2 for i in range(math.ceil(side / stride)))
    return [range(start, start + kernel) for start in starts]


def test_a_strided_unit_pads_as_a_slow_same_convolution():
    torch.manual_seed(0)
    unit = Unit(2, 3, kernel=5, stride=2, activation=False).eval()
    unit.norm.eps = 0.0
    x = cube(1, 2, 6, 4, 8)
    weight = unit.conv.weight.detach()
    with torch.no_grad():
        found = unit(x)[0]
    for place in itertools.product(range(3), range(2), range(4)):
        total = torch.zeros(3)
        axes = [windows(n, 5, 2)[i] for n, i in zip((6, 4, 8), place, strict=True)]
        for offset in itertools.product(range(5), repeat=3):
            voxel = [axis[o] for axis, o in zip(axes, offset, strict=True)]
            if all(0 <= v < n for v, n in zip(voxel, (6, 4, 8), strict=True)):
                total += weight[(ALL, ALL, *offset)] @ x[(0, ALL, *voxel)]
        torch.testing.assert_close(found[(ALL, *place)], total, atol=1e-5, rtol=0)


def test_the_small_image_is_a_mean_of_the_voxels_inside():
    x = cube(1, 1, 4, 6, 2)
    found = _halved(x)[0, 0]
    assert found.shape == (2, 3, 1)
    for place in itertools.product(range(2), range(3), range(1)):
        axes = [
            slice(w.start, min(w.stop, n))
            for w, n in ((windows(n, 3, 2)[i], n) for n, i in zip((4, 6, 2), place, strict=True))
        ]
        assert found[place] == pytest.approx(float(x[0, 0][tuple(axes)].mean()), abs=1e-6)


@pytest.mark.parametrize("shape", [(8, 6, 4), (4, 3, 2), (7, 2, 9)])
def test_resizing_follows_tensorflow_1(shape):
    x = cube(1, 2, 4, 3, 2).double()
    expected = x.numpy()
    for axis, side in enumerate(shape, start=2):
        old = expected.shape[axis]
        at = np.arange(side) * old / side  # first voxels meet; np.interp holds the last one
        expected = np.apply_along_axis(
            lambda line, at: np.interp(at, np.arange(len(line)), line), axis, expected, at
        )
    np.testing.assert_allclose(resized(x, shape), expected, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 1, 1), (9, 16, 3), (16, 8, 24), (13, 1, 30)])
def test_any_size_is_padded_with_zeros_at_the_high_end_and_cropped(shape):
    model = alive(DenseVNet(width=6, out_channels=3))
    x = cube(1, 1, *shape)
    padded = torch.zeros(1, 1, *(-(-side // 8) * 8 for side in shape))
    padded[:, :, : shape[0], : shape[1], : shape[2]] = x
    with torch.no_grad():
        whole = model(padded)[:, :, : shape[0], : shape[1], : shape[2]]
        torch.testing.assert_close(model(x), whole, atol=1e-5, rtol=1e-5)
        features = model.encoder(x)
    for k, (feature, info) in enumerate(zip(features, model.encoder.feature_info, strict=True)):
        assert info.stride == 2 ** (k + 1)
        assert feature.shape == (1, info.channels, *(-(-side // info.stride) for side in shape))
    with pytest.raises(VolumeError, match="N, C, X, Y, Z"):
        model(x[0])


def test_each_unit_reads_all_before_it_and_the_image_comes_first():
    encoder = alive(DenseVNetEncoder())
    x = cube(1, 1, 16, 16, 8)
    finest = encoder(x)[0]
    image = encoder.image_norm(_halved(x))
    torch.testing.assert_close(finest[:, :1], image)
    torch.testing.assert_close(finest[:, 1:25], encoder.stem(x))
    assert (finest[:, 1:25] < 0).any()  # the stem has no activation
    last = encoder.blocks[0].units[4]
    torch.testing.assert_close(finest[:, 41:], last(finest[:, :41]))


def test_a_prior_of_ones_changes_nothing_and_others_add_their_logarithm():
    model = alive(DenseVNet(width=3, prior="spatial"))
    bare = alive(DenseVNet(width=3))
    bare.load_state_dict({n: v for n, v in model.state_dict().items() if n != "prior"})
    x = cube(1, 1, 16, 24, 8)
    with torch.no_grad():
        assert torch.equal(model(x), bare(x))
        model.prior.fill_(math.e)
        torch.testing.assert_close(model(x), bare(x) + 1, atol=1e-5, rtol=1e-5)
        model.prior[0].fill_(-1.0)  # a step too far leaves the numbers finite
        assert torch.isfinite(model(x)).all()
    with pytest.raises(ConfigError, match="prior"):
        DenseVNet(width=3, prior="learned")


def test_halo_is_the_receptive_field_rounded_up_to_the_stride():
    model = rival_checks.all_open(DenseVNet(width=3))
    size, block = 400, 200
    deepest = rival_checks.reach(
        model.encoder, lambda m, x: m(x)[-1][0, :, block // 8], block, size
    )
    output = rival_checks.reach(model, lambda m, x: m(x)[0, 0, block : block + 8], block, size)
    assert (max(deepest), max(output)) == (138, 162)
    assert (DenseVNetEncoder.halo, model.halo) == (144, 168)
    assert context_of(model) == Context(8, 168)
    assert context_of(DenseVNet(width=3, prior="spatial")) is None


def test_a_tile_with_its_halo_gives_what_the_whole_gives():
    model = alive(DenseVNet(width=6))
    core = slice(184, 208)
    rival_checks.check_tile_equals_whole(model, slice(184 - 168, 208 + 168), core, 400)


def test_widths_keep_the_proportions():
    with torch.device("meta"):
        half = DenseVNetEncoder(width=12)
        assert [info.channels for info in half.maps] == [13 + 10, 12 + 40, 12 + 80]
        assert min(p.shape[0] for p in DenseVNet(width=1).parameters()) >= 1


def test_kernels_start_as_niftynet_draws_them():
    torch.manual_seed(0)
    model = DenseVNet()
    kernel = model.decoder.skips[2].conv.weight.detach()  # 24 x 184 x 27
    std = (2 / (184 * 27)) ** 0.5
    assert float(kernel.abs().max()) <= 2 * std
    # Cut at two standard deviations, a normal keeps 0.88 of its spread.
    assert float(kernel.std()) == pytest.approx(0.88 * std, rel=0.02)
    assert not model.head.bias.any()


def test_eval_is_a_function_of_each_cube():
    rival_checks.check_eval_is_a_function_of_each_cube(alive(DenseVNet(width=6)))


@pytest.mark.parametrize("prior", [None, "spatial"])
def test_the_network_learns_one_cube(prior):
    torch.manual_seed(0)
    rival_checks.check_learns(DenseVNet(width=6, prior=prior))


def test_checkpointing_gives_the_same_gradients_and_running_statistics():
    rival_checks.check_checkpointing(partial(DenseVNet, width=3))


@pytest.mark.parametrize("prior", [None, "spatial"])
def test_model_folders_hold_network_encoder_and_classifier(tmp_path, prior):
    torch.manual_seed(0)
    rival_checks.check_folders(alive(DenseVNet(width=6, prior=prior)), tmp_path)


def test_a_saved_network_segments_and_embeds_scans_and_takes_more_channels(tmp_path):
    torch.manual_seed(0)
    folder = save_pretrained(alive(DenseVNet(width=6)), tmp_path / "net")
    rival_checks.check_scans(folder)
    rival_checks.check_input_channels(folder)


def test_a_prior_is_kept_under_a_new_head_and_an_encoder_has_none(tmp_path):
    model = alive(DenseVNet(width=3, prior="spatial"))
    with torch.no_grad():
        model.prior.fill_(0.5)
    folder = save_pretrained(model, tmp_path / "net")
    assert bool((load_segmenter(folder, num_classes=4).prior == 0.5).all())
    encoder = load_encoder(folder)
    assert "prior" not in encoder.config.arguments
    assert [entry.name for entry in encoder.load_report.unused if entry.name == "prior"]
