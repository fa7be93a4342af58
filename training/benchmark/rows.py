"""The rows of Tables III and IV: which network, and where its weights come from.

Source: Zhang et al., Sec. IV-D and V-B. A network whose pre-training cannot be repeated here (I3D,
NiftyNet, Med3D) is trained from scratch; its pretrained row exists only with a user's own weights.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from training.benchmark.tasks import TargetTask
from universal_model_hub.config import read_config
from universal_model_hub.errors import ConfigError, WeightsError
from universal_model_hub.fit.training.transfer import HEAD_ARGUMENTS, build_classifier, build_model
from universal_model_hub.heads import ClassificationHead, Classifier
from universal_model_hub.loading import load_encoder, load_segmenter
from universal_model_hub.networks import ARCHITECTURES, ENCODERS

NUM_CLASSES = 2
UNAVAILABLE = "weights not available"
SHOWN_ROWS = ("scratch", "genesis", "universal")  # of pictures, as in Figs. 3 and 6


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a table."""

    name: str
    title: str
    network: str = "unet3d"
    recipe: str | None = None  # pre-training in training/recipes
    by_task: bool = False  # pre-trained for each task on its own training set
    transfer: str = "full"  # of segmentation; a proxy task without a decoder leaves the encoder
    brought: str | None = None  # row of the same network from scratch; the weights are the user's


ROWS = {
    row.name: row
    for row in (
        Row(name="scratch", title="From scratch"),
        Row(name="i3d", title="I3D, from scratch", network="i3d"),
        Row(name="i3d_pretrained", title="I3D", network="i3d", brought="i3d"),
        Row(name="dense_vnet", title="NiftyNet (Dense V-Net), from scratch", network="dense_vnet"),
        Row(
            name="dense_vnet_pretrained",
            title="NiftyNet (Dense V-Net)",
            network="dense_vnet",
            brought="dense_vnet",
        ),
        Row(name="med3d", title="Med3D (ResNet), from scratch", network="resnet3d"),
        Row(name="med3d_pretrained", title="Med3D (ResNet)", network="resnet3d", brought="med3d"),
        Row(
            name="rotation",
            title="3D Rotation",
            recipe="rotation",
            by_task=True,
            transfer="encoder",
        ),
        Row(name="jigsaw", title="3D Jigsaw", recipe="jigsaw", by_task=True, transfer="encoder"),
        Row(name="genesis", title="Models Genesis, in its manner", recipe="genesis"),
        Row(name="model_ct", title="Model_CT", recipe="model_ct"),
        Row(name="model_mri", title="Model_MRI", recipe="model_mri"),
        Row(name="model_multi", title="Model_Multi", recipe="model_multi"),
        Row(name="multi_mial", title="Model_Multi+MIAL", recipe="multi_mial"),
        Row(name="multi_sc", title="Model_Multi+SC", recipe="multi_sc"),
        Row(name="universal", title="Universal Model", recipe="paper"),
    )
}


def get_row(name: str) -> Row:
    """Return a row by name.

    Raises:
        ConfigError: If there is none of that name.
    """
    if name not in ROWS:
        raise ConfigError(f"Expected a row of {', '.join(ROWS)}, got {name!r}.")
    return ROWS[name]


def build_network(
    row: Row, task: TargetTask, arguments: Mapping[str, Any], weights: Path | None, seed: int
) -> nn.Module:
    """Build a row's network for a task, in train mode, with a new head.

    Source: Zhang et al., Sec. IV-C.2: encoder and decoder are transferred for segmentation, the
    encoder for classification.

    Args:
        row: Says the network.
        task: Says the head.
        arguments: What builds the network, such as its width; weights bring their own.
        weights: Model folder; None starts from scratch.
        seed: Of all that is new.

    Raises:
        WeightsError: If the weights are of another network.
    """
    if weights is not None:
        found = read_config(weights / "config.json").architecture
        if found != row.network:
            raise WeightsError(
                f"Expected weights of {row.network} for the row {row.name} in {weights}, got those "
                f"of {found}. Name another model folder."
            )
    classifies = task.kind == "classification"
    if row.network != "unet3d":
        return build_rival(row, weights, arguments, seed, classifies=classifies)
    if classifies:
        return build_classifier(weights, num_classes=NUM_CLASSES, seed=seed, arguments=arguments)
    return build_model(
        weights, num_classes=NUM_CLASSES, transfer=row.transfer, seed=seed, arguments=arguments
    )


def build_rival(
    row: Row,
    weights: Path | None,
    arguments: Mapping[str, Any],
    seed: int,
    *,
    classifies: bool,
) -> nn.Module:
    """Build a network other than the U-Net; arguments and errors are those of ``build_network``.

    A whole network gives all but its head to a segmentation; an encoder, and every network to a
    classification, its encoder.
    """
    loaded: Any = None
    if weights is not None:
        whole = not classifies and read_config(weights / "config.json").kind != "encoder"
        loaded = load_segmenter(weights) if whole else load_encoder(weights)
        arguments = {k: v for k, v in loaded.arguments.items() if k not in HEAD_ARGUMENTS}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any
        if classifies:
            encoder = ENCODERS[row.network](**arguments)
            model = Classifier(encoder, ClassificationHead(encoder.num_features, NUM_CLASSES))
        else:
            model = ARCHITECTURES[row.network](**arguments, out_channels=NUM_CLASSES)
    if loaded is not None:
        prefix = "" if hasattr(loaded, "head") else "encoder."
        kept = {prefix + name: value for name, value in loaded.state_dict().items()}
        kept = {name: value for name, value in kept.items() if not name.startswith("head.")}
        model.load_state_dict({**model.state_dict(), **kept})
    built: nn.Module = model.train()
    return built
