"""The U-Net against the published layout and an independent float64 evaluation."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from universal_model_hub.errors import ConfigError, VolumeError, WeightsError
from universal_model_hub.networks import ARCHITECTURES
from universal_model_hub.networks.published import PUBLISHED_NAMES, from_published, to_published
from universal_model_hub.networks.unet3d import Encoder, UNet3D

# Source: the published layout at width 32, stage by stage: (name, in, middle, out) and up stages.
DOWN = [
    ("down_tr64", 1, 32, 64),
    ("down_tr128", 64, 64, 128),
    ("down_tr256", 128, 128, 256),
    ("down_tr512", 256, 256, 512),
]
UP = [("up_tr256", 512, 768, 256), ("up_tr128", 256, 384, 128), ("up_tr64", 128, 192, 64)]


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def published_shapes() -> dict[str, tuple[int, ...]]:
    """The 106 names and shapes, spelled out without our network."""
    shapes: dict[str, tuple[int, ...]] = {}

    def unit(prefix: str, inputs: int, outputs: int) -> None:
        shapes[f"{prefix}.conv1.weight"] = (outputs, inputs, 3, 3, 3)
        for name in ("conv1.bias", "bn1.weight", "bn1.bias", "bn1.running_mean", "bn1.running_var"):
            shapes[f"{prefix}.{name}"] = (outputs,)
        shapes[f"{prefix}.bn1.num_batches_tracked"] = ()

    for name, inputs, middle, outputs in DOWN:
        unit(f"{name}.ops.0", inputs, middle)
        unit(f"{name}.ops.1", middle, outputs)
    for name, inputs, joined, outputs in UP:
        shapes[f"{name}.up_conv.weight"] = (inputs, inputs, 2, 2, 2)
        shapes[f"{name}.up_conv.bias"] = (inputs,)
        unit(f"{name}.ops.0", joined, outputs)
        unit(f"{name}.ops.1", outputs, outputs)
    shapes["out_tr.final_conv.weight"] = (1, 64, 1, 1, 1)
    shapes["out_tr.final_conv.bias"] = (1,)
    return shapes


def float64_unet(state: dict[str, Tensor], x: Tensor, *, batch_statistics: bool) -> Tensor:
    """Evaluate the published layout layer by layer in float64, batch norm by hand."""
    state = {name: value.double() for name, value in state.items()}

    def unit(x: Tensor, prefix: str) -> Tensor:
        x = F.conv3d(x, state[f"{prefix}.conv1.weight"], state[f"{prefix}.conv1.bias"], padding=1)
        mean, var = state[f"{prefix}.bn1.running_mean"], state[f"{prefix}.bn1.running_var"]
        if batch_statistics:
            mean, var = x.mean(dim=(0, 2, 3, 4)), x.var(dim=(0, 2, 3, 4), unbiased=False)
        scale = state[f"{prefix}.bn1.weight"] / (var + 1e-5).sqrt()
        shift = state[f"{prefix}.bn1.bias"] - mean * scale
        return (x * scale[:, None, None, None] + shift[:, None, None, None]).clamp(min=0)

    skips = []
    x = x.double()
    for k, (name, *_) in enumerate(DOWN):
        if k > 0:
            N, C, X, Y, Z = x.shape
            x = x.reshape(N, C, X // 2, 2, Y // 2, 2, Z // 2, 2).amax(dim=(3, 5, 7))
        x = unit(unit(x, f"{name}.ops.0"), f"{name}.ops.1")
        skips.append(x)
    for (name, *_), skip in zip(UP, skips[2::-1], strict=True):
        N, _, X, Y, Z = x.shape
        weight, bias = state[f"{name}.up_conv.weight"], state[f"{name}.up_conv.bias"]
        x = torch.einsum("ncxyz,cdijk->ndxiyjzk", x, weight).reshape(N, -1, 2 * X, 2 * Y, 2 * Z)
        x = torch.cat([x + bias[:, None, None, None], skip], dim=1)
        x = unit(unit(x, f"{name}.ops.0"), f"{name}.ops.1")
    final = F.conv3d(x, state["out_tr.final_conv.weight"], state["out_tr.final_conv.bias"])
    return 1 / (1 + torch.exp(-final))


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give every tensor, running statistics included, a value that matters, in place."""
    generator = torch.Generator().manual_seed(seed)
    for name, value in model.state_dict().items():
        if name.endswith("running_var") or name.endswith("norm.weight"):
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)
        elif name.endswith(("bias", "running_mean")):
            value.copy_(0.2 * torch.randn(value.shape, generator=generator))
        elif value.ndim == 5:
            value.mul_(2.4)  # keeps the signal's size from layer to layer
    return model.eval()


