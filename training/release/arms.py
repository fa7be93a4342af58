"""What is compared: released weights, siblings, scratch of the same network, hand-made features."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from universal_model_hub.config import ModelConfig
from universal_model_hub.errors import ConfigError
from universal_model_hub.files import sha256_of
from universal_model_hub.source import find_source

SCRATCH, RANDOM, HAND = "scratch", "random network", "hand-made features"


@dataclass(frozen=True)
class Arm:
    """One side of the comparison."""

    name: str
    weights: Path | None = None  # model folder; None: freshly initialized
    sha256: str = ""  # of its model.safetensors
    architecture: str = "unet3d"
    arguments: tuple[tuple[str, Any], ...] = ()  # of the network: width, normalization
    against: str = ""  # the arm from scratch that it is paired with
    sibling: bool = False  # of the ablation: fewer seeds and tasks
    has_decoder: bool = True

    def to_json(self) -> dict[str, Any]:
        """Return what decides its runs; where the folder lies does not."""
        return {
            "sha256": self.sha256,
            "architecture": self.architecture,
            "arguments": dict(self.arguments),
        }


@dataclass(frozen=True)
class Arms:
    """All arms of an evaluation."""

    weights: tuple[Arm, ...]
    scratch: tuple[Arm, ...]  # one for each network that the weights have
    by_name: dict[str, Arm] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Arm:
        return self.by_name[name]


def find_arms(weights: Sequence[str | Path], siblings: Sequence[str | Path] = ()) -> Arms:
    """Read the model folders that are compared, and pair each with scratch of its network.

    Args:
        weights: Model folders or names of the catalog, each as ``FOLDER`` or ``NAME=FOLDER``.
        siblings: Likewise, of the ablation.

    Raises:
        ConfigError: If a folder cannot be used, or two weights have one name.
        IntegrityError: If a weight file is damaged.
    """
    found: list[Arm] = []
    scratch: dict[tuple[Any, ...], Arm] = {}
    for name, sibling in [(w, False) for w in weights] + [(s, True) for s in siblings]:
        arm = _arm_of(name, sibling)
        network = (arm.architecture, arm.arguments)
        if network not in scratch:
            suffix = f" {len(scratch) + 1}" if scratch else ""
            scratch[network] = Arm(
                SCRATCH + suffix, architecture=arm.architecture, arguments=arm.arguments
            )
        if arm.name in {a.name for a in found}:
            raise ConfigError(f"Expected weights of different names, got {arm.name} twice.")
        against = scratch[network].name
        found.append(Arm(**{**vars(arm), "against": against}))
    arms = (*found, *scratch.values())
    return Arms(tuple(found), tuple(scratch.values()), {arm.name: arm for arm in arms})


def _arm_of(given: str | Path, sibling: bool) -> Arm:
    title, equals, place = str(given).partition("=")
    name = place if equals else str(given)
    source = find_source(name, True)
    if source.weights is None:
        raise ConfigError(f"Expected weights in {name}, got none. Name a published model folder.")
    config: ModelConfig = source.config
    kept = {k: v for k, v in config.arguments.items() if k in ("width", "normalization")}
    return Arm(
        name=title if equals else config.name,
        weights=source.weights.parent.resolve(),
        sha256=source.sha256 or sha256_of(source.weights),
        architecture=config.architecture,
        arguments=tuple(sorted(kept.items())),
        sibling=sibling,
        has_decoder=config.kind in ("unet", "segmenter"),
    )
