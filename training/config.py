"""Recipes: frozen dataclasses read from TOML; their defaults are the paper's configuration.

A recipe file names only what differs from the defaults, or repeats them to say where they come
from (``recipes/paper.toml``). ``--set section.key=value`` changes single values.
"""

import dataclasses
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from training.transforms import CorruptionConfig
from universal_model_hub.errors import ConfigError
from universal_model_hub.preprocess import Preprocessing

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True, kw_only=True)
class CubesConfig:
    """How cubes are cut. Source: Zhang et al., Sec. III-C, IV-B.1 and Table I."""

    size: tuple[int, int, int] = (64, 64, 32)  # voxels, X Y Z
    scales: tuple[float, ...] = (0.125, 0.25, 0.5)  # small first; a share of what ``cut`` says
    cut: Literal["volume", "voxels"] = "volume"  # of the volume's sides, or of ``size`` in voxels
    counts: dict[str, tuple[int, ...]] = field(
        default_factory=lambda: {
            "luna16": (32, 16, 16),
            "lits2017": (64, 32, 32),
            "brats2018": (32, 16, 16),
            "msd_heart": (64, 32, 32),
        }
    )  # cubes per volume, by scale; Table I divided by its number of volumes
    default_counts: tuple[int, ...] = (32, 16, 16)  # for corpora not named above
    scale_jitter: float = 0.1  # relative; "approximately" in Sec. III-C. Source: ours
    air_share: float = 0.98  # a cube with more of its voxels at the floor is left out


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network that is pre-trained. Source: Zhang et al., Sec. IV-B.2."""

    architecture: str = "unet3d"
    width: int = 32
    normalization: Literal["running", "batch"] = "running"
    checkpointing: bool = False


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The loss. Source: Zhang et al., Eq. 1 to 4; what they leave open is marked ours."""

    task: Literal["restoration", "anatomy", "rotation", "jigsaw"] = "restoration"
    restoration_weight: float = 10.0  # beta
    scale_weight: float = 1.0  # alpha; 0 switches the scale classifier off
    modality_weight: float = 1.0  # 0 switches the discriminator off
    adversarial: Literal["reversal", "alternating"] = "reversal"  # ours: the paper does not say
    discriminator_steps: int = 1  # per U-Net step, alternating only. Source: ours
    reversal_delay: int = 0  # steps in which D learns and nothing is reversed. Source: ours
    reversal_ramp: int = 0  # steps over which the reversal then rises to its weight. Source: ours
    discriminator_widths: tuple[int, int, int] | None = None  # None: as the encoder. Source: ours
    discriminator_hidden: int = 128  # Source: ours
    join_deepest: bool = True  # join E's deepest map before the pooling. Source: ours
    scale_hidden: int = 1024  # Sec. IV-B.2
    permutations: int = 100  # jigsaw. Source: Taleb et al.
    segmentation_weight: float = 1.0  # this and the next two: anatomy alone. Source: ours
    edges_weight: float = 0.5
    contrast_weight: float = 0.2


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer. Source: Zhang et al., Sec. IV-B.2; momentum as in Models Genesis."""

    name: Literal["sgd", "adamw"] = "sgd"
    unet_learning_rate: float = 1.0
    scale_learning_rate: float = 0.1
    modality_learning_rate: float = 1e-3
    momentum: float = 0.9  # not in the paper; Models Genesis, which it follows, uses 0.9
    weight_decay: float = 0.0
    clip_norm: float | None = None
    accumulate: int = 1  # batches per step


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """The learning rate over time. Source: Zhang et al., Sec. IV-B.2; factors are ours."""

    name: Literal["plateau", "cosine", "constant"] = "plateau"
    warmup_steps: int = 0
    factor: float = 0.5
    patience: int = 10  # validations without progress
    min_factor: float = 1e-6  # of the initial rate


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Length, precision and bookkeeping of a run. Source: ours, the paper states none of it."""

    steps: int = 200_000
    batch_size: int = 6  # cubes per step over all processes; Models Genesis uses 6
    seed: int = 0
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    channels_last: bool = False
    compile: bool = False
    deterministic: bool = False
    freeze_normalization: float = 0.0  # share of the run, its end, with batch norm's running values
    balance: tuple[Literal["modality", "scale"], ...] = ()  # equal shares in the order of cubes
    ema_decay: float = 0.0  # 0: no average
    validation_share: float = 0.05  # of the subjects
    validation_cubes: int = 256
    validate_every: int = 1000
    save_every: int = 500
    save_minutes: float = 10.0
    log_every: int = 20
    picture_every: int = 5000
    keep_checkpoints: int = 2
    workers: int = 2  # loader processes per training process


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One pre-training recipe: the corpora it uses and the settings of each stage."""

    name: str
    corpora: tuple[str, ...] = ("luna16", "lits2017", "brats2018", "msd_heart")
    modalities: tuple[Literal["CT", "MR"], ...] = ("CT", "MR")
    preprocessing: Preprocessing = field(default_factory=Preprocessing)
    cubes: CubesConfig = field(default_factory=CubesConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    corruption: CorruptionConfig = field(default_factory=CorruptionConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def to_json(self) -> dict[str, Any]:
        """Return the whole recipe as JSON values."""
        record = plain(dataclasses.asdict(self))
        record["preprocessing"] = self.preprocessing.to_json()
        return typing.cast("dict[str, Any]", record)


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe from TOML, or by its bare name from ``training/recipes``.

    Args:
        path: The file; ``compact`` and ``compact.toml`` both name ``recipes/compact.toml``.
        overrides: ``section.key=value`` strings; the value is read as TOML, else as text.

    Raises:
        ConfigError: If the file is missing or not TOML, or a key or type does not fit.
    """
    file = find_recipe(path)
    values = read_values(file)
    for override in overrides:
        set_value(values, override)
    values.setdefault("name", file.stem)
    return typing.cast("Recipe", build(Recipe, values, file.name))


