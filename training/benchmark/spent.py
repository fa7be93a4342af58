"""What finished runs and pre-trainings took, for the hours of others like them."""

from collections import defaultdict
from pathlib import Path

from universal_model_hub.errors import ConfigError
from universal_model_hub.files import parse_json


def finished_seconds(out: Path) -> dict[tuple[str, str, int], float]:
    """Return the mean seconds of finished runs by network, task and steps."""
    seconds: defaultdict[tuple[str, str, int], list[float]] = defaultdict(list)
    for path in sorted((out / "runs").glob("*.json")):
        try:
            result = parse_json(path.read_bytes())
            key = (result["network"]["name"], result["task"], result["steps"])
            parts = ("seconds", "validation_seconds", "test_seconds")
            seconds[key].append(sum(result[part] for part in parts))
        except (KeyError, TypeError, ValueError) as cause:
            raise ConfigError(f"Expected a result in {path}, got {cause!r}. Delete it.") from cause
    return {key: sum(values) / len(values) for key, values in seconds.items()}


def finished_hours(out: Path) -> dict[str, float]:
    """Return the hours of finished pre-trainings by the hash of their recipe."""
    path = out / "pretraining.json"
    if not path.is_file():
        return {}
    try:
        rows = parse_json(path.read_bytes()).values()
        return {r["recipe_sha256"]: r["result"]["hours"] for r in rows if "result" in r}
    except (AttributeError, KeyError, TypeError, ValueError) as cause:
        raise ConfigError(
            f"Expected what was pre-trained in {path}, got {cause!r}. Delete it."
        ) from cause
