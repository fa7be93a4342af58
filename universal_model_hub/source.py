"""A name to a checked config and, if weights are wanted, to their file."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from universal_model_hub.catalog import Weights, list_models
from universal_model_hub.config import ModelConfig, read_config
from universal_model_hub.errors import ConfigError, IntegrityError
from universal_model_hub.hub import resolve_model
from universal_model_hub.hub.names import HubName, parse_name
from universal_model_hub.preprocess import Preprocessing


@dataclass(frozen=True)
class Source:
    """What a name stands for."""

    name: str  # as it was asked for
    config: ModelConfig
    weights: Path | None = None  # model.safetensors; None: not wanted
    verified: Literal["pinned", "hub", "local"] | None = None
    sha256: str | None = None  # of the weight file, where it was computed
    revision: str | None = None  # commit on the Hub


def find_source(name: str | Path, pretrained: bool, **hub_options: Any) -> Source:
    """Resolve a name; ``hub_options`` are those of ``hub.resolve_model``.

    Raises:
        ConfigError: If the name or the config.json cannot be used.
        DownloadError: If the Hub did not give the files.
        IntegrityError: If the weight file is not the one that its config.json or the catalog names.
    """
    if not pretrained:
        return Source(str(name), _config_without_weights(name))
    model = resolve_model(name, **hub_options)
    config = read_config(model.config)
    if config.sha256 not in (None, model.sha256):
        raise IntegrityError(
            f"Expected {model.weights} to have the sha256 {config.sha256} of its config.json, got "
            f"{model.sha256}. Restore the file, or save the model anew with save_pretrained."
        )
    return Source(str(name), config, model.weights, model.verified, model.sha256, model.revision)


def _config_without_weights(name: str | Path) -> ModelConfig:
    """Return the description of a network, from the catalog or from a folder's config.json."""
    parsed = parse_name(name)
    if isinstance(parsed, Weights):
        return ModelConfig(
            name=parsed.name,
            kind=parsed.kind,
            architecture=parsed.architecture,
            arguments=dict(parsed.arguments),
            preprocessing=Preprocessing(),
        )
    if isinstance(parsed, HubName):
        raise ConfigError(
            f"Expected a catalog name ({', '.join(list_models())}) or a model folder for "
            f"pretrained=False, got {str(name)[:200]!r}: nothing is downloaded for it."
        )
    config = read_config(parsed.config)
    # What was measured and recorded belongs to weights that are not loaded.
    return replace(config, provenance={}, metrics=(), license=None, seen=None)
