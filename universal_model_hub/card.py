"""The model card: what a config.json says, for people, and its metrics, for the Hub's pages.

The front matter and its ``model-index`` are what the Hub shows and searches; ``.eval_results``
holds the same metrics in the format that follows it.
"""

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from universal_model_hub.catalog import WEIGHTS
from universal_model_hub.config import ModelConfig

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

LIBRARY = "universal_model_hub"
PIPELINE_TAGS = {
    "unet": "image-segmentation",
    "encoder": "image-feature-extraction",
    "segmenter": "image-segmentation",
    "classifier": "image-classification",
}
LOADERS = {
    "unet": "load_unet",
    "encoder": "load_encoder",
    "segmenter": "load_segmenter",
    "classifier": "load_classifier",
}
TAGS = ["medical", "ct", "mri", "3d", "pytorch", "safetensors"]
SELF_SUPERVISED = ("unet", "encoder")
# Identifiers that the Hub knows; any other is given as "other" with its name.
HUB_LICENSES = (
    *("apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "mpl-2.0", "unlicense", "cc0-1.0"),
    *("cc-by-4.0", "cc-by-sa-4.0", "cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0"),
    *("gpl-3.0", "lgpl-3.0", "agpl-3.0", "odbl", "openrail"),
)
USES = {
    "unet": "Restores corrupted cubes; its encoder and decoder are a start for fine-tuning.",
    "encoder": "Gives features of a scan: for search, for probes, as a start for fine-tuning.",
    "segmenter": "Labels the voxels of a scan, in research.",
    "classifier": "Assigns a scan, or a part of one, to a class, in research.",
}
THIRD_LINES = {
    "unet": 'restored = model(umh.preprocess(umh.load_volume("scan.nii.gz"), model)[0])',
    "encoder": 'embedding = umh.embed(model, umh.load_volume("scan.nii.gz"))',
    "segmenter": 'labels = umh.predict(model, umh.load_volume("scan.nii.gz"))',
    "classifier": 'logits = model(umh.preprocess(umh.load_volume("scan.nii.gz"), model)[0])',
}
LIMITS = """\
- **Not a medical device.** Not for diagnosis, treatment or any decision about a patient.
- The numbers below hold for the data they were measured on. Another scanner, protocol, body region,
  age group or disease can give worse results without any sign of it: check on your own data.
- Scans whose modality, spacing or range of intensities differ from what the weights have seen are
  named in a warning, not corrected.
"""


def model_card(config: ModelConfig, *, repo_id: str | None = None) -> str:
    """Write the README.md of a model folder, with the front matter that the Hub reads.

    Args:
        config: The model's config.json.
        repo_id: Where it will be published; None: the card names the catalog or a folder.
    """
    from huggingface_hub import ModelCardData

    data = ModelCardData(
        **_license(config.license),
        library_name=LIBRARY,
        pipeline_tag=PIPELINE_TAGS[config.kind],
        tags=TAGS + (["self-supervised"] if config.kind in SELF_SUPERVISED else []),
        model_name=config.name,
        eval_results=[_eval_result(config, metric) for metric in _measured(config)] or None,
    )
    sections = (
        f"# {config.name}\n",
        _summary(config),
        "## Use\n",
        _use(config, repo_id or ""),
        "## Limits\n",
        LIMITS + _unfinished(config),
        "## Input\n",
        _input(config),
        "## Results\n",
        _results(config),
        "## Data and license\n",
        _data_and_license(config),
        "## How it was made\n",
        _provenance(config),
    )
    return f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(sections)


def eval_results(config: ModelConfig) -> dict[str, str]:
    """Return the metrics as files of ``.eval_results``: path in the repository, YAML text.

    One file a task. The data set is the metric's ``dataset`` where it has one on the Hub, else its
    task.
    """
    import yaml  # of huggingface_hub

    files: dict[str, list[dict[str, Any]]] = {}
    for metric in _measured(config):
        task = str(metric["task"])
        entry: dict[str, Any] = {
            "dataset": {"id": str(metric.get("dataset", task)), "task_id": task},
            "value": float(metric["value"]),
            "notes": _notes(metric),
        }
        if date := config.provenance.get("date"):
            entry["date"] = str(date)
        source = str(metric.get("source", ""))
        if source.startswith("https://"):
            entry["source"] = {"url": source}
        name = re.sub("[^A-Za-z0-9_-]+", "-", task)[:100].strip("-") or "results"
        files.setdefault(f".eval_results/{name}.yaml", []).append(entry)
    return {path: yaml.safe_dump(entries, sort_keys=False) for path, entries in files.items()}


def _measured(config: ModelConfig) -> list[Mapping[str, Any]]:
    """Return the metrics that say what was measured and give a finite number for it."""
    return [
        metric
        for metric in config.metrics
        if {"task", "metric", "value"} <= metric.keys()
        and isinstance(metric["value"], (int, float))
        and math.isfinite(metric["value"])
    ]


def _license(license: str | None) -> dict[str, Any]:
    if license is None:
        return {}
    if license.lower() in HUB_LICENSES:
        return {"license": license.lower()}
    return {"license": "other", "license_name": license}


def _eval_result(config: ModelConfig, metric: Mapping[str, Any]) -> "EvalResult":
    from huggingface_hub import EvalResult

    task, name = str(metric["task"]), str(metric["metric"])
    return EvalResult(
        task_type=PIPELINE_TAGS[config.kind],
        dataset_type=str(metric.get("dataset", task)),
        dataset_name=task,
        metric_type=name.lower(),
        metric_name=name,
        metric_value=metric["value"],
    )


def _notes(metric: Mapping[str, Any]) -> str:
    parts = [str(metric["metric"])]
    parts += [f"{key} {metric[key]}" for key in ("std", "n", "seeds", "source") if key in metric]
    return ", ".join(parts)


def _summary(config: ModelConfig) -> str:
    # As config.json has them, so that the same card comes from the model and from its folder.
    written = config.to_json()["arguments"]
    arguments = ", ".join(f"{name}={value!r}" for name, value in written.items())
    known = WEIGHTS.get(config.name)
    first = f"{known.summary}.\n\n" if known else ""
    head = "" if config.head_trained else " Its head is not trained."
    network = f"`{config.architecture}`" + (f" with `{arguments}`" if arguments else "")
    return f"{first}Kind `{config.kind}`, architecture {network}. {USES[config.kind]}{head}\n"


def _use(config: ModelConfig, repo_id: str) -> str:
    loader = LOADERS[config.kind]
    name = "path/to/this/folder"
    if repo_id:
        name = f"hf-hub:{repo_id}"
    elif config.name in WEIGHTS:
        name = config.name
    return f"""\
```python
import universal_model_hub as umh

model = umh.{loader}({name!r})
{THIRD_LINES[config.kind]}
```

Without the package installed, from a checkout of its repository:

```python
import torch

model = torch.hub.load(
    "path/to/{LIBRARY}", {loader!r}, source="local", trust_repo=True, name={name!r}
)
```

To fine-tune, ask for a head of your own: `umh.load_segmenter({name!r}, num_classes=2)`.
"""


def _input(config: ModelConfig) -> str:
    settings = json.dumps(config.preprocessing.to_json(), indent=2)
    seen = ""
    if config.seen is not None:
        seen = f"\nSeen in training:\n\n```json\n{json.dumps(dict(config.seen), indent=2)}\n```\n"
    channels = config.argument("in_channels")
    named = "".join(
        f"\n{number}. {_cell(channel['name'])}: {channel['modality']}"
        for number, channel in enumerate(config.channels or (), start=1)
    )
    told = f"Channels, all on one grid:\n{named}\n\n" if named else ""
    return f"""\
{told}(N, {channels}, X, Y, Z) in [0, 1], axes in RAS+ order, any size. `umh.preprocess` makes it
from a scan by these settings, which belong to the weights:

```json
{settings}
```
{seen}{_labels(config.labels)}"""


def _labels(labels: Mapping[int, str] | None) -> str:
    if not labels:
        return ""
    return "\n" + _table(("label", "class"), sorted(labels.items()))


def _results(config: ModelConfig) -> str:
    if not config.metrics:
        return "Nothing was measured with these weights.\n"
    columns = ("task", "metric", "value", "std", "n", "seeds", "source")
    rows = ([metric.get(column, "") for column in columns] for metric in config.metrics)
    verdict = config.provenance.get("verdict")
    return (f"{verdict}\n\n" if verdict else "") + _table(columns, rows)


def _data_and_license(config: ModelConfig) -> str:
    stated = f"`{_cell(config.license)}`" if config.license else "not stated: ask before you share"
    data = config.provenance.get("data")
    told = f"{_cell(data)}\n\n" if data else ""
    made = config.provenance.get("data_sha256")
    hashed = f" The training data hash to `{_cell(made)}`." if made else ""
    return (
        f"{told}License of the weights: {stated}. It is separate from that of the code, and the "
        f"licenses of the training data bind as well.{hashed}\n"
    )


def _unfinished(config: ModelConfig) -> str:
    told = config.provenance.get("unfinished")
    return (
        f"- The training was {_cell(told)}: its schedule never came to its end.\n" if told else ""
    )


def _provenance(config: ModelConfig) -> str:
    if not config.provenance:
        return "Not recorded.\n"
    values = (
        (key, json.dumps(value, sort_keys=True) if isinstance(value, (dict, list)) else value)
        for key, value in config.provenance.items()
        if key not in ("data", "verdict")  # told above
    )
    table = _table(("what", "value"), values)
    recipe = str(config.provenance.get("recipe", "")).removesuffix(".toml")
    if not re.fullmatch("[A-Za-z0-9_.-]+", recipe):
        return table
    if config.provenance.get("unfinished"):
        return (
            f"{table}\nThe run was not finished: the whole recipe gives other weights than these.\n"
        )
    return f"""\
{table}
To train it again and compare, from a checkout of the project at that commit, with the data
prepared as `training/README.md` says:

```sh
python -m training.reproduce --model path/to/this/folder --recipe {recipe} --cubes STORE
```
"""


def _table(columns: tuple[str, ...], rows: Iterable[Iterable[Any]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join("| " + " | ".join(_cell(cell) for cell in line) + " |\n" for line in lines)


def _cell(value: Any) -> str:
    """Return text that stays in its table cell and is not taken for markup."""
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    for sign, instead in (("&", "&amp;"), ("<", "&lt;"), ("|", "\\|"), ("`", "'")):
        text = text.replace(sign, instead)
    return " ".join(text.split())
