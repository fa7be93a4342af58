"""How a fine-tuning runs: one frozen dataclass."""

from dataclasses import dataclass
from typing import Literal

from universal_model_hub.errors import ConfigError
from universal_model_hub.fit.data.cases import Task
from universal_model_hub.fit.training.engine import DTYPES

Trained = Literal["all", "head", "lora"]
Loss = Literal["dice_ce", "dice", "cross_entropy"]
Schedule = Literal["cosine", "constant"]
CHOICES = {
    "task": ("segmentation", "classification"),
    "train": ("all", "head", "lora"),
    "loss": ("dice_ce", "dice", "cross_entropy"),
    "schedule": ("cosine", "constant"),
    "precision": tuple(DTYPES),
}


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """Settings of one fine-tuning. Source of the defaults: ours.

    The paper (Sec. IV-C) uses Adam at 1e-3 with all layers trainable, Dice or cross-entropy. Here
    it is AdamW with a cosine schedule, both losses, and a few first steps for the new head alone:
    gradients of a random head would undo the pretrained layers below it.
    """

    task: Task = "segmentation"
    cube: tuple[int, int, int] = (32, 32, 32)  # voxels, X Y Z; of classification the largest
    batch_size: int = 2  # cubes, over all processes
    steps: int = 300
    train: Trained = "all"
    head_steps: int = 30  # the first ones, with all but the head frozen
    head_rate_factor: float = 1.0  # of the learning rate in these steps, which have no warm-up
    freeze_normalization: float = 0.0  # share of the steps, the last ones, with fixed batch norm
    learning_rate: float = 1e-3
    layer_decay: float = 1.0  # factor of the rate from one depth to the next below the head
    lora_rank: int | None = None  # of train="lora"; None: the largest under 5 % of the parameters
    weight_decay: float = 1e-2
    schedule: Schedule = "cosine"
    warmup_steps: int = 10
    clip_norm: float = 1.0
    loss: Loss = "dice_ce"  # of segmentation
    class_weights: tuple[float, ...] | None = None  # of the cross-entropy, one a class
    foreground_share: float = 0.5  # of the cubes, centered on a voxel of a drawn class
    ema_decay: float = 0.0  # of an average of the weights, which is then what is judged; 0: none
    validate_every: int = 0  # steps; 0: never on the way
    patience: int = 0  # validations without a better score before an early stop; 0: no early stop
    seed: int = 0
    precision: str = "float32"
    augment: bool = True
    flip_axes: tuple[int, ...] = ()  # 0 X, 1 Y, 2 Z; left and right may be different classes
    transpose: bool = False  # axes of equal sides in any order; with flips, every quarter turn
    intensities: bool = True  # vary gamma, contrast and brightness too, not noise alone

    def __post_init__(self) -> None:
        least = {
            **{"batch_size": 1, "steps": 1, "head_steps": 0, "warmup_steps": 0},
            **{"validate_every": 0, "patience": 0},
        }
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ConfigError(f"Expected {name} of at least {low}, got {getattr(self, name)}.")
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ConfigError(
                    f"Expected {name} {', '.join(choices)}, got {getattr(self, name)!r}."
                )
        for name in ("foreground_share", "freeze_normalization"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"Expected {name} in 0 to 1, got {getattr(self, name)}.")
        if self.head_rate_factor <= 0:
            raise ConfigError(f"Expected a positive head_rate_factor, got {self.head_rate_factor}.")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"Expected ema_decay from 0 to below 1, got {self.ema_decay}.")
        if not 0 < self.layer_decay <= 1:
            raise ConfigError(f"Expected layer_decay above 0 to 1, got {self.layer_decay}.")
        if self.lora_rank is not None and self.lora_rank < 1:
            raise ConfigError(f"Expected a lora_rank of at least 1, got {self.lora_rank}.")
        if self.learning_rate <= 0:
            raise ConfigError(f"Expected a positive learning_rate, got {self.learning_rate}.")
        if any(side < 8 or side % 8 for side in self.cube):
            raise ConfigError(f"Expected cube sides that are multiples of 8, got {self.cube}.")
        if any(axis not in (0, 1, 2) for axis in self.flip_axes):
            raise ConfigError(f"Expected flip_axes of 0, 1 and 2, got {self.flip_axes}.")
