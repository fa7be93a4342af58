"""A module to a model folder: model.safetensors, config.json and README.md."""

import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from universal_model_hub.assemble import file_prefix, state_shapes
from universal_model_hub.config import ModelConfig
from universal_model_hub.errors import ConfigError, WeightsError
from universal_model_hub.files import safe_name, write_bytes, write_json
from universal_model_hub.heads import Classifier
from universal_model_hub.networks import ARCHITECTURES, ENCODERS
from universal_model_hub.tensors import tensor_bytes

if TYPE_CHECKING:
    from universal_model_hub.preprocess import Preprocessing

# config.json last: a folder without one is not taken for a model.
FILES = ("model.safetensors", "README.md", "config.json")
UNNAMED = "unnamed"
# What of the provenance goes into the weight file, so that equal runs give equal files.
DETERMINISTIC = ("base", "commit", "recipe", "recipe_sha256", "data_sha256", "seed", "versions")


def save_pretrained(
    model: nn.Module,
    folder: str | Path,
    *,
    name: str | None = None,
    labels: Mapping[int, str] | None = None,
    license: str | None = None,
    provenance: Mapping[str, Any] | None = None,
    metrics: Sequence[Mapping[str, Any]] | None = None,
    preprocessing: "Preprocessing | None" = None,
    seen: Mapping[str, Any] | None = None,
    channels: Sequence[Mapping[str, str]] | None = None,
    head_trained: bool | None = None,
    dtype: Literal["float32", "float16"] = "float32",
    force: bool = False,
) -> Path:
    """Write a model folder that the ``load_*`` functions take; equal models give equal weights.

    What is left out is taken from the model, where it was loaded by this package. Name, provenance
    and metrics of weights that have changed since are not: the new provenance names them as base.

    Args:
        model: A ``UNet3D``, ``Encoder`` or ``Classifier``, wrapped (DDP, torch.compile) or not.
        folder: Made if it does not exist.
        name: A plain name; the folder's by default.
        labels: Name of each class that the head gives.
        license: SPDX identifier of the weights' license.
        provenance: How the weights came to be: commit, recipe, data, seed, ...
        metrics: Measured results.
        preprocessing: What the network needs of a scan.
        seen: Range of scans that the weights were trained on.
        channels: Of a network with several: ``name`` and ``modality`` of each, in order.
        head_trained: Whether the head may be used for predictions; ``model.head_trained`` by
            default, true for a module that was not loaded by this package.
        dtype: How kernels are stored; ``float16`` halves the file and rounds them. Biases and batch
            norm stay float32, and what is loaded is float32 either way.
        force: Overwrite a model that is in the folder.

    Returns:
        The folder.

    Raises:
        ConfigError: If the folder holds a model already, cannot be written, or an entry of the
            config is not what it must be.
        WeightsError: If a value is NaN or infinite, or the module was changed so that its config
            does not build it again.
    """
    model = _unwrapped(model)
    folder = Path(folder)
    _check_folder(folder, force=force)
    config = _config_of(model)
    changes: dict[str, Any] = {
        "name": name or (config.name if config.name != UNNAMED else folder.resolve().name),
        "labels": labels,
        "license": license,
        "provenance": provenance,
        "metrics": None if metrics is None else tuple(metrics),
        "preprocessing": preprocessing,
        "seen": seen,
        "channels": None if channels is None else tuple(channels),
        "head_trained": head_trained,
    }
    safe_name(changes["name"], "the name of the model")
    own = {k: v for k, v in changes.items() if v is not None}
    config = replace(config, **own)
    state = _stored(_file_state(model, config), dtype)
    weights = tensor_bytes(state, _metadata(config))
    stale = _stale(model, config, state, folder)
    if stale:
        given = {"name": name, "provenance": provenance, "metrics": metrics}
        config = replace(config, **{k: v for k, v in stale.items() if given[k] is None})
        weights = tensor_bytes(state, _metadata(config))
    config = replace(config, sha256=hashlib.sha256(weights).hexdigest())
    try:
        _write(folder, weights, config)
    except OSError as error:
        raise ConfigError(
            f"Expected a folder that can be written, got {folder}: {error.strerror or error}."
        ) from error
    return folder


def describe(model: nn.Module) -> tuple[str, str, dict[str, int | str | None]]:
    """Return kind, architecture and arguments of a module of this package.

    A U-Net that ends in a sigmoid is a ``unet``, one that gives logits a ``segmenter``.

    Raises:
        WeightsError: If it is not one of this package's modules.
    """
    encoder_type = type(model.encoder) if isinstance(model, Classifier) else type(model)
    for kind, table in (("encoder", ENCODERS), ("unet", ARCHITECTURES)):
        for architecture, module_type in table.items():
            if encoder_type is not module_type:
                continue
            arguments: dict[str, int | str | None] = dict(model.arguments)  # type: ignore[arg-type]
            if isinstance(model, Classifier):
                kind = "classifier"
            elif kind == "unet" and arguments.get("activation") is None:
                kind = "segmenter"
            return kind, architecture, arguments
    names = ", ".join(t.__name__ for t in (*ARCHITECTURES.values(), *ENCODERS.values(), Classifier))
    raise WeightsError(f"Expected a {names}, got {type(model).__name__}.")


