"""A pre-training run's state: built from a recipe, saved, and resumed.

The parts that change while a run trains, and only they; the loop is in ``pretrain.py``.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from training.anatomy_objective import AnatomyModel
from training.config import Recipe
from training.cubes import CubeStore
from training.metrics import commit
from training.objective import UniversalModel
from training.pretext import JigsawModel, RotationModel
from universal_model_hub.errors import CheckpointError
from universal_model_hub.files import write_json
from universal_model_hub.fit.training.checkpoint import load_latest, save_checkpoint
from universal_model_hub.fit.training.engine import (
    Ema,
    Process,
    check_bfloat16,
    cosine_factor,
)
from universal_model_hub.fit.training.hardware import hardware
from universal_model_hub.networks import ARCHITECTURES

TASKS = {
    "restoration": UniversalModel,
    "anatomy": AnatomyModel,
    "rotation": RotationModel,
    "jigsaw": JigsawModel,
}


@dataclass
class Training:
    """Everything of a run that changes while it trains."""

    model: nn.Module  # one of TASKS, unwrapped
    optimizer: torch.optim.Optimizer
    discriminator_optimizer: torch.optim.Optimizer | None  # the alternating game's second player
    scheduler: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    ema: Ema | None
    step: int = 0
    seconds: float = 0.0

    def parts(self) -> dict[str, Any]:
        """Return the parts whose state a checkpoint holds, by name."""
        parts = {
            "model": self.model,
            "optimizer": self.optimizer,
            "discriminator_optimizer": self.discriminator_optimizer,
            "scheduler": self.scheduler,
            "scaler": self.scaler,
            "ema": self.ema,
        }
        return {name: part for name, part in parts.items() if part is not None}


def start_training(recipe: Recipe, process: Process) -> Training:
    """Build network, heads, optimizer and schedule from a recipe, before the first step.

    Raises:
        ConfigError: If the precision is not for this device, or the cubes too small for it.
    """
    check_bfloat16(process.device, recipe.run.precision, recipe.cubes.size)
    unet = ARCHITECTURES[recipe.model.architecture](
        width=recipe.model.width,
        normalization=recipe.model.normalization,
        checkpointing=recipe.model.checkpointing,
    )
    task = TASKS[recipe.objective.task]
    has_scales = issubclass(task, UniversalModel)
    scales = {"num_scales": len(recipe.cubes.scales)} if has_scales else {}
    model = task(unet, recipe.objective, **scales).to(process.device)
    if process.world_size > 1 and process.device.type == "cuda":
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    elif process.world_size > 1 and process.is_main:
        tqdm.write("Each process normalizes its own batch: gloo has no SyncBatchNorm.", sys.stderr)
    if recipe.run.channels_last:
        model = model.to(memory_format=torch.channels_last_3d)
    optimizer, second = make_optimizers(model, recipe)
    return Training(
        model=model,
        optimizer=optimizer,
        discriminator_optimizer=second,
        scheduler=make_scheduler(optimizer, recipe),
        scaler=torch.amp.GradScaler(process.device.type, enabled=recipe.run.precision == "float16"),
        ema=Ema(model, recipe.run.ema_decay) if recipe.run.ema_decay and process.is_main else None,
    )


def make_optimizers(
    model: nn.Module, recipe: Recipe
) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer | None]:
    """Return the optimizer, and the discriminator's own one in the alternating game.

    Source: Zhang et al., Sec. IV-B.2: rates of U-Net, S and D differ.
    """
    config = recipe.optimizer
    rates = {
        "discriminator": config.modality_learning_rate,
        "scale_classifier": config.scale_learning_rate,
    }
    groups: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = name.split(".")[0]
            groups.setdefault(part if part in rates else "unet", []).append(parameter)
    alternating = recipe.objective.adversarial == "alternating"
    second = groups.pop("discriminator", None) if alternating else None
    listed = [
        {"params": parameters, "lr": rates.get(part, config.unet_learning_rate)}
        for part, parameters in groups.items()
    ]
    kind = {
        "sgd": lambda p: torch.optim.SGD(
            p,
            lr=config.unet_learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        ),
        "adamw": lambda p: torch.optim.AdamW(
            p, lr=config.unet_learning_rate, weight_decay=config.weight_decay
        ),
    }[config.name]
    own = [{"params": second, "lr": config.modality_learning_rate}] if second else None
    return kind(listed), kind(own) if own else None


def make_scheduler(
    optimizer: torch.optim.Optimizer, recipe: Recipe
) -> torch.optim.lr_scheduler.LRScheduler:
    """Return the learning-rate schedule: on validation plateaus, or by step."""
    schedule, steps = recipe.schedule, recipe.run.steps
    if schedule.name == "plateau":
        lowest = [group["lr"] * schedule.min_factor for group in optimizer.param_groups]
        return torch.optim.lr_scheduler.ReduceLROnPlateau(
            optimizer, factor=schedule.factor, patience=schedule.patience, min_lr=lowest
        )

    def factor(step: int) -> float:
        if schedule.name == "constant":
            return min(1.0, (step + 1) / max(1, schedule.warmup_steps))
        return cosine_factor(step, steps, schedule.warmup_steps, schedule.min_factor)

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def wrap(model: nn.Module, recipe: Recipe, process: Process) -> nn.Module:
    """Compile and distribute the model as the recipe and the processes ask."""
    wrapped: Any = torch.compile(model) if recipe.run.compile else model
    if process.world_size > 1:
        ids = [process.device.index] if process.device.type == "cuda" else None
        alternating = recipe.objective.adversarial == "alternating"
        wrapped = DistributedDataParallel(
            wrapped, device_ids=ids, find_unused_parameters=alternating
        )
    return wrapped


def checkpoint_config(recipe: Recipe, store: CubeStore) -> dict[str, Any]:
    """Return what a checkpoint must agree with to be resumed: the recipe and the cubes."""
    return {"recipe": recipe.to_json(), "data_sha256": store.sha256}


def save(training: Training, run_folder: Path, recipe: Recipe, config: Mapping[str, Any]) -> None:
    """Write a checkpoint, from this process alone, without a collective."""
    for name, value in training.model.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise CheckpointError(
                f"{name} is not finite at step {training.step}. The last checkpoint stays."
            )
    state = {name: part.state_dict() for name, part in training.parts().items()}
    state["seconds"] = training.seconds
    save_checkpoint(
        run_folder / "checkpoints", training.step, state, config, keep=recipe.run.keep_checkpoints
    )


def resume(
    training: Training, run_folder: Path, config: Mapping[str, Any], *, override: bool
) -> None:
    """Load the newest usable checkpoint of the run folder into ``training``, if there is one."""
    found = load_latest(run_folder / "checkpoints", config, override=override)
    if found is None:
        return
    training.step, state = found
    for name, part in training.parts().items():
        if name not in state:
            raise CheckpointError(
                f"The checkpoint in {run_folder} has no {name}. Start in another folder."
            )
        part.load_state_dict(state[name])
    training.seconds = float(state["seconds"])


def write_summary(training: Training, run_folder: Path, recipe: Recipe, process: Process) -> None:
    """Write how far the run is, how long it took, and on what."""
    summary = {
        "name": recipe.name,
        "step": training.step,
        "steps": recipe.run.steps,
        "commit": commit(),
        "hours": round(training.seconds / 3600, 4),
        "processes": process.world_size,
        "hardware": hardware(process.device),
    }
    write_json(run_folder / "summary.json", summary)
