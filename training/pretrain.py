"""The pre-training loop: prepared cubes in, checkpoints out.

    python -m training.pretrain --recipe smoke --cubes STORE --run-folder RUN
    torchrun --nproc-per-node 8 -m training.pretrain --recipe paper --cubes STORE --run-folder RUN

The same command goes on where an interrupted run stopped; on a CPU the result is bitwise that of an
uninterrupted one. SIGTERM and Ctrl-C save first (exit 143 and 130).
"""

import argparse
import contextlib
import signal
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from training.batches import (
    VALIDATION_STREAM,
    TaskCubes,
    loader,
    split_cubes,
    training_batches,
    training_stream,
    validation_batches,
)
from training.config import Recipe, load_recipe
from training.cubes import CubeStore
from training.metrics import RunLog, runs_folder
from training.plan import pretraining_plan
from training.state import (
    Training,
    checkpoint_config,
    resume,
    save,
    start_training,
    wrap,
    write_summary,
)
from universal_model_hub.errors import CheckpointError, UniversalModelError
from universal_model_hub.files import write_json
from universal_model_hub.fit.training.checkpoint import run_lock
from universal_model_hub.fit.training.engine import (
    Process,
    StopRequest,
    all_ranks_agree,
    autocast,
    make_deterministic,
    mean_over_ranks,
    process_group,
    stop_on_signals,
)


def pretrain(
    recipe: Recipe,
    store: CubeStore,
    run_folder: Path,
    *,
    device: str = "auto",
    override: bool = False,
    progress: bool = True,
    stop_after: int | None = None,
    workers: int | None = None,
) -> int:
    """Train by a recipe until its last step, or until a signal asks to stop.

    Args:
        recipe: All settings.
        store: The prepared cubes.
        run_folder: Gets checkpoints, ``metrics.jsonl``, TensorBoard files and ``summary.json``.
        device: ``auto``, ``cpu`` or ``cuda``.
        override: Go on although the recipe differs from the checkpoint's.
        progress: Show a progress bar on stderr.
        stop_after: End after this step as a signal would, to be resumed; None for no such stop.
        workers: Loader processes; None takes the recipe's number. The batches are the same.

    Returns:
        0 when the run is complete, 128 plus the signal's number when it was stopped.

    Raises:
        ConfigError: If the cubes were prepared by other settings than the recipe's.
        CheckpointError: If the loss is not finite (the last good checkpoint stays), or no
            checkpoint of this run can be used.
    """
    store.require(recipe)
    with process_group(device) as process, contextlib.ExitStack() as stack:
        if process.is_main:
            stack.enter_context(run_lock(run_folder))
        make_deterministic(recipe.run.seed, strict=recipe.run.deterministic)
        training = start_training(recipe, process)
        config = checkpoint_config(recipe, store)
        resume(training, run_folder, config, override=override)
        stop = stack.enter_context(stop_on_signals())
        log = RunLog(run_folder, training.step, enabled=process.is_main)
        stack.callback(log.close)
        if process.is_main:
            write_json(run_folder / "recipe.json", config)
        stop.after = stop_after
        run_steps(
            recipe,
            store,
            training,
            process,
            log,
            stop,
            run_folder,
            progress=progress,
            workers=workers,
        )
        if process.is_main:
            save(training, run_folder, recipe, config)
            write_summary(training, run_folder, recipe, process)
    if training.step < recipe.run.steps:
        return stop.exit_code or 128 + signal.SIGTERM  # another process got the signal
    return 0


