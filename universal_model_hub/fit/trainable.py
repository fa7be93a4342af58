"""Which parameters a fine-tuning changes, and at which rate.

Depth counts modules from the head down: a layer far from it has learned what holds for many tasks
and may be moved less (``layer_decay``). Source: Howard and Ruder 2018 (discriminative rates).
"""

from typing import Any

from torch import nn

from universal_model_hub.errors import ConfigError
from universal_model_hub.fit.lora import lora_parameters

MODES = ("all", "head", "lora")
NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


def parameter_groups(
    model: nn.Module,
    *,
    mode: str,
    learning_rate: float,
    weight_decay: float,
    layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """Return the groups of an optimizer: what trains, its rate and its weight decay.

    What does not train is frozen. Biases and norms have no weight decay.

    Args:
        model: Has a ``head``.
        mode: ``all``, ``head``, or ``lora``: adapters, norms and head.
        learning_rate: Of the head.
        weight_decay: Of kernels.
        layer_decay: Factor from one depth to the next, above 0 and at most 1.

    Raises:
        ConfigError: If the mode or the factor cannot be used.
    """
    if mode not in MODES:
        raise ConfigError(f"Expected what trains to be {', '.join(MODES)}, got {mode!r}.")
    if not 0 < layer_decay <= 1:
        raise ConfigError(f"Expected a layer_decay above 0 and at most 1, got {layer_decay}.")
    trained = _trained(model, mode)
    plain = _without_decay(model)
    depths = parameter_depths(model)
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(id(parameter) in trained)
        if parameter.requires_grad:
            groups.setdefault((depths[name], name in plain), []).append(parameter)
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
    way from the answer back to the scan. A network without levels counts its direct children.
    """
    stages = _stages(model)
    last = max(stages.values(), default=0)
    depths = {}
    for name, _ in model.named_parameters():
        fitting = [stage for stage in stages if name.startswith(f"{stage}.")]
        depths[name] = stages[max(fitting, key=len)] if fitting else last
    return depths


def set_train_mode(model: nn.Module, mode: str) -> None:
    """Put a model in train mode; where the body is frozen its norms keep their statistics."""
    model.train()
    if mode != "head":
        return
    head: Any = model.head
    model.train(False)
    head.train()


def _trained(model: nn.Module, mode: str) -> set[int]:
    if mode == "all":
        return {id(parameter) for parameter in model.parameters()}
    head: Any = model.head
    trained = {id(parameter) for parameter in head.parameters()}
    if mode == "lora":
        trained |= {id(parameter) for parameter in lora_parameters(model)}
    return trained


def _without_decay(model: nn.Module) -> set[str]:
    names = {name for name, parameter in model.named_parameters() if parameter.ndim < 2}
    for module_name, module in model.named_modules():
        if isinstance(module, NORMS):
            names |= {f"{module_name}.{name}" for name, _ in module.named_parameters()}
    return names


def _stages(model: nn.Module) -> dict[str, int]:
    encoder, decoder = getattr(model, "encoder", None), getattr(model, "decoder", None)
    parts = ["head"]
    if isinstance(decoder, nn.Module) and isinstance(
        getattr(decoder, "levels", None), nn.ModuleList
    ):
        parts += [f"decoder.levels.{k}" for k in reversed(range(len(decoder.levels)))]
    if isinstance(encoder, nn.Module) and isinstance(
        getattr(encoder, "levels", None), nn.ModuleList
    ):
        parts += [f"encoder.levels.{k}" for k in reversed(range(len(encoder.levels)))]
    if len(parts) == 1:
        children = [name for name, _ in model.named_children() if name != "head"]
        parts += list(reversed(children))
    return {part: depth for depth, part in enumerate(parts)}
