"""LoRA: the start is the pretrained network, few parameters train, merging is exact."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from universal_model_hub.errors import ConfigError
from universal_model_hub.fit.training.lora import (
    ALPHA_PER_RANK,
    LoraConv3d,
    add_lora,
    default_rank,
    has_lora,
    lora_parameters,
    merge_lora,
)
from universal_model_hub.fit.training.trainable import parameter_groups, set_train_mode
from universal_model_hub.fit.training.transfer import build_classifier, build_model
from universal_model_hub.networks.unet3d import Encoder

BUILDERS = {"unet": build_model, "classifier": build_classifier}
both = pytest.mark.parametrize("kind", BUILDERS)


def network(kind: str, width: int = 4, num_classes: int = 3) -> nn.Module:
    """A network whose batch norms know their inputs: signals have size 1 in eval mode too."""
    torch.manual_seed(0)
    model = BUILDERS[kind](None, num_classes=num_classes, arguments={"width": width})
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm3d)]
    for momentum in (1.0, 0.1):  # the first pass counts in full
        for norm in norms:
            norm.momentum = momentum
        with torch.no_grad():
            model(scans(4, seed=5))
    return model.train(False)


def scans(count: int = 2, seed: int = 1) -> torch.Tensor:
    return torch.rand(count, 1, 16, 16, 8, generator=torch.Generator().manual_seed(seed))


def randomize_adapters(model: nn.Module, size: float = 0.1) -> None:
    """Give adapters values; 0.1 is about what 40 steps at a rate of 1e-2 lead to."""
    generator = torch.Generator().manual_seed(3)
    for module in model.modules():
        if isinstance(module, LoraConv3d):
            values = size * torch.randn(module.up.shape, generator=generator)
            module.up.data = values.to(module.up.dtype)


def one_step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int = 1) -> None:
    set_train_mode(model, "lora")
    optimizer.zero_grad()
    logits = model(scans(seed=seed))
    classes = torch.arange(logits.shape[0]).view(-1, *[1] * (logits.ndim - 2))
    F.cross_entropy(logits, classes.expand(logits.shape[0], *logits.shape[2:])).backward()
    optimizer.step()


def optimizer_of(model: nn.Module) -> torch.optim.AdamW:
    return torch.optim.AdamW(
        parameter_groups(model, mode="lora", learning_rate=1e-2, weight_decay=1e-2)
    )


def size(parameters) -> int:
    return sum(parameter.numel() for parameter in parameters)


@both
def test_the_start_is_the_pretrained_network_to_the_bit(kind):
    model = network(kind)
    expected = model(scans())
    add_lora(model)
    assert has_lora(model)
    assert torch.equal(model(scans()), expected)


def test_the_update_is_the_convolution_of_the_product_of_both_matrices():
    torch.manual_seed(0)
    conv = nn.Conv3d(3, 5, kernel_size=(3, 1, 2), stride=(2, 1, 1), padding=(1, 0, 1))
    plain = copy.deepcopy(conv)
    adapted = LoraConv3d(conv, rank=2)
    nn.init.normal_(adapted.up)
    up, down = adapted.up.reshape(5, 2), adapted.down.reshape(2, -1)
    kernel = plain.weight + ALPHA_PER_RANK * (up @ down).reshape(plain.weight.shape)
    x = torch.rand(2, 3, 5, 6, 4)
    expected = F.conv3d(x, kernel, plain.bias, stride=(2, 1, 1), padding=(1, 0, 1))
    torch.testing.assert_close(adapted(x), expected)


@both
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("dtype", "size", "tolerance"),
    # float64 tells a wrong merge from rounding, even where wild adapters give logits of 100.
    [(torch.float32, 0.1, 1e-5), (torch.float64, 0.3, 1e-10)],
)
def test_merged_weights_equal_the_unmerged_for_random_adapters(
    kind, training, dtype, size, tolerance
):
    model = network(kind, width=8).to(dtype)
    x = scans().to(dtype)
    before = copy.deepcopy(model).train(training)(x)
    add_lora(model)
    randomize_adapters(model, size)
    merged = copy.deepcopy(model)
    merge_lora(merged)
    expected = model.train(training)(x)
    assert (expected - before).abs().max() > 1e-2  # the adapters do something
    torch.testing.assert_close(merged.train(training)(x), expected, atol=tolerance, rtol=0)


@both
@pytest.mark.parametrize("name", ["unet3d-compact", "unet3d-compact-chest"])
def test_merging_trained_adapters_of_bundled_weights_keeps_probabilities(kind, name):
    """Logits may differ by more than 1e-5: both sides are that far from their float64 value."""
    torch.manual_seed(0)
    model = BUILDERS[kind](name, num_classes=3)
    add_lora(model)
    optimizer = optimizer_of(model)
    for step in range(8):
        one_step(model, optimizer, seed=step)
    merged = copy.deepcopy(model.train(False))
    merge_lora(merged)
    expected, got = model(scans()), merged(scans())
    torch.testing.assert_close(got.softmax(1), expected.softmax(1), atol=1e-5, rtol=0)
    exact = copy.deepcopy(model).double()
    merged_exact = copy.deepcopy(exact)
    merge_lora(merged_exact)
    x = scans().double()
    torch.testing.assert_close(merged_exact(x), exact(x), atol=1e-10, rtol=0)


@both
@pytest.mark.parametrize("training", [True, False])
def test_merged_weights_equal_the_unmerged_after_training(kind, training):
    model = network(kind)
    start = copy.deepcopy(model)
    torch.manual_seed(1)
    add_lora(model, 2)
    optimizer = optimizer_of(model)
    for step in range(5):
        one_step(model, optimizer, seed=step)
    merged = copy.deepcopy(model)
    merge_lora(merged)
    deep = "encoder.levels.3.units.1.conv.weight"
    moved = merged.state_dict()[deep] - start.state_dict()[deep]
    assert moved.abs().max() > 1e-4  # it was folded in
    assert torch.linalg.matrix_rank(moved.flatten(1), rtol=1e-3) == 2
    expected = model.train(training)(scans())
    torch.testing.assert_close(merged.train(training)(scans()), expected, atol=1e-5, rtol=0)


@both
def test_a_merged_network_is_an_ordinary_one(kind):
    model, plain = network(kind), network(kind)
    add_lora(model)
    randomize_adapters(model)
    merge_lora(model)
    assert not has_lora(model)
    assert [(n, type(m)) for n, m in model.named_modules()] == [
        (n, type(m)) for n, m in plain.named_modules()
    ]
    assert list(model.state_dict()) == list(plain.state_dict())
    assert all(parameter.requires_grad for parameter in model.parameters())
    plain.load_state_dict(model.state_dict())
    assert torch.equal(plain(scans()), model(scans()))


def test_merging_a_network_without_adapters_changes_nothing():
    model = network("unet")
    model.encoder.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    merge_lora(model)
    assert not any(parameter.requires_grad for parameter in model.encoder.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@both
def test_adapters_norms_and_head_train_and_nothing_else(kind):
    model = network(kind)
    trained = add_lora(model, 2)
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    expected = {
        name
        for name, _ in model.named_parameters()
        if name.endswith((".down", ".up")) or ".norm." in name or name.startswith("head.")
    }
    assert names == expected
    assert trained == size(p for p in model.parameters() if p.requires_grad)
    assert trained == size(lora_parameters(model)) + size(model.head.parameters())

    before = copy.deepcopy(dict(model.named_parameters()))
    optimizer = optimizer_of(model)
    for step in range(2):  # the first one moves only ``up``, which is zero before it
        one_step(model, optimizer, seed=step)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (name not in expected), name


@both
def test_every_trained_parameter_gets_a_gradient_in_the_first_step(kind):
    """DistributedDataParallel waits forever for one that gets none."""
    model = network(kind)
    add_lora(model)
    one_step(model, optimizer_of(model))
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


@both
@pytest.mark.parametrize("width", [8, 16, 32])
def test_under_five_percent_train_and_one_rank_more_would_be_too_much(kind, width):
    with torch.device("meta"):  # counts need no memory
        model = BUILDERS[kind](None, num_classes=3, arguments={"width": width})
    total = size(model.parameters())
    rank = default_rank(model)
    larger = copy.deepcopy(model)
    assert add_lora(model) < 0.05 * total <= add_lora(larger, rank + 1)
    found = next(m for m in model.modules() if isinstance(m, LoraConv3d))
    assert found.down.shape[0] == rank


def test_a_large_head_leaves_less_to_the_adapters_and_always_trains_in_full():
    small, large = (network("classifier", 8, classes) for classes in (2, 100))
    assert default_rank(large) < default_rank(small)
    add_lora(large)
    assert all(parameter.requires_grad for parameter in large.head.parameters())


def test_the_lowest_default_rank_is_one_where_even_that_is_over_five_percent():
    model = network("unet", width=2)
    total = size(model.parameters())
    assert default_rank(model) == 1
    assert add_lora(model) > 0.05 * total


def test_a_copy_with_adapters_is_independent_and_takes_the_state():
    model = network("unet")
    add_lora(model)
    twin = copy.deepcopy(model)
    randomize_adapters(model)
    assert not torch.equal(twin(scans()), model(scans()))
    twin.load_state_dict(model.state_dict())
    assert torch.equal(twin(scans()), model(scans()))


def test_recomputed_activations_give_the_same_gradients():
    gradients = []
    for checkpointing in (False, True):
        model = network("unet")
        model.encoder.checkpointing = model.decoder.checkpointing = checkpointing
        torch.manual_seed(1)
        add_lora(model)
        randomize_adapters(model)
        model.train()(scans()).square().mean().backward()
        gradients.append([p.grad for p in lora_parameters(model)])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


@pytest.mark.parametrize("rank", [0, -1, 1.5])
def test_a_bad_rank_is_refused_and_nothing_is_changed(rank):
    model = network("unet")
    with pytest.raises(ConfigError, match="whole number from 1"):
        add_lora(model, rank)
    assert not has_lora(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_adapters_on_adapters_are_refused():
    model = network("unet")
    add_lora(model)
    with pytest.raises(ConfigError, match="merge_lora first"):
        add_lora(model)


def with_head(*layers: nn.Module) -> nn.Sequential:
    model = nn.Sequential(*layers)
    model.head = nn.Conv3d(4, 2, kernel_size=3)
    return model


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Encoder(width=2), "network with a head"),
        (with_head(nn.Conv3d(4, 4, kernel_size=1)), "convolutions to adapt"),
        (with_head(nn.Conv3d(4, 4, 3), nn.Conv3d(4, 4, 3, groups=2)), "one group"),
        (
            with_head(nn.Conv3d(4, 4, 3), nn.Conv3d(4, 4, 3, padding=1, padding_mode="circular")),
            "pad with zeros",
        ),
    ],
)
def test_a_network_that_cannot_be_adapted_is_refused_before_any_change(model, message):
    with pytest.raises(ConfigError, match=message):
        add_lora(model)
    assert not has_lora(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_convolutions_inside_the_head_are_left_as_they_are():
    model = with_head(nn.Conv3d(4, 4, 3))
    model.head = nn.Sequential(nn.Conv3d(4, 4, 3, groups=2), nn.Conv3d(4, 2, 3))
    trained = add_lora(model, 1)
    assert [type(layer) for layer in model.head] == [nn.Conv3d, nn.Conv3d]
    assert trained == 4 * 27 + 4 + size(model.head.parameters())
