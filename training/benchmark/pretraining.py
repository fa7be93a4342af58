"""The pre-trainings that rows need: cubes, training, model folder; each kept and resumable.

A pre-training is named by the hash of its recipe and its data. Recipes that cut the same cubes
share a store, from which each takes its own corpora and modalities.
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.benchmark.logs import logged
from training.benchmark.plan import Plan, Run
from training.benchmark.pool import Stopped
from training.benchmark.rows import get_row
from training.benchmark.sources import Source, refuse_test_cases
from training.benchmark.stamps import hashes_in, history, same_files, tensors_sha256
from training.config import Recipe
from training.corpora.case import Case
from training.cubes import CubeStore
from training.prepare import prepare, store_settings
from training.pretrain import pretrain
from training.publish import publish, recipe_sha256
from universal_model_hub.errors import ConfigError
from universal_model_hub.files import parse_json, sha256_of, write_json

VERSION = 1  # of what a pre-training does beside its recipe
NAME_LENGTH = 12  # characters of the hash in names


@dataclass(frozen=True)
class Pretraining:
    """One pre-training and where its parts lie."""

    name: str  # recipe, and task if it is one task's; with the hash
    recipe: Recipe
    corpora: tuple[str, ...]  # of the store, which other recipes may share
    store: Path
    run_folder: Path
    model: Path
    key: str
    synthetic: bool

    def __hash__(self) -> int:
        return hash(self.key)

    def __str__(self) -> str:
        return self.name

    @property
    def is_finished(self) -> bool:
        """Whether its model folder is there."""
        return (self.model / "config.json").is_file()

    def facts(self) -> dict[str, Any]:
        """Return what a result says of the pre-training it started from."""
        provenance = parse_json((self.model / "config.json").read_bytes())["provenance"]
        return {
            "recipe": self.recipe.name,
            "recipe_sha256": provenance["recipe_sha256"],
            "sha256": sha256_of(self.model / "model.safetensors"),
            "tensors_sha256": tensors_sha256(self.model),
            "hours": provenance["hours"],
            "steps": self.recipe.run.steps,
        }


def pretrainings(
    plan: Plan, runs: Sequence[Run], data: Mapping[str, str], work: Path, *, synthetic: bool
) -> dict[tuple[str, str], Pretraining]:
    """Return the pre-training of each row and task that is pre-trained here.

    Args:
        plan: Says recipes.
        runs: Whose pre-trainings are wanted.
        data: Hash of each data set's content, by corpus.
        work: Gets stores, runs and models.
        synthetic: Whether a data set is of phantoms, which the models' cards then say.
    """
    recipes: dict[tuple[str, str], Recipe] = {}
    for run in runs:
        recipe = plan.recipe(run.row, run.task)
        if recipe is not None:
            recipes[run.row, run.task] = recipe
    shared: dict[str, list[str]] = {}  # corpora by store settings, of recipes for all tasks
    for (row, _), recipe in recipes.items():
        if not get_row(row).by_task:
            corpora = shared.setdefault(_text(store_settings(recipe)), [])
            corpora += [name for name in recipe.corpora if name not in corpora]
    found = {}
    for (row, task), recipe in recipes.items():
        settings = store_settings(recipe)
        by_task = get_row(row).by_task
        corpora = list(recipe.corpora) if by_task else sorted(shared[_text(settings)])
        content = {name: data[name] for name in corpora}
        store = _hash({"settings": settings, "data": content, "task": task if by_task else None})
        key = _hash(
            {
                "version": VERSION,
                "recipe": recipe.to_json(),
                "data": {name: data[name] for name in recipe.corpora},
                "store": store,  # a store's cubes are read in an order that all of them decide
            }
        )
        name = f"{recipe.name}-{key[:NAME_LENGTH]}"
        found[row, task] = Pretraining(
            name=name,
            recipe=recipe,
            corpora=tuple(corpora),
            store=work / "stores" / store[:16],
            run_folder=work / "pretraining" / name,
            model=work / "models" / name,
            key=key,
            synthetic=synthetic,
        )
    return found


def make_stores(wanted: Sequence[Pretraining], sources: Mapping[str, Source], workers: int) -> None:
    """Cut the cubes of every store that a missing model needs.

    Raises:
        ConfigError: If a scan cannot be cut, or belongs to a test set.
    """
    by_store: dict[Path, list[Pretraining]] = {}
    for pretraining in wanted:
        if not pretraining.is_finished:
            by_store.setdefault(pretraining.store, []).append(pretraining)
    for store, users in by_store.items():
        first = users[0]
        modalities = {m for user in users for m in user.recipe.modalities}
        cases: list[Case] = []
        for name in first.corpora:
            source = sources[name]
            trained = source.parts.of(source.cases, "train")
            cases += [case for case in trained if case.modality in modalities]
        refuse_test_cases(cases, sources)
        summary = prepare(cases, first.recipe, store, workers=workers)
        if summary["failed"]:
            case, problem = next(iter(summary["failed"].items()))
            raise ConfigError(
                f"Expected cubes of every scan, got none of {len(summary['failed'])}, the first "
                f"{case}: {problem}"
            )


def run_pretraining(pretraining: Pretraining, device: str) -> None:
    """Pre-train and write the model folder, going on where it stopped; in a worker.

    Raises:
        Stopped: If a signal came; the next start goes on.
        UniversalModelError: If cubes or checkpoints cannot be used.
    """
    if pretraining.is_finished:
        return
    if not pretraining.store.is_dir():
        raise ConfigError(
            f"Expected the cubes of {pretraining} in {pretraining.store}, got none. Start again "
            "without --only, or with --only data first."
        )
    with logged(pretraining.run_folder / "log.txt"):
        code = pretrain(
            pretraining.recipe,
            CubeStore(pretraining.store),
            pretraining.run_folder,
            device=device,
            progress=False,
            workers=0 if device == "cpu" else None,
        )
        if code:
            raise Stopped(f"{pretraining} was stopped.")
        unfinished = pretraining.model.parent / ".unfinished" / pretraining.name
        publish(
            pretraining.run_folder,
            unfinished,
            data="synthetic phantoms in the layouts of the real sets"
            if pretraining.synthetic
            else ", ".join(pretraining.recipe.corpora),
            force=True,
        )
        unfinished.rename(pretraining.model)


def describe_pretraining(pretraining: Pretraining) -> dict[str, Any]:
    """Return a pre-training's row for ``OUT/pretraining.json``; nothing in it names the machine."""
    recipe = pretraining.recipe
    return {
        "name": pretraining.name,
        "recipe": recipe.name,
        "recipe_sha256": recipe_sha256(recipe),
        "corpora": list(recipe.corpora),
        "modalities": list(recipe.modalities),
        "steps": recipe.run.steps,
        "batch_size": recipe.run.batch_size,
        "model": f"models/{pretraining.name}",  # in the work folder
        "finished": pretraining.is_finished,
        **({"result": pretraining.facts()} if pretraining.is_finished else {}),
    }


