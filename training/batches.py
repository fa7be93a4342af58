"""Which cubes make up which batch, corrupted how: a pure function of seed and step.

Nothing here has a state to save. The cube at position p of the endless training stream, and the
random numbers of its corruption, follow from the seed alone, so a resumed run sees exactly what an
uninterrupted one sees, whatever the number of loader processes. A batch is the same set of cubes on
one process or on several: each takes its share.
"""

import signal
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from training.anatomy import LabelBank, anatomy_item, bank_of
from training.config import Recipe
from training.cubes import CubeRecord, CubeStore
from training.objective import MODALITY_IDS
from training.pretext import ROTATIONS, cut_tiles, jigsaw_permutations, rotate
from training.transforms import original_and_corrupted, strength_at
from universal_model_hub.errors import ConfigError

ORDER_STREAM, CORRUPTION_STREAM, VALIDATION_STREAM = 0, 1, 2  # independent random streams
Key = tuple[int, int]  # position in the stream, cube number in the store


@dataclass
class Stream:
    """The endless order of the training cubes; groups take turns, each shuffled every epoch."""

    groups: list[np.ndarray]  # cube numbers of each group
    seed: int
    _orders: dict[tuple[int, int], np.ndarray] = field(default_factory=dict, repr=False)

    def key(self, position: int) -> Key:
        """Return the cube at a position of the stream."""
        turn, group = divmod(position, len(self.groups))
        cubes = self.groups[group]
        epoch, place = divmod(turn, len(cubes))
        order = self._orders.get((group, epoch))
        if order is None:
            rng = np.random.default_rng([self.seed, ORDER_STREAM, group, epoch])
            order = self._orders[group, epoch] = rng.permutation(len(cubes))
            self._orders.pop((group, epoch - 2), None)
        return position, int(cubes[order[place]])


def training_stream(store: CubeStore, numbers: Sequence[int], recipe: Recipe) -> Stream:
    """Group the training cubes as ``run.balance`` says, and order them.

    Raises:
        ConfigError: If there are no cubes.
    """
    groups: dict[tuple[object, ...], list[int]] = {}
    for number in numbers:
        record = store.records[number]
        values = {"modality": record.modality, "scale": record.scale_id}
        groups.setdefault(tuple(values[name] for name in recipe.run.balance), []).append(number)
    if not groups:
        raise ConfigError(
            f"The store {store.folder} holds no training cubes of {', '.join(recipe.modalities)} "
            f"from {', '.join(recipe.corpora)}. Prepare them first, or change the recipe."
        )
    return Stream([np.array(groups[name]) for name in sorted(groups, key=str)], recipe.run.seed)


def split_cubes(store: CubeStore, recipe: Recipe) -> tuple[list[int], list[int]]:
    """Split the cubes of the recipe's corpora and modalities into two parts, by subject.

    The subjects of each corpus are shuffled with the run's seed; ``run.validation_share`` of them,
    at least one where a corpus has two or more, validate.

    Returns:
        Cube numbers for training, and for validation.
    """
    subjects: dict[str, set[str]] = {}
    for record in store.records:
        if is_wanted(record, recipe):
            subjects.setdefault(record.corpus, set()).add(record.subject)
    held_out = set()
    for corpus, names in sorted(subjects.items()):
        ordered = sorted(names)
        count = round(recipe.run.validation_share * len(ordered))
        count = min(len(ordered) - 1, max(1, count)) if recipe.run.validation_share else 0
        rng = np.random.default_rng([recipe.run.seed, VALIDATION_STREAM, *corpus.encode()])
        chosen = rng.permutation(len(ordered))[:count]
        held_out |= {(corpus, ordered[i]) for i in chosen}
    training: list[int] = []
    validation: list[int] = []
    for number, record in enumerate(store.records):
        if is_wanted(record, recipe):
            part = validation if (record.corpus, record.subject) in held_out else training
            part.append(number)
    rng = np.random.default_rng([recipe.run.seed, VALIDATION_STREAM])
    order = rng.permutation(len(validation))[: recipe.run.validation_cubes]
    return training, sorted(validation[i] for i in order)


def is_wanted(record: CubeRecord, recipe: Recipe) -> bool:
    """Whether a recipe trains on a cube: it names the cube's corpus and its modality."""
    return record.corpus in recipe.corpora and record.modality in recipe.modalities


