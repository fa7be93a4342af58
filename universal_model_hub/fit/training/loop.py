"""The fine-tuning loop: first the new head alone, then everything; resumable at any step.

Shape letters: N batch, X Y Z axes, K classes.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from universal_model_hub.errors import CheckpointError
from universal_model_hub.fit.training.checkpoint import load_latest, save_checkpoint
from universal_model_hub.fit.training.engine import (
    Ema,
    Process,
    StopRequest,
    all_ranks_agree,
    autocast,
    check_bfloat16,
    cosine_factor,
    from_main,
    pick_device,
)
from universal_model_hub.fit.training.losses import batch_loss
from universal_model_hub.fit.training.settings import FinetuneSettings
from universal_model_hub.fit.training.trainable import parameter_groups, set_train_mode

SAVE_SECONDS = 120.0
AHEAD = 4  # batches drawn while a GPU works


class Sampler(Protocol):
    """Gives the batch of a step: ``CubeSampler``, ``ScanSampler``, or one of your own."""

    def batch(self, step: int, rank: int = 0, world_size: int = 1) -> tuple[Tensor, Tensor]:
        """Return inputs (N, C, X, Y, Z) and targets."""


class Batches:
    """The batches of a process, step by step; on a GPU drawn ahead by threads of their own.

    A batch depends on its step alone, so it is the same either way.
    """

    def __init__(
        self, sampler: Sampler, steps: int, process: Process, ahead: int | None = None
    ) -> None:
        self.sampler, self.steps, self.process = sampler, steps, process
        self.ahead = (AHEAD if process.device.type == "cuda" else 0) if ahead is None else ahead
        self.pool = ThreadPoolExecutor(self.ahead) if self.ahead else None
        self.drawn: dict[int, Future[tuple[Tensor, Tensor]]] = {}

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the batch of a step."""
        if self.pool is None:
            return self._batch(step)
        for number in range(step, min(step + self.ahead, self.steps - 1) + 1):
            if number not in self.drawn:
                self.drawn[number] = self.pool.submit(self._batch, number)
        return self.drawn.pop(step).result()

    def __enter__(self) -> "Batches":
        return self

    def __exit__(self, *error: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(cancel_futures=True)

    def _batch(self, step: int) -> tuple[Tensor, Tensor]:
        return self.sampler.batch(step, self.process.rank, self.process.world_size)


@dataclass
class FitResult:
    """What became of a fine-tuning; the model itself was changed in place."""

    losses: list[float] = field(default_factory=list)  # of each step
    scores: list[tuple[int, float]] = field(default_factory=list)  # finished steps, validation
    best_step: int | None = None  # whose weights the model has; None: those of the last step
    finished: bool = False  # False: a signal stopped it, and it can go on
    seconds: float = 0.0  # of all steps, over all starts of the run


def fit(
    model: nn.Module,
    sampler: Sampler,
    settings: FinetuneSettings,
    *,
    device: str = "cpu",
    process: Process | None = None,
    validate: Callable[[nn.Module], float] | None = None,
    after_step: Callable[[int, nn.Module], None] | None = None,
    run_folder: Path | None = None,
    config: Mapping[str, Any] | None = None,
    stop: StopRequest | None = None,
    progress: str | None = None,
) -> FitResult:
    """Fine-tune a network in place.

    With ``run_folder`` the run goes on from its newest checkpoint; on a CPU the result is bitwise
    that of an uninterrupted run. With ``validate`` the weights of the best score are kept.

    Args:
        model: Has a ``head``; gives logits (N, K, X, Y, Z), or (N, K) for classification.
        sampler: Of training batches.
        settings: Of the run.
        device: ``auto``, ``cpu`` or ``cuda``; the model is moved there and stays.
        process: This process among several; it then says the device.
        validate: Scores a network, higher is better; called every ``settings.validate_every`` steps
            and after the last, in the first process, with the averaged weights if there are such.
        after_step: Called with the number of finished steps and the model, in train mode.
        run_folder: Gets the checkpoints.
        config: What a checkpoint must agree with to be resumed, beside nothing but JSON values.
        stop: Ends the run after a step when a signal came.
        progress: Name of a progress bar on stderr; None shows none.

    Returns:
        Losses and scores. The model is left in eval mode.

    Raises:
        CheckpointError: If the loss is not finite, or a checkpoint cannot be used.
        ConfigError: If the precision is not for this device, or the cubes too small for it.
    """
    process = process or Process(0, 1, pick_device(device))
    check_bfloat16(process.device, settings.precision, settings.cube)
    run = _Run(model, settings, process)
    if run_folder is not None:
        run.resume(run_folder / "checkpoints", config or {})
    wrapped = _distributed(run.model, process)
    bar = tqdm(
        total=settings.steps,
        initial=run.step,
        desc=progress,
        unit="step",
        disable=progress is None or not process.is_main,
    )
    saved = started = time.monotonic()
    stopping = False
    with bar, Batches(sampler, settings.steps, process) as batches:
        while run.step < settings.steps and not stopping and not run.is_exhausted():
            loss = run.train_step(wrapped, batches(run.step))
            bar.update()
            bar.set_postfix(loss=f"{loss:.3g}", refresh=False)
            if after_step is not None:
                after_step(run.step, run.model)
            if validate is not None and run.is_due():
                run.judge(validate)
            now = time.monotonic()
            run.result.seconds += now - started
            started = now
            stopping = all_ranks_agree(stop is not None and stop.wanted(run.step), process)
            if run_folder is not None and now - saved > SAVE_SECONDS and process.is_main:
                run.save(run_folder / "checkpoints", config or {})
                saved = time.monotonic()
    run.result.finished = not stopping or run.step >= settings.steps or run.is_exhausted()
    if run_folder is not None and process.is_main:
        run.save(run_folder / "checkpoints", config or {})
    if run.result.finished:
        run.take_best()
    model.requires_grad_(True)
    model.train(False)
    return run.result


class _Run:
    """What changes while a fine-tuning runs: all of it goes into a checkpoint."""

    def __init__(self, model: nn.Module, settings: FinetuneSettings, process: Process) -> None:
        place: Any = process.device
        self.model: nn.Module = model.to(place, memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
        self.settings, self.process = settings, process
        set_train_mode(model, settings.train)
        groups = parameter_groups(
            model,
            mode=settings.train,
            learning_rate=settings.learning_rate,
            weight_decay=settings.weight_decay,
            layer_decay=settings.layer_decay,
        )
        self.optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate)
        self.scheduler = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda step: self._factor(step)
        )
        self.scaler = torch.amp.GradScaler(
            process.device.type, enabled=settings.precision == "float16"
        )
        self.ema = Ema(model, settings.ema_decay) if settings.ema_decay else None
        self.step = 0
        self.unimproved = 0  # validations since the best
        self.best: dict[str, Tensor] | None = None
        self.result = FitResult()

    def _factor(self, step: int) -> float:
        settings = self.settings
        if step < settings.head_steps:
            return settings.head_rate_factor
        step -= settings.head_steps
        if settings.schedule == "constant":
            return min(1.0, (step + 1) / max(1, settings.warmup_steps))
        left = max(1, settings.steps - settings.head_steps)
        return cosine_factor(step, left, settings.warmup_steps, 0.0)

    def train_step(self, wrapped: nn.Module, batch: tuple[Tensor, Tensor]) -> float:
        """One optimizer step on a batch; return the loss.

        Raises:
            CheckpointError: If it is not finite; nothing of the step is kept.
        """
        settings, process = self.settings, self.process
        head_only = self.step < settings.head_steps
        set_train_mode(self.model, settings.train)
        if self.step >= settings.steps * (1 - settings.freeze_normalization):
            freeze_normalization(self.model)
        spared = process.world_size == 1 and settings.train == "all"
        if spared:
            set_trainable(self.model, head_only=head_only)  # spares the backward pass
        images, targets = (t.to(process.device, non_blocking=True) for t in batch)
        self.optimizer.zero_grad(set_to_none=True)
        with autocast(process.device, settings.precision):
            logits = wrapped(images.contiguous(memory_format=torch.channels_last_3d))
        loss = batch_loss(logits.float(), targets, settings)
        if all_ranks_agree(not bool(torch.isfinite(loss)), process):
            raise CheckpointError(
                f"The loss is not finite at step {self.step + 1}. Nothing of this step was kept, "
                f"the last checkpoint is good. Lower the rate ({settings.learning_rate:g})."
            )
        self.scaler.scale(loss).backward()
        if head_only and not spared:
            _drop_gradients_below_head(self.model)
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.model.parameters(), settings.clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.scheduler.step()
        if self.ema is not None:
            self.ema.update(self.model)
        self.step += 1
        self.result.losses.append(float(loss.detach()))
        return self.result.losses[-1]

    def is_due(self) -> bool:
        """Whether this step ends with a validation."""
        every = self.settings.validate_every
        return self.step == self.settings.steps or bool(every and self.step % every == 0)

    def is_exhausted(self) -> bool:
        """Whether validation has not got better for as long as ``patience`` allows."""
        return bool(self.settings.patience) and self.unimproved >= self.settings.patience

    def judge(self, validate: Callable[[nn.Module], float]) -> None:
        """Score the weights, the averaged ones if there are such, and keep them if best."""
        score = 0.0
        if self.process.is_main:
            with self._averaged():
                self.model.train(False)
                score = validate(self.model)
        score = from_main(score, self.process)
        better = all(score > old for _, old in self.result.scores)
        self.result.scores.append((self.step, score))
        self.unimproved = 0 if better else self.unimproved + 1
        if better:
            self.result.best_step = self.step
            values = self.ema.values if self.ema is not None else self.model.state_dict()
            self.best = {name: value.detach().clone() for name, value in values.items()}

    @contextlib.contextmanager
    def _averaged(self) -> Iterator[None]:
        if self.ema is None:
            yield
            return
        kept = {name: value.detach().clone() for name, value in self.model.state_dict().items()}
        self.model.load_state_dict(self.ema.values)
        try:
            yield
        finally:
            self.model.load_state_dict(kept)

    def take_best(self) -> None:
        """Give the model the weights that were judged best, or the averaged ones."""
        if self.best is not None:
            self.model.load_state_dict(self.best)
        elif self.ema is not None:
            self.model.load_state_dict(self.ema.values)

    def parts(self) -> dict[str, Any]:
        """Return the parts that have a state of their own, by name."""
        parts = {
            "model": self.model,
            "optimizer": self.optimizer,
            "scheduler": self.scheduler,
            "scaler": self.scaler,
            "ema": self.ema,
        }
        return {name: part for name, part in parts.items() if part is not None}

    def save(self, folder: Path, config: Mapping[str, Any]) -> None:
        """Write a checkpoint, from this process alone."""
        state: dict[str, Any] = {name: part.state_dict() for name, part in self.parts().items()}
        state |= {
            "best": self.best,
            "unimproved": self.unimproved,
            "losses": list(self.result.losses),
            "scores": list(self.result.scores),
            "best_step": self.result.best_step,
            "seconds": self.result.seconds,
            "rng": torch.get_rng_state(),
        }
        save_checkpoint(folder, self.step, state, config)

    def resume(self, folder: Path, config: Mapping[str, Any]) -> None:
        """Go on from the newest usable checkpoint, if there is one."""
        found = load_latest(folder, config)
        if found is None:
            return
        self.step, state = found
        for name, part in self.parts().items():
            part.load_state_dict(state[name])
        self.best, self.unimproved = state["best"], state["unimproved"]
        self.result.losses = list(state["losses"])
        self.result.scores = [(step, score) for step, score in state["scores"]]
        self.result.best_step, self.result.seconds = state["best_step"], state["seconds"]
        torch.set_rng_state(state["rng"])


def freeze_normalization(model: nn.Module) -> None:
    """Put batch norm in eval mode: it uses and keeps its running statistics."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train(False)


def set_trainable(model: nn.Module, *, head_only: bool) -> None:
    """Freeze all parameters but the head's, or none; batch norm adapts its statistics always."""
    head: Any = model.head
    model.requires_grad_(not head_only)
    head.requires_grad_(True)


def _drop_gradients_below_head(model: nn.Module) -> None:
    """Leave gradients to the head alone, where the graph must be the same in every step."""
    head: Any = model.head
    kept = {id(parameter) for parameter in head.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in kept:
            parameter.grad = None


def _distributed(model: nn.Module, process: Process) -> nn.Module:
    if process.world_size == 1:
        return model
    ids = [process.device.index] if process.device.type == "cuda" else None
    return DistributedDataParallel(model, device_ids=ids)
