"""What all runs of a benchmark share, and the configuration that names each of them."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.benchmark.plan import Plan, Run
from training.benchmark.pretraining import NAME_LENGTH, Pretraining, pretrainings
from training.benchmark.rows import get_row
from training.benchmark.sources import Source
from training.benchmark.tasks import TASKS
from training.benchmark.tasks_data import prepared_folder
from training.config import plain
from universal_model_hub.errors import CheckpointError, ConfigError
from universal_model_hub.files import parse_json, sha256_of

VERSION = 1  # of what a run does: raise it when results would differ


@dataclass(frozen=True)
class Bench:
    """A plan with its data and folders."""

    plan: Plan
    sources: Mapping[str, Source]
    work: Path  # phantoms, prepared arrays, pre-trainings, checkpoints
    out: Path  # results
    pretrained: Mapping[tuple[str, str], Pretraining]  # by row and task

    @property
    def is_synthetic(self) -> bool:
        """Whether any of the data are phantoms."""
        return any(source.is_synthetic for source in self.sources.values())

    def source(self, task: str) -> Source:
        """Return the data set of a task."""
        return self.sources[TASKS[task].corpus]

    def prepared(self, task: str) -> Path:
        """Return the folder of a task's prepared arrays."""
        preprocessing = self.plan.task_preprocessing(task)
        return prepared_folder(TASKS[task], preprocessing, self.source(task).sha256, self.work)

    def weights(self, run: Run) -> Path | None:
        """Return the model folder that a run starts from; None from scratch.

        Raises:
            ConfigError: If its pre-training is not finished.
        """
        if run.row in self.plan.brought:
            return Path(self.plan.brought[run.row])
        pretraining = self.pretrained.get((run.row, run.task))
        if pretraining is None:
            return None
        if not pretraining.is_finished:
            raise ConfigError(
                f"Expected the pre-trained model {pretraining.name} for {run}, got none. Start "
                "again with --only pretraining, and look into its log if that fails."
            )
        return pretraining.model

    def arguments(self, run: Run) -> dict[str, Any]:
        """Return what builds a run's network."""
        return dict(self.plan.networks.get(get_row(run.row).network, {}))

    def config(self, run: Run) -> dict[str, Any]:
        """Return everything that decides a run's result, as JSON values."""
        row, source = get_row(run.row), self.source(run.task)
        task_plan = self.plan.tasks[run.task]
        settings = dataclasses.asdict(self.plan.settings(run))
        pretraining = self.pretrained.get((run.row, run.task))
        config = {
            "version": VERSION,
            "task": TASKS[run.task].to_json(),
            "row": {
                "name": run.row,
                "network": row.network,
                "arguments": self.arguments(run),
                "transfer": row.transfer,
                "weights": self._weights_sha256(run),
                "pretraining": None if pretraining is None else pretraining.key,
                "recipe": None if pretraining is None else pretraining.recipe.to_json(),
            },
            "data": {"corpus": source.corpus, "sha256": source.sha256,
                     "split": source.parts.sha256},
            "preprocessing": self.plan.task_preprocessing(run.task).to_json(),
            "finetune": settings,
            "share": run.share,
            "noise_mm": run.noise,
            "trial": run.trial,
            "curve_points": self.plan.curve_points,
            "memory_gib": self.plan.memory_gib,
        }  # fmt: skip
        if run.task == "lnc":
            names = ("positive_share", "candidates", "validation_candidates")
            config["candidates"] = {name: getattr(task_plan, name) for name in names}
        if TASKS[run.task].unit == "cubes":
            config["windows"] = {"overlap": self.plan.overlap}
        return dict(plain(config))

    def key(self, run: Run) -> str:
        """Return the hash of a run's configuration."""
        return hashlib.sha256(json.dumps(self.config(run), sort_keys=True).encode()).hexdigest()

    def name(self, run: Run) -> str:
        """Return the name of a run's files."""
        return f"{run}-{self.key(run)[:NAME_LENGTH]}"

    def result_file(self, run: Run) -> Path:
        """Return where a run's result is kept."""
        return self.out / "runs" / f"{self.name(run)}.json"

    def is_finished(self, run: Run) -> bool:
        """Whether a run's result is there, under the same configuration.

        Raises:
            CheckpointError: If its file is damaged.
        """
        return has_result(self.result_file(run), self.key(run))

    def _weights_sha256(self, run: Run) -> str | None:
        folder = self.plan.brought.get(run.row)
        return None if folder is None else sha256_of(Path(folder) / "model.safetensors")


def has_result(path: Path, key: str) -> bool:
    """Whether a file holds the result of a configuration, by its hash.

    Raises:
        CheckpointError: If the file is damaged.
    """
    try:
        return bool(parse_json(path.read_bytes())["key"] == key)
    except FileNotFoundError:
        return False
    except (ConfigError, ValueError, KeyError, TypeError) as cause:
        raise CheckpointError(
            f"Expected a result in {path}, got a damaged file. Delete it and start again."
        ) from cause


def make_bench(plan: Plan, sources: Mapping[str, Source], work: Path, out: Path) -> Bench:
    """Put a benchmark together from checked data."""
    content = {name: source.sha256 for name, source in sources.items()}
    synthetic = any(source.is_synthetic for source in sources.values())
    pretrained = pretrainings(plan, plan.runs(), content, work, synthetic=synthetic)
    return Bench(plan, sources, work, out, pretrained)