def recipe_of(record: Mapping[str, Any]) -> Recipe:
    """Return the recipe that ``Recipe.to_json`` wrote.

    Raises:
        ConfigError: If the record is of another version of the recipe's dataclasses.
    """
    return typing.cast("Recipe", build(Recipe, record, "recipe"))


def read_values(file: Path, depth: int = 0) -> dict[str, Any]:
    """Read a recipe's TOML, laid over the recipe that its ``extends`` names."""
    try:
        values = tomllib.loads(file.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"The recipe {file} cannot be read: {error}.") from error
    parent = values.pop("extends", None)
    if parent is None:
        return values
    if depth == 5:
        raise ConfigError(f"{file} extends another recipe more than 5 levels deep. Flatten it.")
    below = file.parent / f"{parent}.toml"
    inherited = read_values(below if below.is_file() else find_recipe(str(parent)), depth + 1)
    inherited.pop("name", None)
    return merged(inherited, values)


def merged(below: dict[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Lay the tables of ``above`` over those of ``below``, key by key."""
    result = dict(below)
    for key, value in above.items():
        old = result.get(key)
        if isinstance(old, dict) and isinstance(value, Mapping):
            value = merged(old, value)
        result[key] = value
    return result


def find_recipe(path: str | Path) -> Path:
    """Return the recipe's file: the path itself, or a file in ``training/recipes``."""
    for candidate in (Path(path), RECIPES / path, RECIPES / f"{path}.toml"):
        if candidate.is_file():
            return candidate
    names = ", ".join(sorted(p.stem for p in RECIPES.glob("*.toml")))
    raise ConfigError(f"No recipe {str(path)!r}. Available: {names}; or give a .toml file.")


def set_value(values: dict[str, Any], override: str) -> None:
    """Apply one ``section.key=value`` to nested TOML values, in place."""
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise ConfigError(f"Expected --set section.key=value, got {override!r}.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *sections, last = key.strip().split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise ConfigError(f"{key} cannot be set: {section} is a value, not a section.")
    values[last] = value


def build(kind: Any, value: Any, where: str) -> Any:
    """Build a value of an annotated type from TOML values, checking names and types.

    Raises:
        ConfigError: Naming the place, what was expected and what came.
    """
    if kind is Preprocessing:
        return Preprocessing.from_json(value)
    if dataclasses.is_dataclass(kind):
        return build_dataclass(typing.cast("type", kind), value, where)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if value == "none" or value is None:
            return None
        return build(next(a for a in arguments if a is not type(None)), value, where)
    if origin is Literal:
        if value in arguments:
            return value
        raise ConfigError(f"{where}: expected one of {list(arguments)}, got {value!r}.")
    if origin is tuple and isinstance(value, list | tuple):
        kinds = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else list(arguments)
        if len(kinds) != len(value):
            raise ConfigError(f"{where}: expected {len(kinds)} values, got {value!r}.")
        pairs = zip(kinds, value, strict=True)
        return tuple(build(k, v, f"{where}[{i}]") for i, (k, v) in enumerate(pairs))
    if origin is dict and isinstance(value, Mapping):
        return {str(k): build(arguments[1], v, f"{where}.{k}") for k, v in value.items()}
    if kind is float and type(value) is int:
        return float(value)
    if kind in (int, float, str, bool) and type(value) is kind:
        return value
    raise ConfigError(f"{where}: expected {kind}, got {value!r}.")


def build_dataclass(kind: type, value: Any, where: str) -> Any:
    """Build a dataclass from a TOML table; an unknown key is an error that lists the known."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: expected a table, got {value!r}.")
    hints = typing.get_type_hints(kind)
    unknown = sorted(set(value) - set(hints))
    if unknown:
        raise ConfigError(
            f"{where}: unknown key {', '.join(unknown)}. Known: {', '.join(sorted(hints))}."
        )
    built = {key: build(hints[key], v, f"{where}: {key}") for key, v in value.items()}
    try:
        return kind(**built)
    except TypeError as error:
        raise ConfigError(f"{where}: {error}.") from error


def plain(value: Any) -> Any:
    """Turn tuples into lists, so that a value equals its own JSON round trip."""
    if isinstance(value, Mapping):
        return {key: plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    return value
