"""config.json: what a model folder says about itself, read with every claim checked.

Nothing here allocates by what a file claims: sizes have bounds, and the network is later built on
the meta device and compared with the tensors in the file.
"""

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from universal_model_hub.errors import ConfigError
from universal_model_hub.files import parse_json, safe_name

if TYPE_CHECKING:
    from universal_model_hub.preprocess import Preprocessing

SCHEMA = 1
MAX_BYTES = 1 << 20
KINDS = ("unet", "encoder", "segmenter", "classifier")
CHANNEL_MODALITIES = ("CT", "MR", "auto")
UPGRADE = "Upgrade: pip install --upgrade universal_model_hub."


class ConfigWarning(UserWarning):
    """Something in a config.json is not understood, and is left out."""


@dataclass(frozen=True)
class Argument:
    """What one argument of an architecture may be, and what it is when left out."""

    default: int | str | None
    bounds: tuple[int, int] | None = None  # lowest and highest integer
    choices: tuple[int | str | None, ...] = ()

    def allows(self, value: Any) -> bool:
        """Whether ``value`` may stand in a config.json."""
        if self.bounds is None:
            return any(type(value) is type(choice) and value == choice for choice in self.choices)
        return type(value) is int and self.bounds[0] <= value <= self.bounds[1]


ARGUMENTS: dict[str, dict[str, Argument]] = {
    "unet3d": {
        "in_channels": Argument(1, (1, 1024)),
        "out_channels": Argument(1, (1, 65_536)),
        "width": Argument(32, (1, 1024)),
        "activation": Argument("sigmoid", choices=("sigmoid", None)),
        "normalization": Argument("running", choices=("running", "batch")),
    },
    "resnet3d": {
        "in_channels": Argument(1, (1, 1024)),
        "out_channels": Argument(2, (1, 65_536)),
        "width": Argument(64, (1, 1024)),
        "depth": Argument(101, choices=(10, 18, 34, 50, 101, 152, 200)),
    },
    "i3d": {
        "in_channels": Argument(1, (1, 1024)),
        "out_channels": Argument(2, (1, 65_536)),
        "width": Argument(64, (1, 1024)),
        "copies": Argument(2, (1, 3)),
    },
    "dense_vnet": {
        "in_channels": Argument(1, (1, 1024)),
        "out_channels": Argument(2, (1, 65_536)),
        "width": Argument(24, (1, 1024)),
        "prior": Argument(None, choices=("spatial", None)),
    },
}
NUM_CLASSES = Argument(None, (1, 65_536))  # of a classifier, beside its encoder's arguments


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """A config.json: which network, what it needs of a scan, and where its weights come from."""

    name: str
    kind: str  # one of KINDS
    architecture: str
    arguments: Mapping[str, int | str | None]
    preprocessing: "Preprocessing"
    labels: Mapping[int, str] | None = None
    license: str | None = None
    sha256: str | None = None  # of model.safetensors
    provenance: Mapping[str, Any] = field(default_factory=dict)
    metrics: tuple[Mapping[str, Any], ...] = ()
    head_trained: bool = True
    seen: Mapping[str, Any] | None = None  # range of scans that the weights were trained on
    channels: tuple[Mapping[str, str], ...] | None = None  # of several: name and modality of each
    schema: int = SCHEMA

    def __post_init__(self) -> None:
        check_arguments(self.kind, self.architecture, self.arguments)
        _check_labels(self)
        _check_channels(self)

    def argument(self, name: str) -> int | str | None:
        """Return an argument of the architecture: as given, or its default."""
        if name in self.arguments:
            return self.arguments[name]
        return ARGUMENTS[self.architecture][name].default

    @property
    def num_outputs(self) -> int:
        """Classes or channels that the head gives; 0 for an encoder."""
        names = {"encoder": None, "classifier": "num_classes"}
        name = names.get(self.kind, "out_channels")
        return 0 if name is None else int(self.argument(name) or 0)

    def to_json(self) -> dict[str, Any]:
        """Return what config.json holds; optional entries only where they say something."""
        defaults = ARGUMENTS[self.architecture]
        arguments = {
            name: value
            for name, value in self.arguments.items()
            if name == "width" or name not in defaults or value != defaults[name].default
        }
        labels = None if self.labels is None else {str(k): v for k, v in self.labels.items()}
        entries: dict[str, Any] = {
            "schema": self.schema,
            "name": self.name,
            "kind": self.kind,
            "architecture": self.architecture,
            "arguments": arguments,
            "preprocessing": self.preprocessing.to_json(),
            "labels": labels,
            "license": self.license,
            "sha256": self.sha256,
            "provenance": dict(self.provenance),
            "metrics": [dict(metric) for metric in self.metrics],
        }
        if not self.head_trained:
            entries["head_trained"] = False
        if self.seen is not None:
            entries["seen"] = dict(self.seen)
        if self.channels is not None:
            entries["channels"] = [dict(channel) for channel in self.channels]
        return entries


