"""A name to a module with pretrained weights: the package's front door.

Loading is strict: a file must hold exactly the tensors of the network its config.json describes.
Only the tensors that the module needs are read, into a module that was built without memory.
``model.load_report`` says what became of each tensor; ``model.config``, ``model.preprocessing`` and
``model.head_trained`` come with it.

An encoder or a classifier is taken from weights of any kind; a U-Net or a segmenter only from
weights with a decoder, kind ``unet`` or ``segmenter``.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal, cast

import torch

from universal_model_hub.assemble import HEAD_ARGUMENTS, LoadReport, TensorEntry, assemble
from universal_model_hub.catalog import list_models
from universal_model_hub.config import ARGUMENTS, ModelConfig
from universal_model_hub.errors import ConfigError, WeightsError
from universal_model_hub.heads import Classifier
from universal_model_hub.networks import SegmentationNetwork
from universal_model_hub.networks.pyramid import PyramidEncoder
from universal_model_hub.networks.unet3d import UNet3D
from universal_model_hub.saving import save_pretrained
from universal_model_hub.source import Source, find_source

__all__ = [
    "LoadReport",
    "TensorEntry",
    "load_classifier",
    "load_encoder",
    "load_segmenter",
    "load_unet",
    "save_pretrained",
]

DEFAULT = list_models()[0]


def load_encoder(
    name: str | Path = DEFAULT,
    *,
    in_channels: int | None = 1,
    out_indices: Sequence[int] | None = None,
    pretrained: bool = True,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    endpoint: str | None = None,
    verify: bool = False,
    device: str | torch.device = "cpu",
    normalization: Literal["running", "batch"] | None = None,
    checkpointing: bool = False,
) -> PyramidEncoder:
    """Load an encoder, in eval mode: ``encoder(x)`` gives feature maps, finest first.

    Args:
        name: A name of ``list_models()``, ``hf-hub:org/name@revision``, ``local-dir:folder``, or
            a path to a model folder or to its ``.safetensors``.
        in_channels: Input channels; ``None`` as the weights were saved. Another number adapts the
            first convolution: a repeated input is answered as before, and N to 1 sums (with a
            warning).
        out_indices: Maps to return, 0 (the finest, of a U-Net the input grid) to the deepest;
            ``None`` for all.
        pretrained: ``False`` gives a freshly initialized network, and needs no weights.
        revision: Commit, tag or branch on the Hub.
        cache_dir: Where downloads are kept.
        local_files_only: Never ask the Hub.
        token: Hub token.
        endpoint: Hub address.
        verify: Hash the weight file again.
        device: Where the module is put.
        normalization: ``"running"`` or ``"batch"`` statistics, see ``UNet3D``; ``None`` as saved.
            Only U-Nets have the choice.
        checkpointing: Recompute activations in the backward pass: less memory, more time.

    Returns:
        The encoder: ``.embed(x)`` gives (N, F), ``.feature_info`` says what each map is.

    Raises:
        ConfigError: If a name or an option cannot be used, or the config.json is broken.
        DownloadError: If the Hub did not give the files.
        IntegrityError: If the weight file is damaged, or is not the one that was published.
        WeightsError: If its tensors are not those of the network, or not finite.
    """
    source = find_source(
        name,
        pretrained,
        revision=revision,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        token=token,
        endpoint=endpoint,
        verify=verify,
    )
    wanted = _wanted(source.config, "encoder", in_channels, normalization)
    encoder = assemble(
        source,
        wanted,
        new_head=False,
        out_indices=out_indices,
        device=device,
        checkpointing=checkpointing,
    )
    return cast(PyramidEncoder, encoder)


def load_unet(
    name: str | Path = DEFAULT,
    *,
    in_channels: int | None = 1,
    out_channels: int | None = None,
    pretrained: bool = True,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    endpoint: str | None = None,
    verify: bool = False,
    device: str | torch.device = "cpu",
    normalization: Literal["running", "batch"] | None = None,
    checkpointing: bool = False,
) -> UNet3D:
    """Load a whole U-Net, in eval mode: (N, C, X, Y, Z) to (N, out_channels, X, Y, Z).

    ``out_channels=None`` keeps the saved head: of published U-Nets the restoration of cubes in
    [0, 1], with its sigmoid. Any number, 1 included, makes a new head that gives logits; set
    ``model.head_trained = True`` once it is trained. All else is as for ``load_encoder``.

    Raises:
        WeightsError: As ``load_encoder``; also if the weights have no decoder, or are of another
            network than the U-Net.
    """
    source = find_source(
        name,
        pretrained,
        revision=revision,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        token=token,
        endpoint=endpoint,
        verify=verify,
    )
    _check_decoder(source)
    if source.config.architecture != "unet3d":
        raise WeightsError(
            f"Expected weights of a unet3d, {source.name} is of {source.config.architecture}. Use "
            "load_segmenter, load_encoder or load_classifier."
        )
    new_head = out_channels is not None
    kind = "segmenter" if new_head else source.config.kind
    head = {"out_channels": out_channels}
    wanted = _wanted(source.config, kind, in_channels, normalization, head, new_head=new_head)
    unet = assemble(source, wanted, new_head=new_head, device=device, checkpointing=checkpointing)
    return cast(UNet3D, unet)


def load_segmenter(
    name: str | Path = DEFAULT,
    num_classes: int | None = None,
    *,
    in_channels: int | None = None,
    pretrained: bool = True,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    endpoint: str | None = None,
    verify: bool = False,
    device: str | torch.device = "cpu",
    normalization: Literal["running", "batch"] | None = None,
    checkpointing: bool = False,
) -> SegmentationNetwork:
    """Load a segmentation network, in eval mode: logits (N, num_classes, X, Y, Z).

    ``num_classes`` counts the background. ``None`` takes the saved head; a number that differs
    makes a new one, as do weights without a segmentation head; set ``model.head_trained = True``
    once it is trained. All else is as for ``load_encoder``.

    Raises:
        ConfigError: As ``load_encoder``; also if there is no saved head to take.
        WeightsError: As ``load_encoder``; also if the weights have no decoder.
    """
    source = find_source(
        name,
        pretrained,
        revision=revision,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        token=token,
        endpoint=endpoint,
        verify=verify,
    )
    _check_decoder(source)
    outputs, new_head = _choose_head(source, "segmenter", num_classes)
    head = {"out_channels": outputs}
    wanted = _wanted(
        source.config, "segmenter", in_channels, normalization, head, new_head=new_head
    )
    segmenter = assemble(
        source, wanted, new_head=new_head, device=device, checkpointing=checkpointing
    )
    return cast(SegmentationNetwork, segmenter)


def load_classifier(
    name: str | Path = DEFAULT,
    num_classes: int | None = None,
    *,
    in_channels: int | None = None,
    pretrained: bool = True,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    endpoint: str | None = None,
    verify: bool = False,
    device: str | torch.device = "cpu",
    normalization: Literal["running", "batch"] | None = None,
    checkpointing: bool = False,
) -> Classifier:
    """Load an encoder with a classification head, in eval mode: logits (N, num_classes).

    ``num_classes=None`` takes the saved head; a number that differs makes a new one, as do weights
    without a classification head; set ``model.head_trained = True`` once it is trained. All else
    is as for ``load_encoder``.

    Raises:
        ConfigError: As ``load_encoder``; also if there is no saved head to take.
    """
    source = find_source(
        name,
        pretrained,
        revision=revision,
        cache_dir=cache_dir,
        local_files_only=local_files_only,
        token=token,
        endpoint=endpoint,
        verify=verify,
    )
    outputs, new_head = _choose_head(source, "classifier", num_classes)
    head = {"num_classes": outputs}
    wanted = _wanted(
        source.config, "classifier", in_channels, normalization, head, new_head=new_head
    )
    classifier = assemble(
        source, wanted, new_head=new_head, device=device, checkpointing=checkpointing
    )
    return cast(Classifier, classifier)


def _check_decoder(source: Source) -> None:
    if source.config.kind not in ("unet", "segmenter"):
        raise WeightsError(
            f"Expected weights with a decoder (kind unet or segmenter), {source.name} is of kind "
            f"{source.config.kind}. Use load_encoder or load_classifier, or other weights."
        )


def _choose_head(source: Source, kind: str, num_classes: int | None) -> tuple[int, bool]:
    """Return the number of classes, and whether their head is new."""
    saved = source.config.num_outputs if source.config.kind == kind else None
    if num_classes is None and saved is None:
        raise ConfigError(
            f"Expected num_classes: {source.name} is of kind {source.config.kind} and has no head "
            f"of a {kind}. Say how many classes the new head shall give."
        )
    if num_classes is None or num_classes == saved:
        return saved or 0, False
    return num_classes, True


def _wanted(
    saved: ModelConfig,
    kind: str,
    in_channels: int | None,
    normalization: str | None,
    head: Mapping[str, int | None] | None = None,
    *,
    new_head: bool = False,
) -> ModelConfig:
    """Return the config of the module that is asked for; ``None`` keeps what was saved."""
    arguments = dict(saved.arguments)
    if kind in ("encoder", "classifier"):
        arguments = {k: v for k, v in arguments.items() if k not in HEAD_ARGUMENTS}
    if kind == "segmenter" and "activation" in ARGUMENTS[saved.architecture]:
        arguments["activation"] = None  # logits
    had = int(saved.argument("in_channels") or 1)
    if in_channels is not None and type(in_channels) is int and 0 < in_channels < had:
        warnings.warn(
            f"{saved.name} was saved with {had} input channels; their weights are summed to "
            f"{in_channels}. Pass in_channels=None to keep them.",
            UserWarning,
            stacklevel=4,
        )
    changes = {"in_channels": in_channels, "normalization": normalization, **(head or {})}
    arguments.update({name: value for name, value in changes.items() if value is not None})
    same_answer = kind == saved.kind and not new_head
    same_input = in_channels in (None, had)
    return replace(
        saved,
        kind=kind,
        arguments=arguments,
        labels=saved.labels if same_answer else None,
        channels=saved.channels if same_input else None,
        metrics=saved.metrics if same_answer else (),
        sha256=None,  # of a file; the module's own state has none until it is saved
    )