def run_steps(
    recipe: Recipe,
    store: CubeStore,
    training: Training,
    process: Process,
    log: RunLog,
    stop: StopRequest,
    run_folder: Path,
    *,
    progress: bool,
    workers: int | None,
) -> None:
    """The loop: one optimizer step an iteration, until the end or a stop request."""
    run, config = recipe.run, checkpoint_config(recipe, store)
    numbers, validation = split_cubes(store, recipe)
    dataset, stream = TaskCubes(store, recipe), training_stream(store, numbers, recipe)
    accumulate = recipe.optimizer.accumulate
    batches = training_batches(
        dataset,
        stream,
        training.step * accumulate,
        rank=process.rank,
        world_size=process.world_size,
        workers=workers,
    )
    model = wrap(training.model, recipe, process)
    stopping = False
    saved = started = time.monotonic()
    bar = tqdm(
        total=run.steps,
        initial=training.step,
        desc=recipe.name,
        unit="step",
        disable=not (progress and process.is_main),
    )
    with bar, contextlib.closing(batches):
        while training.step < run.steps and not stopping:
            batch_list = [to_device(next(batches), process, recipe) for _ in range(accumulate)]
            model.train(not is_normalization_frozen(training.step, recipe))
            losses = train_step(model, training, batch_list, recipe, process)
            training.step += 1
            bar.update()
            if training.step % run.log_every == 0 or training.step == run.steps:
                values = {name: float(value) for name, value in losses.items()}
                rate = training.optimizer.param_groups[0]["lr"]
                log.write(training.step, "train", values | {"lr": rate})
                bar.set_postfix({name: f"{value:.3g}" for name, value in values.items()})
            if training.step % run.validate_every == 0 or training.step == run.steps:
                values = validate(training, store, validation, recipe, process, log)
                log.write(training.step, "validation", values)
                step_plateau(training, values)
            now = time.monotonic()
            training.seconds += now - started
            started = now
            stopping = all_ranks_agree(stop.wanted(training.step), process)
            due = training.step % run.save_every == 0 or now - saved > 60 * run.save_minutes
            if due and process.is_main:
                save(training, run_folder, recipe, config)
                saved = time.monotonic()


def is_normalization_frozen(step: int, recipe: Recipe) -> bool:
    """Whether batch norm uses and keeps its running statistics in the step after ``step``.

    Source: ours; a batch's own statistics shift every intensity a little, which inference does not.
    """
    return step >= recipe.run.steps * (1 - recipe.run.freeze_normalization)


