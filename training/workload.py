"""What a recipe amounts to: volumes, cubes, parameters, multiply-adds, bytes. Counted, not timed.

Nothing is allocated: the network is built on PyTorch's meta device and run there once.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from training.config import Recipe
from training.corpora import CORPORA, packaged
from training.corpora.packaged_table import read_table
from training.corpora.paper import SPLIT_SIZES, TABLE_1
from training.cubes import CubeStore
from training.objective import UniversalModel
from training.pretext import TILES, JigsawModel, tile_size
from training.state import TASKS
from universal_model_hub.networks import ARCHITECTURES
from universal_model_hub.networks.layers import pad_to_stride

OPTIMIZER_SLOTS = {"sgd": 1, "adamw": 2}  # tensors kept per parameter: momentum; two moments
FLOAT_BYTES, STORED_BYTES = 4, 2  # float32; uint16 on disk
BACKWARD_SHARE = 2  # of the forward's multiply-adds: to the inputs and to the weights


@dataclass(frozen=True, kw_only=True)
class Source:
    """What one corpus brings in one modality."""

    corpus: str
    modality: str
    subjects: int
    volumes: int
    by_scale: tuple[int, ...]  # cubes, smallest scale first

    @property
    def cubes(self) -> int:
        """Cubes of all scales."""
        return sum(self.by_scale)


@dataclass(frozen=True)
class Part:
    """One part of the trained model."""

    parameters: int
    gmac: float  # 1e9 multiply-adds of one forward pass of one cube; 0 if it does not run
    trained: bool


@dataclass(frozen=True)
class Network:
    """The model a recipe trains, and what one cube costs it."""

    parts: dict[str, Part]
    training_gmac: float  # of one cube: forward and backward
    saved_bytes: int  # of one cube: activations kept for the backward pass, float32

    @property
    def parameters(self) -> int:
        """Parameters of all parts."""
        return sum(part.parameters for part in self.parts.values())


def expected_sources(recipe: Recipe) -> list[Source]:
    """Return what the recipe's corpora bring if they are complete and nothing is left out as air.

    Source: Zhang et al., Table I and Sec. IV-A for the paper's sets.
    """
    return [
        source_of(recipe, corpus, modality, *expected_size(corpus, modality))
        for corpus in recipe.corpora
        for modality in CORPORA[corpus].modalities
        if modality in recipe.modalities
    ]


def source_of(recipe: Recipe, corpus: str, modality: str, subjects: int, volumes: int) -> Source:
    """Return the cubes that the recipe cuts from so many volumes."""
    counts = recipe.cubes.counts.get(corpus, recipe.cubes.default_counts)
    return Source(
        corpus=corpus,
        modality=modality,
        subjects=subjects,
        volumes=volumes,
        by_scale=tuple(volumes * count for count in counts),
    )


def stored_sources(store: CubeStore, recipe: Recipe) -> list[Source]:
    """Count the cubes of a store that the recipe trains or validates on."""
    chosen = [record for record in store.records if record.modality in recipe.modalities]
    groups = sorted({(record.corpus, record.modality) for record in chosen})
    result = []
    for corpus, modality in groups:
        records = [r for r in chosen if (r.corpus, r.modality) == (corpus, modality)]
        scales = Counter(record.scale_id for record in records)
        result.append(
            Source(
                corpus=corpus,
                modality=modality,
                subjects=len({record.subject for record in records}),
                volumes=len({record.case for record in records}),
                by_scale=tuple(scales[i] for i in range(len(recipe.cubes.scales))),
            )
        )
    return result


def expected_size(corpus: str, modality: str) -> tuple[int, int]:
    """Return the subjects and volumes of a corpus that are trained on, in one modality."""
    if corpus == packaged.NAME:
        scans = [
            scan
            for scan in read_table().scans.values()
            if "pretrain" in scan.roles and scan.modality == modality
        ]
        return len({scan.subject for scan in scans}), len(scans)
    sizes = SPLIT_SIZES[corpus]
    groups = [sizes[modality]] if modality in sizes else list(sizes.values())
    subjects = sum(size.train for size in groups)
    return subjects, TABLE_1[corpus].volumes if corpus in TABLE_1 else subjects


def held_out_cubes(sources: Sequence[Source], share: float) -> int:
    """Return about how many cubes validate: ``share`` of each corpus's subjects, at least one."""
    total = 0
    for source in sources:
        count = round(share * source.subjects)
        count = min(source.subjects - 1, max(1, count)) if share and source.subjects else 0
        total += round(source.cubes * count / max(1, source.subjects))
    return total


