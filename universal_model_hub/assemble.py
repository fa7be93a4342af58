"""From a config to a module, and from the tensors of a file to the module's own.

In a weight file a tensor has the name it has in the whole network, whatever the kind:
``encoder...``, ``decoder...``, ``head...``.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from universal_model_hub.config import ModelConfig
from universal_model_hub.devices import torch_device
from universal_model_hub.errors import WeightsError
from universal_model_hub.heads import ClassificationHead, Classifier
from universal_model_hub.networks import ARCHITECTURES, ENCODERS
from universal_model_hub.source import Source
from universal_model_hub.tensors import TensorInfo, inspect_tensors, read_tensors

# An encoder has none of these.
HEAD_ARGUMENTS = ("out_channels", "activation", "num_classes", "prior")

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class TensorEntry:
    """One tensor of a ``LoadReport``."""

    name: str
    shape: tuple[int, ...]  # in the module; in the file for an unused one
    saved_shape: tuple[int, ...] | None = None  # in the file, where it differs


@dataclass(frozen=True)
class LoadReport:
    """What happened to each tensor, and what is known about the file."""

    source: str  # the name that was asked for
    verified: Literal["pinned", "hub", "local"] | None  # None: nothing was loaded
    sha256: str | None = None  # of the weight file, where it was computed
    revision: str | None = None  # commit on the Hub
    loaded: tuple[TensorEntry, ...] = ()
    adapted: tuple[TensorEntry, ...] = ()  # loaded, then made to fit other input channels
    new: tuple[TensorEntry, ...] = ()  # freshly initialized
    unused: tuple[TensorEntry, ...] = ()  # in the file, not read

    def __str__(self) -> str:
        counts = ", ".join(
            f"{len(getattr(self, name))} {name}" for name in ("loaded", "adapted", "new", "unused")
        )
        return f"{self.source}: tensors {counts}; verified: {self.verified}"


def assemble(
    source: Source,
    wanted: ModelConfig,
    *,
    new_head: bool,
    out_indices: Sequence[int] | None = None,
    checkpointing: bool = False,
    device: str | torch.device = "cpu",
) -> nn.Module:
    """Build the wanted module with the tensors of a source, in eval mode on ``device``.

    Args:
        source: Without weights, every tensor is freshly initialized.
        wanted: Config of the module; it may differ from the source's in its head, its input
            channels and its normalization.
        new_head: Leave the saved head unread and initialize another.
        out_indices: Of an encoder, see ``PyramidEncoder``.
        checkpointing: See ``UNet3D``.
        device: Where the module is put.

    Raises:
        ConfigError: If an option or the device cannot be used.
        IntegrityError: If the weight file is damaged.
        WeightsError: If its tensors do not fit or are not finite.
    """
    chosen_device = torch_device(device)
    fresh = source.weights is None
    with torch.device("cpu" if fresh else "meta"):
        model = build(wanted, out_indices=out_indices, checkpointing=checkpointing)
    prefix = file_prefix(wanted)
    shapes = {prefix + name: tuple(value.shape) for name, value in model.state_dict().items()}
    if fresh:
        new = tuple(TensorEntry(*item) for item in shapes.items())
        report = LoadReport(source.name, None, new=new)
    else:
        state, report = _restored(source, shapes, new_head=new_head)
        if new_head:
            head = _new_head(model.get_submodule("head"))
            state.update({f"head.{name}": value for name, value in head.state_dict().items()})
        own = {name.removeprefix(prefix): value for name, value in state.items()}
        model.load_state_dict(own, strict=True, assign=True)
    # An encoder has no head that could be untrained.
    head_trained = wanted.kind == "encoder" or wanted.head_trained
    head_trained = head_trained and not fresh and not new_head
    # Past nn.Module.__setattr__, which is for tensors and modules.
    vars(model).update(
        config=replace(wanted, head_trained=head_trained),
        preprocessing=wanted.preprocessing,
        load_report=report,
        head_trained=head_trained,
    )
    return model.train(False).to(chosen_device)


def _restored(
    source: Source, shapes: Shapes, *, new_head: bool
) -> tuple[dict[str, Tensor], LoadReport]:
    """Read the tensors that a module of these shapes needs, all but those of a new head."""
    assert source.weights is not None
    where = str(source.weights)
    saved = state_shapes(source.config)
    infos = inspect_tensors(source.weights)
    check_names(infos, saved, where)
    new = [name for name in shapes if new_head and name.startswith("head.")]
    needed = [name for name in shapes if name not in new]
    check_shapes(infos, saved, needed, where)
    state = read_tensors(source.weights, needed, expected=infos)
    adapted = [name for name in needed if saved[name] != shapes[name]]
    for name in adapted:  # only the first convolution can differ, in its input channels
        state[name] = adapt_input(state[name], shapes[name][1])
    report = LoadReport(
        source.name,
        source.verified,
        source.sha256,
        source.revision,
        loaded=tuple(TensorEntry(n, shapes[n]) for n in needed if n not in adapted),
        adapted=tuple(TensorEntry(n, shapes[n], saved[n]) for n in adapted),
        new=tuple(TensorEntry(n, shapes[n]) for n in new),
        unused=tuple(TensorEntry(n, i.shape) for n, i in infos.items() if n not in needed),
    )
    return state, report


def _new_head(head: nn.Module) -> nn.Module:
    """Return a copy of a head that is on the meta device, initialized as its layers are."""
    new = copy.deepcopy(head).to_empty(device="cpu")
    for layer in new.modules():
        if isinstance(layer, nn.Conv3d | nn.Linear):
            layer.reset_parameters()
    return new


def build(
    config: ModelConfig,
    *,
    out_indices: Sequence[int] | None = None,
    checkpointing: bool = False,
) -> nn.Module:
    """Build the module that a config describes, on torch's current default device.

    Raises:
        ConfigError: If an option does not fit.
    """
    arguments = dict(config.arguments)
    if config.kind in ("unet", "segmenter"):
        return ARCHITECTURES[config.architecture](**arguments, checkpointing=checkpointing)
    arguments = {name: v for name, v in arguments.items() if name not in HEAD_ARGUMENTS}
    encoder = ENCODERS[config.architecture](
        **arguments,  # type: ignore[arg-type]  # checked against the table in config.py
        out_indices=out_indices,
        checkpointing=checkpointing,
    )
    if config.kind == "encoder":
        return encoder
    return Classifier(encoder, ClassificationHead(encoder.num_features, config.num_outputs))


def file_prefix(config: ModelConfig) -> str:
    """Return what a file's tensor names have before the module's own."""
    return "encoder." if config.kind == "encoder" else ""


def state_shapes(config: ModelConfig) -> Shapes:
    """Return names, as in a file, and shapes of all tensors of a config's network, cheaply."""
    with torch.device("meta"):
        state = build(config).state_dict()
    prefix = file_prefix(config)
    return {prefix + name: tuple(value.shape) for name, value in state.items()}