def read_config(path: Path) -> ModelConfig:
    """Read and check a config.json.

    Raises:
        ConfigError: If it is missing, over 1 MB, not strict JSON, of a newer schema, or if any
            entry is not what the schema says.
    """
    try:
        with path.open("rb") as stream:
            data = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(
            f"Expected a model folder with a config.json, cannot read {path}: "
            f"{error.strerror or error}."
        ) from error
    if len(data) > MAX_BYTES:
        raise ConfigError(f"Expected a config.json of at most 1 MB, {path} is larger.")
    try:
        return config_from_json(parse_json(data))
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    except RecursionError as error:  # in the repr of an entry that an error shows
        raise ConfigError(f"{path}: expected flat entries, got deep nesting.") from error


def config_from_json(value: Any) -> ModelConfig:
    """Check a parsed config.json, entry by entry.

    Raises:
        ConfigError: If any entry is not what the schema says.
    """
    from universal_model_hub.preprocess import Preprocessing

    entries = dict(_typed(value, dict, "config.json"))
    schema = _typed(entries.pop("schema", None), int, "schema")
    if schema > SCHEMA:
        raise ConfigError(
            f"Expected config.json of schema {SCHEMA} or older, got schema {schema}. {UPGRADE}"
        )
    if schema < 1:
        raise ConfigError(f"Expected schema {SCHEMA}, got {schema}.")
    preprocessing = _typed(entries.pop("preprocessing", {}), dict, "preprocessing")
    known = {name: _CHECKS[name](entries.pop(name)) for name in _CHECKS if name in entries}
    missing = [name for name in ("name", "kind", "architecture") if name not in known]
    if missing:
        raise ConfigError(f"Expected the entries {missing}, which are missing.")
    if entries:
        warnings.warn(
            f"config.json of {known['name']!r} has entries this version does not know, left out: "
            f"{', '.join(sorted(str(name)[:40] for name in entries)[:5])}.",
            ConfigWarning,
            stacklevel=2,
        )
    known.setdefault("arguments", {})
    return ModelConfig(preprocessing=Preprocessing.from_json(preprocessing), **known)


def check_arguments(kind: str, architecture: str, arguments: Mapping[str, Any]) -> None:
    """Check a network's description against the table of what each argument may be.

    Raises:
        ConfigError: If the kind, the architecture, an argument's name or its value is unknown.
    """
    if kind not in KINDS:
        raise ConfigError(f"Expected kind to be one of {', '.join(KINDS)}, got {kind!r:.80}.")
    if architecture not in ARGUMENTS:
        raise ConfigError(
            f"Expected architecture to be one of {', '.join(ARGUMENTS)}, got "
            f"{architecture!r:.80}. If it is newer than this version: {UPGRADE}"
        )
    allowed = dict(ARGUMENTS[architecture])
    if kind == "classifier":
        allowed["num_classes"] = NUM_CLASSES
        if "num_classes" not in arguments:
            raise ConfigError("Expected a classifier's arguments to hold num_classes.")
    for name, value in arguments.items():
        if name not in allowed:
            raise ConfigError(
                f"Expected arguments of {architecture} ({', '.join(allowed)}), got {name!r:.80}."
            )
        argument = allowed[name]
        if not argument.allows(value):
            wanted = (
                f"one of {argument.choices}"
                if argument.bounds is None
                else f"an integer from {argument.bounds[0]} to {argument.bounds[1]}"
            )
            raise ConfigError(f"Expected {name} to be {wanted}, got {value!r:.80}.")


