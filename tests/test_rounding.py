"""bfloat16 on a processor without it: products of rounded numbers, rounded once."""

import warnings
from dataclasses import replace

import pytest
import torch
from test_fit_loop import SETTINGS, ball_case, new_model
from torch import nn

from training.config import load_recipe
from universal_model_hub import devices
from universal_model_hub.fit.training.engine import TrainingWarning, autocast
from universal_model_hub.fit.training.loop import fit
from universal_model_hub.fit.training.sampling import CubeSampler
from universal_model_hub.networks.unet3d import UNet3D
from universal_model_hub.rounding import rounded_autocast

LAYERS = {
    "conv": (lambda: nn.Conv3d(3, 4, 3, padding=1), (2, 3, 6, 5, 4)),
    "strided": (lambda: nn.Conv3d(3, 4, 3, stride=2, padding=1), (2, 3, 6, 5, 4)),
    "transposed": (lambda: nn.ConvTranspose3d(3, 4, 2, 2), (2, 3, 3, 4, 5)),
    "linear": (lambda: nn.Linear(7, 5), (6, 7)),
}


@pytest.fixture
def without_bfloat16(monkeypatch):
    monkeypatch.setattr(devices, "cpu_has_bfloat16", lambda: False)


def outputs(layer: nn.Module, x: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
    """Output, and gradients of input and parameters, for a gradient that bfloat16 holds."""
    x = x.detach().to(dtype, copy=True).requires_grad_()
    y = layer(x)
    towards = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    (y * towards.to(y.dtype)).sum().backward()
    return [y.detach(), x.grad, *(p.grad for p in layer.parameters())]


@pytest.mark.parametrize("name", LAYERS)
def test_products_are_those_of_rounded_numbers_rounded_to_bfloat16(name):
    build, shape = LAYERS[name]
    layer, exact = build(), build().double()
    exact.load_state_dict({k: v.bfloat16().double() for k, v in layer.state_dict().items()})
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with rounded_autocast():
        found = outputs(layer, x, torch.float32)
    wanted = outputs(exact, x.bfloat16(), torch.float64)
    assert found[0].dtype == torch.bfloat16
    for value, expected in zip(found, wanted, strict=True):
        # float32's sum may lie on the other side of where bfloat16 rounds: one step, and seldom.
        step = 2.0**-7 * expected.abs() + 1e-6
        assert bool(((value.double() - expected).abs() <= step).all())
        assert (value.double() == expected.bfloat16().double()).double().mean() > 0.9
    with torch.no_grad():
        assert not torch.equal(found[0].float(), layer(x))


@pytest.mark.skipif(not devices.cpu_has_bfloat16(), reason="no bfloat16 to compare with")
@pytest.mark.parametrize("name", LAYERS)
def test_a_processor_with_bfloat16_agrees(name):
    build, shape = LAYERS[name]
    layer, x = build(), torch.randn(shape)
    with rounded_autocast():
        rounded = outputs(layer, x, torch.float32)
    layer.zero_grad()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        native = outputs(layer, x, torch.float32)
    for ours, theirs in zip(rounded, native, strict=True):
        assert ours.dtype == theirs.dtype
        assert (ours - theirs).float().norm() < 0.01 * theirs.float().norm()


def test_only_products_are_rounded_and_only_where_autocast_is_on():
    a, b = torch.randn(2, 3, 4), torch.randn(2, 4, 5)
    with rounded_autocast():
        assert (a @ b).dtype == torch.bmm(a, b).dtype == torch.matmul(a, b).dtype == torch.bfloat16
        assert torch.equal(torch.einsum("nij,njk->nik", a, b), a @ b)
        assert (a + 1).dtype == torch.float32
        assert (a.double() @ b.double()).dtype == torch.float64
        with torch.autocast("cpu", enabled=False):
            assert torch.equal(a @ b, torch.einsum("nij,njk->nik", a, b))
    assert (a @ b).dtype == torch.float32


def test_activations_that_are_recomputed_are_rounded_again(without_bfloat16):
    whole, saving = UNet3D(width=2).train(), UNet3D(width=2, checkpointing=True).train()
    saving.load_state_dict(whole.state_dict())
    x = torch.rand(1, 1, 16, 16, 16)
    for model in (whole, saving):
        with autocast(torch.device("cpu"), "bfloat16"):
            loss = model(x).float().square().sum()
        loss.backward()  # outside, as everywhere
    for (name, p), q in zip(whole.named_parameters(), saving.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name


def test_a_fit_in_bfloat16_is_close_to_float32_and_not_it(without_bfloat16):
    settings = replace(SETTINGS, cube=(24, 24, 24), steps=3)
    losses = {}
    for precision in ("float32", "bfloat16"):
        chosen = replace(settings, precision=precision)
        torch.manual_seed(0)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fitted = fit(new_model(), CubeSampler([ball_case()], chosen, 2), chosen)
        said = [str(w.message) for w in caught if w.category is TrainingWarning]
        assert len(said) == (precision == "bfloat16"), said  # once, not at every step
        losses[precision] = fitted.losses
    assert "no bfloat16 (no AVX-512)" in said[0]
    assert losses["bfloat16"] == pytest.approx(losses["float32"], abs=0.02)
    assert losses["bfloat16"] != losses["float32"]


def test_float32_and_a_processor_with_bfloat16_take_torchs_own_autocast(monkeypatch):
    cpu = torch.device("cpu")
    for has, precision in ((False, "float32"), (True, "bfloat16")):
        monkeypatch.setattr(devices, "cpu_has_bfloat16", lambda has=has: has)
        assert isinstance(autocast(cpu, precision), torch.autocast)
    assert load_recipe("compact").run.precision == "bfloat16"  # what this is for
