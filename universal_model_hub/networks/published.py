"""Our U-Net's tensor names against those of the published checkpoint layout, both ways.

Source: the public layout of Models Genesis and Universal Model checkpoints: 106 tensors, one to
one with ours, same shapes.
"""

from collections.abc import Mapping
from typing import TypeVar

from universal_model_hub.errors import WeightsError

T = TypeVar("T")

WRAPPER_PREFIXES = ("module.", "_orig_mod.")  # DataParallel and torch.compile

_ENCODER = ("down_tr64", "down_tr128", "down_tr256", "down_tr512")
_DECODER = ("up_tr256", "up_tr128", "up_tr64")
_UNIT = {
    "conv.weight": "conv1.weight",
    "conv.bias": "conv1.bias",
    "norm.weight": "bn1.weight",
    "norm.bias": "bn1.bias",
    "norm.running_mean": "bn1.running_mean",
    "norm.running_var": "bn1.running_var",
    "norm.num_batches_tracked": "bn1.num_batches_tracked",
}


def _published_names() -> dict[str, str]:
    names = {}
    for half, stages in (("encoder", _ENCODER), ("decoder", _DECODER)):
        for k, stage in enumerate(stages):
            if half == "decoder":
                for part in ("weight", "bias"):
                    names[f"decoder.levels.{k}.up.{part}"] = f"{stage}.up_conv.{part}"
            for unit in (0, 1):
                for ours, theirs in _UNIT.items():
                    names[f"{half}.levels.{k}.units.{unit}.{ours}"] = f"{stage}.ops.{unit}.{theirs}"
    for part in ("weight", "bias"):
        names[f"head.{part}"] = f"out_tr.final_conv.{part}"
    return names


PUBLISHED_NAMES = _published_names()  # ours -> published, in the published order


def to_published(state: Mapping[str, T]) -> dict[str, T]:
    """Rename the state of a ``UNet3D`` to the published layout.

    Raises:
        WeightsError: If the names are not exactly those of a ``UNet3D``.
    """
    return _rename(state, PUBLISHED_NAMES)


def from_published(state: Mapping[str, T]) -> dict[str, T]:
    """Rename a published state to that of a ``UNet3D``; ``module.`` and ``_orig_mod.`` go.

    Raises:
        WeightsError: If the names are not exactly those of the published layout.
    """
    plain = {unwrapped(name): value for name, value in state.items()}
    if len(plain) != len(state):
        raise WeightsError(
            "Expected each tensor once, but some names differ only in their prefix "
            f"({' or '.join(WRAPPER_PREFIXES)}). Keep one copy of each."
        )
    return _rename(plain, {theirs: ours for ours, theirs in PUBLISHED_NAMES.items()})


def _rename(state: Mapping[str, T], names: Mapping[str, str]) -> dict[str, T]:
    missing = [name for name in names if name not in state]
    unexpected = [name for name in state if name not in names]
    if missing or unexpected:
        raise WeightsError(
            f"Expected the {len(names)} tensors of the U-Net; "
            f"{len(missing)} are missing (first: {missing[:5]}) and "
            f"{len(unexpected)} are unexpected (first: {unexpected[:5]}). "
            "Pass the whole state of one U-Net."
        )
    return {names[name]: state[name] for name in names}


def unwrapped(name: str) -> str:
    """Return a tensor's name without the prefixes of wrappers."""
    while name.startswith(WRAPPER_PREFIXES):
        name = name.split(".", 1)[1]
    return name