def _check_labels(config: ModelConfig) -> None:
    if config.labels is None:
        return
    # A single output is a foreground against its background, and may name both.
    limit = 2 if config.num_outputs == 1 else config.num_outputs
    bad = [label for label in config.labels if not 0 <= label < limit]
    if bad:
        raise ConfigError(
            f"Expected labels below the {config.num_outputs} outputs of this {config.kind}, "
            f"got {bad[:5]}. Name only classes that the head gives."
        )


def _check_channels(config: ModelConfig) -> None:
    expected = int(config.argument("in_channels") or 1)
    if config.channels is not None and len(config.channels) != expected:
        raise ConfigError(
            f"Expected channels to describe the {expected} inputs of this {config.kind}, got "
            f"{len(config.channels)}."
        )


def _typed(value: Any, wanted: type, what: str) -> Any:
    # bool is an int to isinstance, but never a number in a config.
    if type(value) is not wanted:
        raise ConfigError(
            f"Expected {what} to be {_JSON_NAMES[wanted]}, got {type(value).__name__} "
            f"{value!r:.60}."
        )
    return value


_JSON_NAMES: dict[type, str] = {
    dict: "an object",
    list: "a list",
    str: "a string",
    int: "an integer",
    bool: "true or false",
}


def _name(value: Any) -> str:
    return safe_name(_short_string(value, "name"), "the name in config.json")


def _short_string(value: Any, what: str) -> str:
    if len(_typed(value, str, what)) > 200:
        raise ConfigError(f"Expected {what} to have at most 200 characters, got {len(value)}.")
    return value


def _labels(value: Any) -> dict[int, str] | None:
    if value is None:
        return None
    if not all(re.fullmatch(r"[0-9]{1,6}", key) for key in _typed(value, dict, "labels")):
        raise ConfigError('Expected labels to be like {"0": "background"}, keys being integers.')
    labels = {int(key): _short_string(text, f"label {key}") for key, text in value.items()}
    if len(labels) != len(value):
        raise ConfigError("Expected each label once, some keys are the same number.")
    return labels


def _sha256(value: Any) -> str | None:
    if value is not None and not re.fullmatch(r"[0-9a-f]{64}", _typed(value, str, "sha256")):
        raise ConfigError(f"Expected sha256 to be 64 hex digits, got {value[:80]!r}.")
    return value


def _metrics(value: Any) -> tuple[dict[str, Any], ...]:
    return tuple(_typed(metric, dict, "a metric") for metric in _typed(value, list, "metrics"))


def _channels(value: Any) -> tuple[dict[str, str], ...]:
    found = []
    for number, channel in enumerate(_typed(value, list, "channels")):
        if sorted(_typed(channel, dict, f"channel {number}")) != ["modality", "name"]:
            raise ConfigError(
                f"Expected name and modality of channel {number}, got {channel!r:.60}."
            )
        if channel["modality"] not in CHANNEL_MODALITIES:
            raise ConfigError(
                f"Expected the modality of channel {number} to be one of "
                f"{', '.join(CHANNEL_MODALITIES)}, got {channel['modality']!r:.40}."
            )
        name = _short_string(channel["name"], f"the name of channel {number}")
        found.append({"name": name, "modality": channel["modality"]})
    return tuple(found)


_CHECKS: dict[str, Any] = {
    "name": _name,
    "kind": lambda value: _short_string(value, "kind"),
    "architecture": lambda value: _short_string(value, "architecture"),
    "arguments": lambda value: _typed(value, dict, "arguments"),
    "labels": _labels,
    "license": lambda value: None if value is None else _short_string(value, "license"),
    "sha256": _sha256,
    "provenance": lambda value: _typed(value, dict, "provenance"),
    "metrics": _metrics,
    "head_trained": lambda value: _typed(value, bool, "head_trained"),
    "seen": lambda value: None if value is None else _typed(value, dict, "seen"),
    "channels": lambda value: None if value is None else _channels(value),
}