def network_of(recipe: Recipe) -> Network:
    """Count the model's parameters, multiply-adds and kept activations, for one cube."""
    with torch.device("meta"):
        unet: Any = ARCHITECTURES[recipe.model.architecture](
            width=recipe.model.width,
            normalization=recipe.model.normalization,
            checkpointing=recipe.model.checkpointing,
        )
        task = TASKS[recipe.objective.task]
        scales = (
            {"num_scales": len(recipe.cubes.scales)} if issubclass(task, UniversalModel) else {}
        )
        model: Any = task(unet, recipe.objective, **scales)
        cube = pad_to_stride(torch.empty(cubes_shape(model, recipe)), unet.stride)
    gmac = dict.fromkeys(part_modules(model), 0.0)
    kept: dict[int, Tensor] = {}
    owned = {p.untyped_storage()._cdata for p in model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor  # on meta every data_ptr is 0
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        features, gmac["encoder"] = counted(lambda: unet.encoder.pyramid(cube))
        if isinstance(model, UniversalModel):
            run_objective(model, features, gmac)
        else:
            model.eval()  # its batch norm refuses a batch of one
            pooled = features[-1].mean(dim=(2, 3, 4)).reshape(1, -1)
            _, gmac["head"] = counted(lambda: model.head(pooled))
    parts = {
        name: Part(
            sum(p.numel() for p in module.parameters()),
            gmac[name],
            any(p.requires_grad for p in module.parameters()),
        )
        for name, module in part_modules(model).items()
    }
    saved = sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in owned)
    return Network(parts, training_gmac(recipe, parts), saved)


def cubes_shape(model: nn.Module, recipe: Recipe) -> tuple[int, ...]:
    """Return what the network sees of one cube: the cube, or its jigsaw tiles."""
    if isinstance(model, JigsawModel):
        return TILES, 1, *tile_size(recipe.cubes.size)
    return 1, 1, *recipe.cubes.size


def part_modules(model: Any) -> dict[str, nn.Module]:
    """Return the parts of a task's model by name, in the order of the data."""
    parts = {"encoder": model.unet.encoder, "decoder": model.unet.decoder}
    parts["restoration head" if isinstance(model, UniversalModel) else "unused head"] = (
        model.unet.head
    )
    if isinstance(model, UniversalModel):
        parts |= {"discriminator D": model.discriminator}
        return parts | {"scale classifier S": model.scale_classifier}
    return parts | {"head": model.head}


def run_objective(model: UniversalModel, features: list[Tensor], gmac: dict[str, float]) -> None:
    """Run the parts behind the encoder that are switched on, and note their multiply-adds."""
    decoded, gmac["decoder"] = counted(lambda: model.unet.decoder(features))
    _, gmac["restoration head"] = counted(lambda: torch.sigmoid(model.unet.head(decoded)))
    if model.config.modality_weight > 0:
        _, gmac["discriminator D"] = counted(lambda: model.discriminator(features))
    if model.config.scale_weight > 0:
        _, gmac["scale classifier S"] = counted(lambda: model.scale_classifier(features[-1]))


def counted(run: Callable[[], Any]) -> tuple[Any, float]:
    """Run on the meta device; return the result and the multiply-adds in 1e9."""
    with FlopCounterMode(display=False) as counter:
        result = run()
    return result, counter.get_total_flops() / 2e9


def training_gmac(recipe: Recipe, parts: dict[str, Part]) -> float:
    """Return the multiply-adds, in 1e9, that training takes for one cube.

    The backward pass costs twice the forward; checkpointing runs the U-Net's forward again. The
    alternating game adds D's own steps, and leaves out D's weight gradients in the U-Net's step.
    """
    forward = sum(part.gmac for part in parts.values())
    total = (1 + BACKWARD_SHARE) * forward
    if recipe.model.checkpointing:
        total += parts["encoder"].gmac + parts["decoder"].gmac
    discriminator = parts.get("discriminator D", Part(0, 0.0, False)).gmac
    if recipe.objective.adversarial == "alternating" and discriminator:
        own = parts["encoder"].gmac + (1 + BACKWARD_SHARE) * discriminator
        total += recipe.objective.discriminator_steps * own - discriminator
    return total


def cubes_seen(recipe: Recipe) -> int:
    """Return how many cubes a whole run trains on, repeats counted."""
    return recipe.run.steps * recipe.run.batch_size * recipe.optimizer.accumulate


def store_bytes(num_cubes: int, recipe: Recipe) -> int:
    """Return the size of a store on disk."""
    return num_cubes * math.prod(recipe.cubes.size) * STORED_BYTES


def state_bytes(recipe: Recipe, network: Network) -> int:
    """Return the size of weights, optimizer and moving average: what a checkpoint holds."""
    trained = sum(part.parameters for part in network.parts.values() if part.trained)
    averages = network.parameters if recipe.run.ema_decay else 0
    slots = OPTIMIZER_SLOTS[recipe.optimizer.name] * trained
    return FLOAT_BYTES * (network.parameters + slots + averages)


def memory_bytes(recipe: Recipe, network: Network, world_size: int = 1) -> dict[str, int]:
    """Return what one training process holds at its peak, by kind, in bytes.

    Counted: state, gradients, and the activations kept for the backward pass (half as large in
    bfloat16 and float16). Not counted: convolution workspaces, temporary gradients of activations,
    the libraries themselves.
    """
    share = math.ceil(recipe.run.batch_size / world_size)
    narrow = 1 if recipe.run.precision == "float32" else 2
    trained = sum(part.parameters for part in network.parts.values() if part.trained)
    return {
        "weights, optimizer, average": state_bytes(recipe, network),
        "gradients": FLOAT_BYTES * trained,
        "activations": share * network.saved_bytes // narrow,
    }
