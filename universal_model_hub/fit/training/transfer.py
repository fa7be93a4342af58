"""From weights to a network that is about to be fine-tuned."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from universal_model_hub.errors import ConfigError
from universal_model_hub.heads import ClassificationHead, Classifier
from universal_model_hub.loading import load_encoder, load_unet
from universal_model_hub.networks import ARCHITECTURES
from universal_model_hub.networks.layers import ConvUnit
from universal_model_hub.networks.unet3d import Encoder, UNet3D, UpLevel

Transfer = Literal["full", "encoder"]
HEAD_ARGUMENTS = ("out_channels", "activation", "in_channels", "num_classes")


def build_model(
    weights: str | Path | None,
    *,
    num_classes: int,
    transfer: str = "full",
    seed: int = 0,
    architecture: str = "unet3d",
    arguments: Mapping[str, Any] | None = None,
    in_channels: int = 1,
) -> UNet3D:
    """Return a U-Net with a new head, in train mode: (N, C, X, Y, Z) to (N, K, X, Y, Z) logits.

    What is new is initialized from the seed, the same for all weights of one network. What is
    transferred computes the same as it did, with kernels as large as fresh ones: see
    ``resize_kernels``.

    Args:
        weights: Name or model folder; None starts from scratch.
        num_classes: With background.
        transfer: ``full`` takes encoder and decoder, ``encoder`` the encoder alone.
        seed: Of what is new.
        architecture: From scratch: the network's name.
        arguments: From scratch: what builds it, such as its width.
        in_channels: C; the first convolution of weights with another number is adapted.

    Raises:
        ConfigError: If ``transfer`` is unknown.
        WeightsError: If the weights do not fit, or have no decoder to transfer.
    """
    if transfer not in ("full", "encoder"):
        raise ConfigError(f"Expected transfer full or encoder, got {transfer!r}.")
    encoder = loaded = None
    if weights is not None and transfer == "full":
        loaded = load_unet(weights, in_channels=in_channels, out_channels=num_classes)
        arguments = loaded.arguments
    elif weights is not None:
        encoder = load_encoder(weights, in_channels=in_channels)
        arguments = encoder.arguments
    kept: dict[str, Any] = {k: v for k, v in (arguments or {}).items() if k not in HEAD_ARGUMENTS}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = ARCHITECTURES[architecture](
            **kept, in_channels=in_channels, out_channels=num_classes, activation=None
        )
    assert isinstance(unet, UNet3D)
    sizes = kernel_sizes(unet) if weights is not None else {}
    if loaded is not None:
        unet.encoder.load_state_dict(loaded.encoder.state_dict())
        unet.decoder.load_state_dict(loaded.decoder.state_dict())
    elif encoder is not None:
        unet.encoder.load_state_dict(encoder.state_dict())
    if weights is not None:
        resize_kernels(unet, sizes)
    return unet.train()


def kernel_sizes(model: nn.Module) -> dict[str, float]:
    """Return the Euclidean norm of each convolution's kernel below the head, by its name."""
    return {
        name: float(module.weight.detach().norm())
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv3d | nn.ConvTranspose3d) and not name.startswith("head")
    }


@torch.no_grad()
def resize_kernels(model: nn.Module, sizes: Mapping[str, float]) -> None:
    """Give kernels other norms, in place, so that the network still computes the same.

    Long pre-training with Adam leaves kernels many times as large as fresh ones. Batch norm takes
    their size out again, but a step of Adam is as long for a large kernel as for a small one: at
    one learning rate pretrained layers would hardly move. With the kernels of a fresh network both
    learn at the same pace. Source: ours; van Laarhoven 2017 for batch norm and the learning rate.

    Args:
        model: Its convolutions are followed by batch norm, or by the next level's convolution.
        sizes: What ``kernel_sizes`` gave of the network to be like.
    """
    for name, module in model.named_modules():
        if isinstance(module, UpLevel):
            factor = _resized(module.up, sizes[f"{name}.up"])
            first = module.units[0]
            assert isinstance(first, ConvUnit)
            first.conv.weight[:, : module.up.out_channels] /= factor  # what comes from below
    for name, module in model.named_modules():
        if isinstance(module, ConvUnit):
            factor = _resized(module.conv, sizes[f"{name}.conv"])
            if module.norm.running_mean is not None and module.norm.running_var is not None:
                module.norm.running_mean *= factor
                # Also what batch norm adds to the variance must grow or shrink with it.
                eps = module.norm.eps
                module.norm.running_var.add_(eps).mul_(factor**2).sub_(eps).clamp_(min=0)


def _resized(conv: nn.Conv3d | nn.ConvTranspose3d, size: float) -> float:
    """Scale a convolution to a kernel of a norm; return the factor."""
    norm = float(conv.weight.norm())
    factor = size / norm if norm > 0 else 1.0
    conv.weight *= factor
    if conv.bias is not None:
        conv.bias *= factor
    return factor


def build_classifier(
    weights: str | Path | None,
    *,
    num_classes: int,
    seed: int = 0,
    arguments: Mapping[str, Any] | None = None,
    in_channels: int = 1,
) -> Classifier:
    """Return an encoder with a new classification head, in train mode: to (N, K) logits.

    Arguments and errors are those of ``build_model``; the encoder alone is transferred.
    """
    loaded = None if weights is None else load_encoder(weights, in_channels=in_channels)
    given: Mapping[str, Any] | None = arguments if loaded is None else loaded.arguments
    kept: dict[str, Any] = {k: v for k, v in (given or {}).items() if k not in HEAD_ARGUMENTS}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = Encoder(in_channels, **kept)
        head = ClassificationHead(encoder.num_features, num_classes)
    sizes = kernel_sizes(encoder) if weights is not None else {}
    if loaded is not None:
        encoder.load_state_dict(loaded.state_dict())
        resize_kernels(encoder, sizes)
    model: nn.Module = Classifier(encoder, head).train()
    assert isinstance(model, Classifier)
    return model