def check_names(infos: Mapping[str, TensorInfo], shapes: Shapes, where: str) -> None:
    """Refuse a file whose tensor names are not exactly those of its network.

    Raises:
        WeightsError: It lists at most five names of each sort.
    """
    missing = [name for name in shapes if name not in infos]
    unexpected = [name for name in infos if name not in shapes]
    if not missing and not unexpected:
        return
    hint = "Compare its config.json with the network it was saved from."
    if any(name.startswith(("module.", "_orig_mod.")) for name in unexpected):
        hint = (
            "The prefix comes from DataParallel or torch.compile: save the inner module, or use "
            "save_pretrained, which does."
        )
    raise WeightsError(
        f"{where}: expected the {len(shapes)} tensors of its network; "
        f"{len(missing)} missing {_first(missing)}, "
        f"{len(unexpected)} unexpected {_first(unexpected)}. {hint}"
    )


def check_shapes(
    infos: Mapping[str, TensorInfo], shapes: Shapes, names: Sequence[str], where: str
) -> None:
    """Refuse tensors whose shape or dtype is not that of the network, from the header alone.

    Raises:
        WeightsError: It names the first tensor that differs.
    """
    for name in names:
        info, shape = infos[name], shapes[name]
        counter = name.endswith("num_batches_tracked")
        if info.shape != shape:
            hint = "Its config.json describes another network."
            if name.startswith("head."):
                hint += " The head alone differs: ask for a new one, or load the encoder."
            raise WeightsError(
                f"{where}: expected {name} with shape {shape}, got {info.shape}. {hint}"
            )
        if (info.dtype != "I64") if counter else not info.is_float:
            wanted = "I64" if counter else "F32 (or F16, BF16)"
            raise WeightsError(
                f"{where}: expected {name} with dtype {wanted}, got {info.dtype}. "
                "Save the weights anew with save_pretrained."
            )


def adapt_input(weight: Tensor, in_channels: int) -> Tensor:
    """Make a first convolution's weight take another number of channels.

    New channel j stands for old channel ``j mod old``. With more channels than before, each copy is
    divided by the number of copies; with fewer, the old channels that fall on one are summed. So a
    repeated input is answered as before, and one channel is the sum of all old ones.

    Args:
        weight: (C, old, kx, ky, kz).
        in_channels: The number of channels that are wanted.

    Returns:
        (C, in_channels, kx, ky, kz).
    """
    old = weight.shape[1]
    if in_channels < old:
        adapted = weight.new_zeros((weight.shape[0], in_channels, *weight.shape[2:]))
        return adapted.index_add_(1, torch.arange(old, device=weight.device) % in_channels, weight)
    source = torch.arange(in_channels, device=weight.device) % old
    copies = torch.bincount(source, minlength=old)[source].to(weight.dtype)
    return weight[:, source] / copies.view(1, -1, 1, 1, 1)


def _first(names: Sequence[str]) -> str:
    more = ", ..." if len(names) > 5 else ""
    return f"({', '.join(name[:80] for name in names[:5])}{more})" if names else "()"
