"""The rivals' tensor names against those of their published files, both ways.

Names on our side are those of a weight file: ``encoder.``, ``decoder.``, ``head.``. The encoders of
``resnet3d`` and ``i3d`` have the published names behind their prefix. Their decoders: MedicalNet's
``conv_seg`` is ours; I3D has none published, only the ``logits`` of a classifier.

Dense V-Net was published for TensorFlow: kernels are (kx, ky, kz, in, out) there, and batch norm
counts no batches. Its variables' names follow from NiftyNet's layer names and from how TensorFlow
numbers scopes; they were not compared with a checkpoint, and older versions of NiftyNet had others.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from universal_model_hub.errors import ConfigError, WeightsError
from universal_model_hub.networks.dense_vnet import BLOCKS
from universal_model_hub.networks.published import unwrapped

# Ours, published; the first that fits counts.
_PREFIXES = {
    "resnet3d": (
        ("head.weight", "conv_seg.6.weight"),
        ("decoder.", "conv_seg."),
        ("encoder.", ""),
    ),
    "i3d": (("head.linear.", "logits.conv3d."), ("encoder.", "")),
}
_NORM = {
    "weight": "gamma",
    "bias": "beta",
    "running_mean": "moving_mean",
    "running_var": "moving_variance",
}


def _dense_vnet_names() -> dict[str, str]:
    """Return our names and TensorFlow's, without the spatial prior."""
    names = {}

    def norm(ours: str, theirs: str) -> None:
        names.update({f"{ours}.{a}": f"{theirs}/{b}" for a, b in _NORM.items()})

    def unit(ours: str, scope: str) -> None:
        names[f"{ours}.conv.weight"] = f"{scope}/conv_/w"
        norm(f"{ours}.norm", f"{scope}/bn_")

    norm("encoder.image_norm", "DenseVNet/batch_norm")
    unit("encoder.stem", "DenseVNet/conv_bn")
    for k, (num_units, _) in enumerate(BLOCKS):
        scope = _numbered("DenseVNet/dense_feature_stack_block", k)
        for unit_number in range(num_units):
            inner = f"{scope}/dense_feature_stack_block/conv_bn_relu"
            unit(f"encoder.blocks.{k}.units.{unit_number}", _numbered(inner, unit_number))
        unit(f"decoder.skips.{k}", f"{scope}/conv_bn_relu")
        if k < len(BLOCKS) - 1:
            unit(f"encoder.downs.{k}", f"{scope}/conv_bn_relu_1")
    names["head.weight"] = "DenseVNet/conv/conv_/w"
    names["head.bias"] = "DenseVNet/conv/conv_/b"
    return names


def _numbered(scope: str, number: int) -> str:
    return f"{scope}_{number}" if number else scope


DENSE_VNET_NAMES = _dense_vnet_names()  # ours -> TensorFlow's
PRIOR = ("prior", "DenseVNet/spatial_prior_block/prior")


def to_published(architecture: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a rival, named as in a weight file, to the published layout.

    Raises:
        ConfigError: If the architecture is none of the rivals.
        WeightsError: If a tensor has no published counterpart.
    """
    if architecture == "dense_vnet":
        given = {n: v for n, v in state.items() if not n.endswith("num_batches_tracked")}
        names = _dense_vnet_table(given, "prior" in given)
        return {
            names[name]: value.permute(2, 3, 4, 1, 0) if value.ndim == 5 else value
            for name, value in given.items()
        }
    prefixes = _prefixes(architecture)
    renamed = {_renamed(name, prefixes): value for name, value in state.items()}
    if architecture == "i3d" and "logits.conv3d.weight" in renamed:
        weight = renamed["logits.conv3d.weight"]
        renamed["logits.conv3d.weight"] = weight[:, :, None, None, None]  # a convolution there
    return renamed


def from_published(architecture: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename published tensors to those of a weight file; ``module.`` and ``_orig_mod.`` go.

    Whether they are all that a network has is checked where they are loaded.

    Raises:
        ConfigError: If the architecture is none of the rivals.
        WeightsError: If names are not those of the layout, or one is there twice.
    """
    if architecture == "dense_vnet":
        back = {
            b: a for a, b in _dense_vnet_table(state, PRIOR[1] in state, published=True).items()
        }
        found = {
            back[name]: value.permute(4, 3, 0, 1, 2).contiguous() if value.ndim == 5 else value
            for name, value in state.items()
        }
        norms = [name for name in found if name.endswith("running_mean")]
        counters = {
            n.replace("running_mean", "num_batches_tracked"): torch.tensor(0) for n in norms
        }
        return {**found, **counters}
    prefixes = tuple((theirs, ours) for ours, theirs in _prefixes(architecture))
    renamed = {_renamed(unwrapped(name), prefixes): value for name, value in state.items()}
    if len(renamed) != len(state):
        raise WeightsError(
            "Expected each tensor once, but some names differ only in a prefix. Keep one of each."
        )
    if architecture == "i3d" and "head.linear.weight" in renamed:
        renamed["head.linear.weight"] = renamed["head.linear.weight"].flatten(1)
    return renamed


def _prefixes(architecture: str) -> tuple[tuple[str, str], ...]:
    if architecture not in _PREFIXES:
        raise ConfigError(
            f"Expected an architecture of {', '.join([*_PREFIXES, 'dense_vnet'])}, got "
            f"{architecture!r}."
        )
    return _PREFIXES[architecture]


def _renamed(name: str, prefixes: tuple[tuple[str, str], ...]) -> str:
    for old, new in prefixes:
        if name.startswith(old):
            return new + name.removeprefix(old)
    raise WeightsError(
        f"Expected tensors that the published layout has, got {name}. Pass those of an encoder, or "
        "of a network with the published head."
    )


def _dense_vnet_table(
    state: Mapping[str, Tensor], prior: bool, *, published: bool = False
) -> dict[str, str]:
    """Return our names and TensorFlow's, once the state has exactly those of one side."""
    table = {**DENSE_VNET_NAMES, **dict([PRIOR] if prior else [])}
    expected = set(table.values() if published else table)
    wrong = sorted(expected ^ set(state))
    if wrong:
        raise WeightsError(
            f"Expected the {len(expected)} variables of a Dense V-Net; {len(wrong)} are missing or "
            f"unexpected (first: {wrong[:3]}). Pass the whole network, without optimizer slots."
        )
    return table
