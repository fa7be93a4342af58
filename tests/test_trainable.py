"""What trains, at which rate and with which weight decay."""

import copy

import pytest
import torch
from torch import nn

from universal_model_hub.errors import ConfigError
from universal_model_hub.fit.training.lora import add_lora
from universal_model_hub.fit.training.trainable import (
    parameter_depths,
    parameter_groups,
    set_train_mode,
)
from universal_model_hub.fit.training.transfer import build_classifier, build_model
from universal_model_hub.networks.unet3d import Encoder

RATES = {"learning_rate": 0.1, "weight_decay": 0.01}


def unet() -> nn.Module:
    return build_model(None, num_classes=3, arguments={"width": 2})


def classifier() -> nn.Module:
    return build_classifier(None, num_classes=3, arguments={"width": 2})


class Chain(nn.Module):
    """A network without levels, its head declared first."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(3, 2)
        self.stem = nn.Linear(4, 3)
        self.body = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
        self.offset = nn.Parameter(torch.zeros(4))


def by_name(model: nn.Module, groups: list[dict]) -> dict[str, dict]:
    """The group of each parameter; fails where one is in two."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [(names[id(p)], group) for group in groups for p in group["params"]]
    assert len(dict(found)) == len(found)
    return dict(found)


@pytest.mark.parametrize("build", [unet, classifier, Chain])
def test_all_parameters_train_and_biases_and_norms_have_no_weight_decay(build):
    model = build()
    groups = by_name(model, parameter_groups(model, mode="all", **RATES))
    assert set(groups) == {name for name, _ in model.named_parameters()}
    for name, group in groups.items():
        free = name.endswith("bias") or ".norm." in name or name == "offset"
        assert group["weight_decay"] == (0.0 if free else 0.01), name
        assert group["lr"] == 0.1


def test_rates_of_a_unet_fall_from_the_head_through_the_decoder_to_the_first_level():
    model = unet()
    groups = by_name(model, parameter_groups(model, mode="all", layer_decay=0.5, **RATES))
    order = ["head."]
    order += [f"decoder.levels.{k}." for k in (2, 1, 0)]  # 2 gives the finest map
    order += [f"encoder.levels.{k}." for k in (3, 2, 1, 0)]
    for name, group in groups.items():
        depth = next(k for k, part in enumerate(order) if name.startswith(part))
        assert group["lr"] == 0.1 * 0.5**depth, name
    assert {group["lr"] for group in groups.values()} == {0.1 * 0.5**k for k in range(8)}


def test_rates_of_a_classifier_fall_from_the_head_to_the_first_level():
    model = classifier()
    groups = by_name(model, parameter_groups(model, mode="all", layer_decay=0.5, **RATES))
    for name, group in groups.items():
        depth = 0 if name.startswith("head.") else 4 - int(name.split(".")[2])
        assert group["lr"] == 0.1 * 0.5**depth, name


def test_a_network_without_levels_counts_its_children_from_the_last_one_back():
    depths = parameter_depths(Chain())
    assert {name.split(".")[0]: depth for name, depth in depths.items()} == {
        **{"head": 0, "body": 1, "stem": 2, "offset": 2}
    }


def test_an_encoder_without_a_head_may_train_in_full_but_not_by_its_head():
    encoder = Encoder(width=2)
    parameter_groups(encoder, mode="all", **RATES)
    with pytest.raises(ConfigError, match="network with a head"):
        parameter_groups(encoder, mode="head", **RATES)
    with pytest.raises(ConfigError, match="network with a head"):
        set_train_mode(encoder, "head")


def test_groups_come_in_the_same_order_every_time():
    model = unet()
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    orders = []
    for twin in (model, copy.deepcopy(model)):
        names |= {id(parameter): name for name, parameter in twin.named_parameters()}
        groups = parameter_groups(twin, mode="all", layer_decay=0.5, **RATES)
        orders.append([[names[id(p)] for p in group["params"]] for group in groups])
    assert orders[0] == orders[1]
    assert orders[0][:2] == [["head.weight"], ["head.bias"]]
    assert orders[0][-2][0] == "encoder.levels.0.units.0.conv.weight"


@pytest.mark.parametrize("build", [unet, classifier])
def test_a_frozen_body_keeps_weights_and_statistics_while_the_head_learns(build):
    torch.manual_seed(0)
    model = build()
    groups = parameter_groups(model, mode="head", **RATES)
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(groups)
    set_train_mode(model, "head")
    model(torch.rand(2, 1, 8, 8, 8)).square().mean().backward()
    optimizer.step()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]) == (not name.startswith("head.")), name
    frozen = [p for name, p in model.named_parameters() if not name.startswith("head.")]
    assert all(not p.requires_grad and p.grad is None for p in frozen)


@pytest.mark.parametrize("mode", ["all", "lora"])
def test_norms_follow_the_data_where_the_body_trains(mode):
    model = unet().train(False)
    set_train_mode(model, mode)
    assert all(module.training for module in model.modules())
    model(torch.rand(2, 1, 8, 8, 8))
    assert model.encoder.levels[0].units[0].norm.num_batches_tracked == 1


def test_train_mode_of_a_frozen_body_puts_the_head_alone_into_train_mode():
    model = unet().train()
    set_train_mode(model, "head")
    assert [name for name, module in model.named_modules() if module.training] == ["head"]


def test_a_mode_chosen_later_thaws_what_an_earlier_one_froze():
    model = unet()
    parameter_groups(model, mode="head", **RATES)
    parameter_groups(model, mode="all", **RATES)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_adapters_have_the_rate_of_their_level_and_decay_like_kernels():
    model = unet()
    trained = add_lora(model, 1)
    groups = parameter_groups(model, mode="lora", layer_decay=0.5, **RATES)
    assert sum(p.numel() for group in groups for p in group["params"]) == trained
    named = by_name(model, groups)
    adapter = named["encoder.levels.3.units.0.conv.down"]
    assert (adapter["lr"], adapter["weight_decay"]) == (0.1 * 0.5**4, 0.01)
    assert named["encoder.levels.3.units.0.norm.weight"]["weight_decay"] == 0.0
    assert not any(name.endswith("conv.conv.weight") for name in named)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"mode": "encoder"}, "what trains to be all, head, lora"),
        ({"mode": "lora"}, "add_lora first"),
        ({"learning_rate": 0.0}, "positive learning_rate"),
        ({"learning_rate": float("nan")}, "positive learning_rate"),
        ({"weight_decay": -0.1}, "weight_decay of at least 0"),
        ({"layer_decay": 0.0}, "layer_decay above 0 and at most 1"),
        ({"layer_decay": 1.5}, "layer_decay above 0 and at most 1"),
    ],
)
def test_a_value_that_cannot_be_used_is_refused_and_freezes_nothing(change, message):
    model = unet()
    with pytest.raises(ConfigError, match=message):
        parameter_groups(model, **{"mode": "head", **RATES, **change})
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_an_unknown_train_mode_is_refused():
    with pytest.raises(ConfigError, match="got 'frozen'"):
        set_train_mode(unet(), "frozen")
