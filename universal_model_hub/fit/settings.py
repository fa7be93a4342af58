"""How a fine-tuning runs: one frozen dataclass."""

from dataclasses import dataclass

from universal_model_hub.errors import ConfigError
from universal_model_hub.fit.engine import DTYPES


@dataclass(frozen=True, kw_only=True)
class FinetuneSettings:
    """Settings of one fine-tuning. Source of the defaults: ours.

    The paper (Sec. IV-C) uses Adam at 1e-3 with all layers trainable, Dice or cross-entropy. Here
    it is AdamW with a cosine schedule, both losses, and a few first steps for the new head alone:
    gradients of a random head would undo the pretrained layers below it.
    """

    cube: tuple[int, int, int] = (32, 32, 32)  # voxels, X Y Z
    batch_size: int = 2  # cubes
    steps: int = 300
    head_steps: int = 30  # the first ones, with all but the head frozen
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    warmup_steps: int = 10
    clip_norm: float = 1.0
    foreground_share: float = 0.5  # of the cubes, centered on a voxel of a drawn class
    seed: int = 0
    precision: str = "float32"
    augment: bool = True
    flip_axes: tuple[int, ...] = ()  # 0 X, 1 Y, 2 Z; left and right may be different classes

    def __post_init__(self) -> None:
        least = {"batch_size": 1, "steps": 1, "head_steps": 0, "warmup_steps": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ConfigError(f"Expected {name} of at least {low}, got {getattr(self, name)}.")
        if not 0 <= self.foreground_share <= 1:
            raise ConfigError(f"Expected foreground_share in 0 to 1, got {self.foreground_share}.")
        if self.learning_rate <= 0:
            raise ConfigError(f"Expected a positive learning_rate, got {self.learning_rate}.")
        if self.precision not in DTYPES:
            raise ConfigError(f"Expected precision {', '.join(DTYPES)}, got {self.precision!r}.")
        if any(side < 8 or side % 8 for side in self.cube):
            raise ConfigError(f"Expected cube sides that are multiples of 8, got {self.cube}.")