def _config_of(model: nn.Module) -> ModelConfig:
    """Return the config the module was loaded with, brought up to date, or a new one."""
    from universal_model_hub.preprocess import Preprocessing

    kind, architecture, arguments = describe(model)
    head_trained = bool(getattr(model, "head_trained", True))
    config = getattr(model, "config", None)
    if not isinstance(config, ModelConfig):
        return ModelConfig(
            name=UNNAMED,
            kind=kind,
            architecture=architecture,
            arguments=arguments,
            preprocessing=Preprocessing(),
            head_trained=head_trained,
        )
    outputs = {"out_channels", "num_classes"} & arguments.keys()
    same_input = config.argument("in_channels") == arguments.get("in_channels", 1)
    same_head = all(config.argument(name) == arguments[name] for name in outputs)
    return replace(
        config,
        kind=kind,
        architecture=architecture,
        arguments=arguments,
        labels=config.labels if same_head else None,
        channels=config.channels if same_input else None,
        head_trained=head_trained,
    )


def _file_state(model: nn.Module, config: ModelConfig) -> dict[str, Tensor]:
    prefix = file_prefix(config)
    state = {prefix + name: value for name, value in model.state_dict().items()}
    if {name: tuple(value.shape) for name, value in state.items()} != state_shapes(config):
        raise WeightsError(
            f"Expected the tensors of a {config.architecture} with {dict(config.arguments)}; the "
            "module has others. Save the module as this package built it, with its own head."
        )
    return state


def _stored(state: Mapping[str, Tensor], dtype: str) -> dict[str, Tensor]:
    """Return the tensors as the file holds them: kernels in ``dtype``.

    Raises:
        ConfigError: If the dtype is unknown.
    """
    dtypes = {"float32": torch.float32, "float16": torch.float16}
    if dtype not in dtypes:
        raise ConfigError(f"Expected dtype {' or '.join(dtypes)}, got {dtype!r:.40}.")
    return {
        name: value.to(dtypes[dtype]) if value.ndim > 1 and value.is_floating_point() else value
        for name, value in state.items()
    }


def _metadata(config: ModelConfig) -> dict[str, str]:
    kept = {k: v for k, v in config.provenance.items() if k in DETERMINISTIC}
    return {"provenance": json.dumps(kept, sort_keys=True)} if kept else {}


def _stale(
    model: nn.Module, config: ModelConfig, state: Mapping[str, Tensor], folder: Path
) -> dict[str, Any]:
    """Return what to say instead of the claims of other weights; empty if none are made.

    Weights that were loaded and come out with the same hash, stored in full or, where that loses
    nothing, in half, are still the ones that were measured.
    """
    loaded = getattr(getattr(model, "load_report", None), "sha256", None)
    if loaded is None:
        return {}
    full, half = _stored(state, "float32"), _stored(state, "float16")
    exact = all(torch.equal(half[name].to(value.dtype), value) for name, value in full.items())
    for stored in (full, half) if exact else (full,):
        if hashlib.sha256(tensor_bytes(stored, _metadata(config))).hexdigest() == loaded:
            return {}
    base = {"name": config.name, "sha256": loaded}
    own_name = safe_name(folder.resolve().name, "the folder, which names the model,")
    return {"name": own_name, "provenance": {"base": base}, "metrics": ()}


def _check_folder(folder: Path, *, force: bool) -> None:
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"Expected a folder to save to, {folder} is a file. Choose another.")
    there = [name for name in FILES if (folder / name).exists()]
    if there and not force:
        raise ConfigError(
            f"The folder {folder} holds {', '.join(there)} already. Choose another, or pass "
            "force=True to overwrite."
        )


def _write(folder: Path, weights: bytes, config: ModelConfig) -> None:
    """Write all files beside the folder, then move them in: a full disk leaves nothing behind."""
    from universal_model_hub.card import model_card

    card = model_card(config)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=folder.parent) as temporary:
        staging = Path(temporary)
        write_bytes(staging / "model.safetensors", weights)
        write_bytes(staging / "README.md", card.encode())
        write_json(staging / "config.json", config.to_json())
        folder.mkdir(exist_ok=True)
        for file in FILES:
            (staging / file).replace(folder / file)


def _unwrapped(model: nn.Module) -> nn.Module:
    """Take the module out of torch.compile and (Distributed)DataParallel."""
    for attribute in ("_orig_mod", "module", "_orig_mod"):
        inner = getattr(model, attribute, None)
        model = inner if isinstance(inner, nn.Module) else model
    return model