def train_step(
    model: nn.Module,
    training: Training,
    batches: list[dict[str, Tensor]],
    recipe: Recipe,
    process: Process,
) -> dict[str, Tensor]:
    """One optimizer step over one or more batches.

    Returns:
        The terms of the last batch by name, each a scalar without gradient.

    Raises:
        CheckpointError: If a loss is not finite.
    """
    if training.discriminator_optimizer is not None:
        for _ in range(recipe.objective.discriminator_steps):
            discriminator_step(model, training, batches, recipe, process)
    training.optimizer.zero_grad(set_to_none=True)
    for number, batch in enumerate(batches, start=1):
        with gradients_synced(model, last=number == len(batches)):
            with autocast(process.device, recipe.run.precision):
                losses = model(batch, training.step)
            total = losses.total(recipe.objective) / len(batches)
            refuse_non_finite(total, training.step, process)
            training.scaler.scale(total).backward()
    if recipe.optimizer.clip_norm is not None:
        training.scaler.unscale_(training.optimizer)
        nn.utils.clip_grad_norm_(training.model.parameters(), recipe.optimizer.clip_norm)
    training.scaler.step(training.optimizer)
    training.scaler.update()
    if not isinstance(training.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
        training.scheduler.step()
    if training.ema is not None:
        training.ema.update(training.model)
    return {name: value.detach() for name, value in losses._asdict().items()}


def discriminator_step(
    model: nn.Module,
    training: Training,
    batches: list[dict[str, Tensor]],
    recipe: Recipe,
    process: Process,
) -> None:
    """The alternating game's first half: D learns on features that the encoder does not move."""
    optimizer = training.discriminator_optimizer
    assert optimizer is not None
    optimizer.zero_grad(set_to_none=True)
    for number, batch in enumerate(batches, start=1):
        with gradients_synced(model, last=number == len(batches)):
            with autocast(process.device, recipe.run.precision):
                losses = model(batch, training.step, only_discriminator=True)
            (losses.modality * recipe.objective.modality_weight / len(batches)).backward()
    optimizer.step()


def refuse_non_finite(total: Tensor, step: int, process: Process) -> None:
    """Stop on NaN or infinity before it reaches the weights; all processes stop together."""
    if all_ranks_agree(not bool(torch.isfinite(total)), process):
        raise CheckpointError(
            f"The loss is not finite at step {step + 1}. Nothing of this step was kept: the last "
            "checkpoint is good. Lower the learning rate, or set optimizer.clip_norm."
        )


@torch.inference_mode()
def validate(
    training: Training,
    store: CubeStore,
    numbers: list[int],
    recipe: Recipe,
    process: Process,
    log: RunLog,
) -> dict[str, float]:
    """Mean of every loss term over the validation cubes, with the same corruptions every time.

    Without validation cubes the result is empty.
    """
    dataset = TaskCubes(store, recipe, VALIDATION_STREAM)
    keys = validation_batches(
        store, numbers, recipe, rank=process.rank, world_size=process.world_size
    )
    training.model.eval()
    share = 1 / max(1, sum(len(batch) for batch in keys))
    sums: dict[str, Tensor] = {}
    for number, batch in enumerate(loader(dataset, keys, 0)):
        batch = to_device(batch, process, recipe)
        with autocast(process.device, recipe.run.precision):
            losses = training.model(batch, training.step)
        for name, value in losses._asdict().items():
            part = value.float().cpu() * len(keys[number]) * share
            sums[name] = sums.get(name, torch.zeros(())) + part
        if number == 0 and "corrupted" in batch and training.step % recipe.run.picture_every == 0:
            log.picture(training.step, batch, restored_of(training.model, batch))
    return {name: float(mean_over_ranks(v, process)) for name, v in sorted(sums.items())}


def restored_of(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the restored cubes (N, 1, X, Y, Z) in [0, 1] of a batch."""
    unet = model.unet
    assert isinstance(unet, nn.Module)
    return cast("Tensor", unet(batch["corrupted"]))


def step_plateau(training: Training, values: Mapping[str, float]) -> None:
    """Tell a plateau schedule the validation loss: restoration, or the proxy task's."""
    if isinstance(training.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau) and values:
        training.scheduler.step(values.get("restoration", values.get("classification", 0.0)))


@contextlib.contextmanager
def gradients_synced(model: nn.Module, *, last: bool) -> Iterator[None]:
    """Average gradients over processes only with the last batch of a step."""
    if isinstance(model, DistributedDataParallel) and not last:
        with model.no_sync():
            yield
    else:
        yield


def to_device(batch: Mapping[str, Tensor], process: Process, recipe: Recipe) -> dict[str, Tensor]:
    """Move a batch to the process's device, cubes in the recipe's memory format."""
    moved = {k: v.to(process.device, non_blocking=True) for k, v in batch.items()}
    if recipe.run.channels_last:
        moved = {
            k: v.contiguous(memory_format=torch.channels_last_3d) if v.ndim == 5 else v
            for k, v in moved.items()
        }
    return moved


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m training.pretrain", description=__doc__)
    parser.add_argument("--recipe", type=Path, required=True, help="name or .toml file")
    parser.add_argument("--cubes", type=Path, help="store of prepared cubes")
    parser.add_argument("--run-folder", type=Path, help="run folder (default: $UMH_RUNS/NAME)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--workers", type=int, help="loader processes (default: the recipe's)")
    parser.add_argument("--override", action="store_true", help="resume in spite of differences")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    parser.add_argument("--dry-run", action="store_true", help="print the plan, and only that")
    options = parser.parse_args(arguments)
    if options.cubes is None and not options.dry_run:
        parser.error("--cubes is needed (only --dry-run does without)")
    try:
        recipe = load_recipe(options.recipe, options.set)
        store = None if options.cubes is None else CubeStore(options.cubes)
        if store is None or options.dry_run:
            print(pretraining_plan(recipe, str(options.recipe), store))
            return 0
        return pretrain(
            recipe,
            store,
            options.run_folder or runs_folder() / recipe.name,
            device=options.device,
            override=options.override,
            progress=not options.quiet,
            workers=options.workers,
        )
    except UniversalModelError as error:
        print(f"pretrain: error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