def cube(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_parameter_counts_are_the_published_ones():
    with torch.device("meta"):
        paper, compact = UNet3D(), UNet3D(width=8)
    count = {name: sum(p.numel() for p in getattr(paper, name).parameters()) for name in PARTS}
    assert count == {"encoder": 7_027_776, "decoder": 12_045_824, "head": 65}
    assert sum(p.numel() for p in paper.parameters()) == 19_073_665
    assert sum(p.numel() for p in compact.parameters()) == 1_193_761


PARTS = ("encoder", "decoder", "head")


def test_names_and_shapes_are_the_published_ones():
    with torch.device("meta"):
        state = ARCHITECTURES["unet3d"]().state_dict()
    shapes = {name: tuple(value.shape) for name, value in to_published(state).items()}
    assert len(shapes) == 106
    assert list(shapes.items()) == list(published_shapes().items())  # in the published order too


def test_published_names_there_and_back_with_wrapper_prefixes():
    state = UNet3D(width=2).state_dict()
    wrapped = {f"module._orig_mod.{name}": value for name, value in to_published(state).items()}
    back = from_published(wrapped)
    assert back.keys() == state.keys()
    assert all(back[name] is state[name] for name in state)


def test_published_names_refuse_what_does_not_fit():
    state = to_published(UNet3D(width=2).state_dict())
    with pytest.raises(WeightsError, match=r"1 are missing.*up_tr64.up_conv.bias"):
        from_published({n: v for n, v in state.items() if n != "up_tr64.up_conv.bias"})
    with pytest.raises(WeightsError, match=r"1 are unexpected.*fc.weight"):
        from_published({**state, "fc.weight": torch.zeros(1)})
    with pytest.raises(WeightsError, match="each tensor once"):
        from_published({**state, "module.out_tr.final_conv.bias": torch.zeros(1)})
    with pytest.raises(WeightsError, match="106 are unexpected"):  # prefixes only one way
        to_published({f"module.{n}": v for n, v in state.items()})
    assert len(PUBLISHED_NAMES) == 106


@pytest.mark.parametrize("normalization", ["running", "batch"])
def test_outputs_agree_with_a_float64_evaluation_by_published_names(normalization):
    model = randomized(UNet3D(width=8, normalization=normalization))
    x = cube(2, 1, 16, 24, 8)
    expected = float64_unet(
        to_published(model.state_dict()), x, batch_statistics=normalization == "batch"
    )
    assert expected.std() > 0.01
    with torch.no_grad():
        np.testing.assert_allclose(model(x), expected, atol=1e-4, rtol=0)


def test_full_width_agrees_with_a_float64_evaluation():
    model = randomized(UNet3D())
    x = cube(1, 1, 16, 8, 8)
    expected = float64_unet(to_published(model.state_dict()), x, batch_statistics=False)
    with torch.no_grad():
        np.testing.assert_allclose(model(x), expected, atol=1e-4, rtol=0)


def test_batch_statistics_in_eval_depend_on_the_batch_and_leave_the_buffers():
    model = randomized(UNet3D(width=4, normalization="batch"))
    before = copy.deepcopy(model.state_dict())
    a, b = cube(1, 1, 16, 16, 16), 3 * cube(1, 1, 16, 16, 16, seed=1)
    with torch.no_grad():
        alone, together = model(a), model(torch.cat([a, b]))[:1]
    assert (alone - together).abs().max() > 1e-3
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_both_normalizations_train_alike_and_share_one_state():
    running = randomized(UNet3D(width=2)).train()
    batch = UNet3D(width=2, normalization="batch").train()
    batch.load_state_dict(running.state_dict())
    x = cube(2, 1, 16, 16, 16)
    assert torch.equal(running(x), batch(x))
    after = batch.state_dict()
    assert all(torch.equal(after[name], value) for name, value in running.state_dict().items())
    assert after["encoder.levels.0.units.0.norm.num_batches_tracked"] == 1


@pytest.mark.parametrize("shape", [(1, 1, 1), (9, 16, 3), (8, 8, 8), (13, 1, 30)])
def test_any_size_is_padded_with_zeros_at_the_high_end_and_cropped(shape):
    model = randomized(UNet3D(width=4))
    x = cube(1, 1, *shape)
    sides = [-(-side // 8) * 8 for side in shape]
    padded = torch.zeros(1, 1, *sides)
    padded[:, :, : shape[0], : shape[1], : shape[2]] = x
    with torch.no_grad():
        whole = model(padded)[:, :, : shape[0], : shape[1], : shape[2]]
        torch.testing.assert_close(model(x), whole, atol=1e-6, rtol=0)
        features = model.encoder(x)
        deepest = model.encoder.pyramid(padded)[3]
    for k, feature in enumerate(features):
        assert feature.shape == (1, 8 * 2**k, *(-(-side // 2**k) for side in shape))
    X, Y, Z = features[3].shape[2:]
    torch.testing.assert_close(features[3], deepest[:, :, :X, :Y, :Z], atol=1e-6, rtol=0)
    torch.testing.assert_close(model.encoder.embed(x), features[3].mean(dim=(2, 3, 4)))


def test_one_voxel_works_under_batch_statistics():
    model = randomized(UNet3D(width=2, normalization="batch"))
    assert torch.isfinite(model(cube(1, 1, 1, 1, 1))).all()


@pytest.mark.parametrize("shape", [(1, 16, 16, 16), (1, 1, 0, 8, 8), (8, 8)])
def test_a_batch_of_the_wrong_shape_is_refused(shape):
    with pytest.raises(VolumeError, match="N, C, X, Y, Z"):
        UNet3D(width=1)(torch.zeros(shape))


def test_out_indices_choose_levels_and_feature_info_describes_them():
    full, chosen = Encoder(width=2), Encoder(width=2, out_indices=(-1, 1))
    chosen.load_state_dict(full.state_dict())
    full.eval(), chosen.eval()
    x = cube(1, 1, 16, 8, 24)
    maps = chosen(x)
    assert [tuple(info) for info in chosen.feature_info] == [(8, 2, 1), (32, 8, 3)]
    assert [m.shape[1] for m in maps] == [8, 32]
    assert torch.equal(maps[0], full(x)[1])
    assert torch.equal(maps[1], full(x)[3])
    assert [info.channels for info in full.feature_info] == [4, 8, 16, 32]
    assert torch.equal(chosen.embed(x), full.embed(x))
    assert chosen.num_features == 32


@pytest.mark.parametrize("chosen", [(), (4,), (0, 0), (0, -4), ("1",)])
def test_bad_out_indices_are_refused(chosen):
    with pytest.raises(ConfigError, match="out_indices"):
        Encoder(width=1, out_indices=chosen)


def test_bad_options_are_refused():
    with pytest.raises(ConfigError, match="normalization"):
        UNet3D(width=1, normalization="group")
    with pytest.raises(ConfigError, match="activation"):
        UNet3D(width=1, activation="softmax")


def reach(module: nn.Module, output, voxel: int) -> int:
    """How many voxels left of ``voxel`` the gradient of ``output`` at it extends along X."""
    x = cube(1, 1, 128, 8, 8).double().requires_grad_()
    output(module, x).sum().backward()
    touched = x.grad.abs().sum(dim=(0, 1, 3, 4)).nonzero().flatten()
    return voxel - int(touched[0])


def test_halo_is_the_receptive_field_rounded_up_to_the_stride():
    model = randomized(UNet3D(width=2, activation=None)).double()
    for unit in model.modules():  # no dead ReLU may hide a path
        if isinstance(unit, nn.BatchNorm3d):
            nn.init.constant_(unit.bias, 50.0)
    assert reach(model, lambda m, x: m(x)[0, 0, 64], 64) == 46
    assert reach(model.encoder, lambda m, x: m(x)[3][0, :, 8], 64) == 30
    assert (UNet3D.halo, Encoder.halo) == (48, 32)


def test_checkpointing_gives_the_same_gradients_and_running_statistics():
    plain = randomized(UNet3D(width=2)).train()
    saving = UNet3D(width=2, checkpointing=True).train()
    saving.load_state_dict(plain.state_dict())
    for step in range(2):
        x = cube(2, 1, 16, 8, 8, seed=step)
        for model in (plain, saving):
            ((model(x) - x) ** 2).mean().backward()
    for (name, a), b in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-7, rtol=1e-4, msg=name)
    for name, value in plain.state_dict().items():
        assert torch.equal(value, saving.state_dict()[name]), name


def test_checkpointing_keeps_fewer_activations():
    def kept(model: nn.Module) -> int:
        stored = 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal stored
            stored += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(cube(1, 1, 16, 16, 16))
        return stored

    assert kept(UNet3D(width=4, checkpointing=True)) < 0.4 * kept(UNet3D(width=4))


def test_the_compact_network_learns_to_restore_one_cube():
    torch.manual_seed(0)
    model = UNet3D(width=4)
    ramp = torch.linspace(0.1, 0.9, 16).expand(1, 1, 16, 16, 16)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    losses = []
    for _ in range(40):
        loss = F.mse_loss(model(ramp), ramp)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
