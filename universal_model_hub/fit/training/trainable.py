"""Which parameters a fine-tuning changes, and at which rate.

Depth counts modules from the head down: a layer far from it has learned what holds for many tasks
and may be moved less (``layer_decay``). Source: Howard and Ruder 2018 (discriminative rates).
"""

import math
from typing import Any

from torch import nn

from universal_model_hub.errors import ConfigError
from universal_model_hub.fit.training.lora import has_lora, head_of, lora_parameters

MODES = ("all", "head", "lora")


def parameter_groups(
    model: nn.Module,
    *,
    mode: str,
    learning_rate: float,
    weight_decay: float,
    layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """Return the groups of an optimizer: what trains, its rate and its weight decay.

    What does not train is frozen, in place. Biases and norms have no weight decay. Groups go from
    the head to the first layer, kernels before the rest, each in the network's own order.

    Args:
        model: Has a ``head``, unless everything trains.
        mode: ``all``, ``head``, or ``lora``: adapters, norms and head.
        learning_rate: Of the head.
        weight_decay: Of kernels.
        layer_decay: Factor from one depth to the next, above 0 and at most 1.

    Raises:
        ConfigError: If a value cannot be used, or the network has no head or no adapters to train.
    """
    _check_mode(mode)
    if not 0 < learning_rate < math.inf:
        raise ConfigError(f"Expected a positive learning_rate, got {learning_rate}.")
    if not 0 <= weight_decay < math.inf:
        raise ConfigError(f"Expected a weight_decay of at least 0, got {weight_decay}.")
    if not 0 < layer_decay <= 1:
        raise ConfigError(f"Expected a layer_decay above 0 and at most 1, got {layer_decay}.")
    trained = _trained(model, mode)
    depths = parameter_depths(model)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(id(parameter) in trained)
        if parameter.requires_grad:
            # One axis: a bias, or the factor or offset of a norm.
            groups.setdefault((depths[name], parameter.ndim < 2), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": learning_rate * layer_decay**depth,
            "weight_decay": 0.0 if no_decay else weight_decay,
        }
        for (depth, no_decay), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def parameter_depths(model: nn.Module) -> dict[str, int]:
    """Return how many stages lie between each parameter and the head, by its name.

    Head 0; decoder levels from the finest down; encoder levels from the deepest up, for that is the
    way from the answer back to the scan. A network without levels counts its direct children from
    the last one back. What belongs to none of these is as far as the farthest.
    """
    stages = _stages(model)
    last = max(stages.values(), default=0)
    depths = {}
    for name, _ in model.named_parameters():
        fitting = [stage for stage in stages if name.startswith(f"{stage}.")]
        depths[name] = stages[max(fitting, key=len)] if fitting else last
    return depths


def set_train_mode(model: nn.Module, mode: str) -> None:
    """Put a model in train mode; where only the head trains, the norms below keep their statistics.

    Raises:
        ConfigError: If the mode is unknown, or only the head trains and there is none.
    """
    _check_mode(mode)
    if mode != "head":
        model.train()
        return
    head = head_of(model)
    model.train(False)
    head.train()


def _check_mode(mode: str) -> None:
    if mode not in MODES:
        raise ConfigError(f"Expected what trains to be {', '.join(MODES)}, got {mode!r}.")


def _trained(model: nn.Module, mode: str) -> set[int]:
    if mode == "all":
        return {id(parameter) for parameter in model.parameters()}
    trained = {id(parameter) for parameter in head_of(model).parameters()}
    if mode == "lora":
        if not has_lora(model):
            raise ConfigError("Expected a network with adapters, got none. Call add_lora first.")
        trained |= {id(parameter) for parameter in lora_parameters(model)}
    return trained


def _stages(model: nn.Module) -> dict[str, int]:
    """Return the depth of each part, by its name: the one place that orders a network."""
    parts = []
    for side in ("decoder", "encoder"):
        levels = getattr(getattr(model, side, None), "levels", None)
        if isinstance(levels, nn.ModuleList):
            # The decoder's levels are stored from the deepest up, the encoder's from the finest.
            parts += [f"{side}.levels.{k}" for k in reversed(range(len(levels)))]
    if not parts:
        parts = [name for name, _ in model.named_children() if name != "head"][::-1]
    return {part: depth for depth, part in enumerate(["head", *parts])}