class TaskCubes(Dataset[dict[str, Tensor]]):
    """Cubes made ready for the recipe's proxy task, by key."""

    def __init__(self, store: CubeStore, recipe: Recipe, stream: int = CORRUPTION_STREAM) -> None:
        self.store, self.recipe, self.stream = store, recipe, stream
        self.permutations = jigsaw_permutations(recipe.objective.permutations)
        has_anatomy = recipe.objective.task == "anatomy"
        self.bank = LabelBank(bank_of(store.folder)) if has_anatomy else None

    def __getitem__(self, key: Key) -> dict[str, Tensor]:
        """Return the tensors of one cube; see the task's ``forward`` for their shapes."""
        position, number = key
        rng = np.random.default_rng([self.recipe.run.seed, self.stream, position])
        cube = self.store.cube(number)
        record = self.store.records[number]
        task = self.recipe.objective.task
        if task == "rotation":
            class_id = int(rng.integers(len(ROTATIONS)))
            item = {"cube": torch.from_numpy(rotate(cube, class_id))[None]}
        elif task == "jigsaw":
            class_id = int(rng.integers(len(self.permutations)))
            jitter = None if self.stream == VALIDATION_STREAM else rng
            tiles = cut_tiles(cube, self.permutations[class_id], jitter)
            item = {"tiles": torch.from_numpy(tiles)}
        else:
            original, corrupted = original_and_corrupted(
                cube, self.recipe.corruption, rng, strength=self.strength(position)
            )
            return {
                "corrupted": torch.from_numpy(corrupted)[None],
                "original": torch.from_numpy(original)[None],
                "modality_id": torch.tensor(MODALITY_IDS[record.modality]),
                "scale_id": torch.tensor(record.scale_id),
                **self.anatomy(rng),
            }
        return item | {"class_id": torch.tensor(class_id)}

    def anatomy(self, rng: np.random.Generator) -> dict[str, Tensor]:
        """Return the renderings of a synthetic label cube, if the task has them."""
        if self.bank is None:
            return {}
        item = anatomy_item(self.bank, self.recipe, rng)
        return {name: torch.from_numpy(value) for name, value in item.items()}

    def strength(self, position: int) -> float:
        """How strong corruptions are at a position of the stream; validation is always at full."""
        if self.stream == VALIDATION_STREAM:
            return 1.0
        run = self.recipe.run
        total = run.steps * run.batch_size * self.recipe.optimizer.accumulate
        return strength_at(position / total, self.recipe.corruption)


def training_batches(
    dataset: TaskCubes,
    stream: Stream,
    first_batch: int,
    *,
    rank: int,
    world_size: int,
    workers: int | None = None,
) -> Generator[dict[str, Tensor], None, None]:
    """Yield this process's share of every batch from ``first_batch`` on, without end.

    ``workers`` loader processes instead of the recipe's give the same batches.

    Raises:
        ConfigError: If the batch size is not a multiple of the number of processes.
    """
    run = dataset.recipe.run
    if run.batch_size % world_size:
        raise ConfigError(
            f"run.batch_size {run.batch_size} cannot be shared by {world_size} processes. "
            "Use a multiple."
        )
    keys = batch_keys(stream, run.batch_size, first_batch, rank, world_size)
    yield from loader(dataset, keys, run.workers if workers is None else workers)


def batch_keys(
    stream: Stream, batch_size: int, first_batch: int, rank: int, world_size: int
) -> Iterator[list[Key]]:
    """Yield the keys of this process's share of each batch."""
    share = batch_size // world_size
    batch = first_batch
    while True:
        start = batch * batch_size + rank * share
        yield [stream.key(position) for position in range(start, start + share)]
        batch += 1


def validation_batches(
    store: CubeStore, numbers: Sequence[int], recipe: Recipe, *, rank: int, world_size: int
) -> list[list[Key]]:
    """Return this process's share of the validation cubes, in batches; the same every time.

    Shares are equal, so that no process waits for another: what is left over is not used.
    """
    equal = len(numbers) // world_size * world_size
    keys = list(enumerate(numbers[:equal]))[rank::world_size]
    size = max(1, recipe.run.batch_size // world_size)
    return [keys[i : i + size] for i in range(0, len(keys), size)]


def loader(
    dataset: TaskCubes, keys: Iterator[list[Key]] | list[list[Key]], workers: int
) -> Iterator[dict[str, Tensor]]:
    """Load batches by key in loader processes (0: in this one), in order.

    The loader gets a generator of its own: it draws a seed for its workers, and must not take it
    from the global one, which would change what a resumed run draws.
    """
    yield from DataLoader(
        dataset,
        batch_sampler=keys,
        num_workers=workers,
        generator=torch.Generator().manual_seed(0),
        persistent_workers=False,
        multiprocessing_context="fork" if workers else None,
        worker_init_fn=leave_signals_to_the_loop,
    )


def leave_signals_to_the_loop(worker: int) -> None:
    """Ignore SIGTERM and Ctrl-C in a loader process: they reach the whole group of processes.

    The loop takes them, finishes its step with the batches that are loaded, and ends its loaders.
    """
    del worker
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