def record_pretrainings(out: Path, pretrainings: Mapping[str, Pretraining]) -> None:
    """Write ``OUT/pretraining.json``.

    Of a pre-training whose model is not here any more it keeps what it said. Of a model that it
    does not know yet it says which weights, that results start from, are the same tensors.

    Args:
        out: Folder of results.
        pretrainings: All of the plan, by row, and by task where a row has one for each.
    """
    path = out / "pretraining.json"
    before = parse_json(path.read_bytes()) if path.is_file() else {}
    records = {}
    for name, pretraining in pretrainings.items():
        known = before.get(name, {})
        if known.get("name") == pretraining.name and not pretraining.is_finished:
            records[name] = known
            continue
        record = records[name] = describe_pretraining(pretraining)
        if pretraining.is_finished:
            result, told = record["result"], known.get("result", {})
            is_known = all(told.get(k) == result[k] for k in ("sha256", "tensors_sha256"))
            files = told.get("files_sha256") if is_known else _earlier_files(out, pretraining)
            record["result"] = {**result, **({"files_sha256": files} if files else {})}
    write_json(path, records)


def _earlier_files(out: Path, pretraining: Pretraining) -> dict[str, str]:
    """Return the weights of earlier results that hold these tensors: hash of the file, commit."""
    hashes = hashes_in(out).get(recipe_sha256(pretraining.recipe), set())
    if not hashes:
        return {}
    commits: list[str] = []
    with contextlib.suppress(ConfigError):  # no checkout: only the stamp of now
        commits = history()
    return same_files(pretraining.model, hashes, commits)


def _hash(value: Any) -> str:
    return hashlib.sha256(_text(value).encode()).hexdigest()


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)
