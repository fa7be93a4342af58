"""Raw corpora in, a store of cubes out: the command around ``cubes.py``.

    python -m training.prepare --recipe paper --output STORE luna16=DIR lits2017=DIR ...

Only cases that no target task tests on are used (Table II). The same command goes on where an
interrupted one stopped. A case that cannot be read does not stop the rest; it is listed at the end
and the exit code is 2.
"""

import argparse
import concurrent.futures
import json
import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from training.config import Recipe, load_recipe
from training.corpora import CORPORA
from training.corpora.case import Case
from training.corpora.splits import fine_tuning_cases, pretraining_cases
from training.cubes import prepare_case
from training.plan import preparation_plan
from universal_model_hub.errors import ConfigError, TooLargeError, UniversalModelError
from universal_model_hub.files import write_json


def prepare(
    cases: Sequence[Case], recipe: Recipe, folder: Path, *, workers: int = 1
) -> dict[str, Any]:
    """Prepare the cubes of all cases, in parallel over cases, going on where it stopped.

    Returns:
        The store's summary, also written to ``store.json``: counts by corpus, scale and modality,
        cubes left out as air, and the cases that failed with their errors.

    Raises:
        ConfigError: If the folder holds cubes of another recipe.
        TooLargeError: If the system killed a process.
    """
    folder.mkdir(parents=True, exist_ok=True)
    check_same_recipe(folder, recipe)
    records, failed = [], {}
    # Fresh processes: a forked one would inherit torch's threads in an unknown state.
    with concurrent.futures.ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,)
    ) as pool:
        jobs = {pool.submit(prepare_case, case, recipe, folder): case for case in cases}
        done = concurrent.futures.as_completed(jobs)
        for job in tqdm(done, total=len(jobs), desc="cubes", unit="scan"):
            try:
                records.append(job.result())
            except UniversalModelError as error:
                failed[jobs[job].id] = str(error)
            except BrokenProcessPool as error:
                raise TooLargeError(
                    "A process that prepares cubes was killed, probably for lack of memory. What "
                    "is done is kept: run the same command with fewer --workers."
                ) from error
    summary = summarize(records, failed)
    write_json(folder / "store.json", {"recipe": store_settings(recipe), **summary})
    return summary


def store_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the part of a recipe that the cubes depend on."""
    record = recipe.to_json()
    return {
        "preprocessing": record["preprocessing"],
        "cubes": record["cubes"],
        "seed": recipe.run.seed,
    }


def check_same_recipe(folder: Path, recipe: Recipe) -> None:
    """Refuse to mix cubes of two recipes; the first preparation writes down its own."""
    path = folder / "store.json"
    wanted = store_settings(recipe)
    if not path.is_file():
        write_json(path, {"recipe": wanted})
        return
    found = json.loads(path.read_text()).get("recipe")
    if json.dumps(found, sort_keys=True) != json.dumps(wanted, sort_keys=True):
        raise ConfigError(
            f"{folder} holds cubes of other settings than the recipe {recipe.name}. Choose "
            "another folder, or delete this one to prepare again."
        )


def summarize(records: Sequence[dict[str, Any]], failed: dict[str, str]) -> dict[str, Any]:
    """Count cubes by corpus, modality and scale."""
    counts: dict[str, dict[str, Any]] = {}
    for record in records:
        source = record["source"]
        row = counts.setdefault(
            source["corpus"], {"volumes": 0, "by_scale": {}, "left_out_as_air": 0}
        )
        row["modality"] = source["modality"]
        row["volumes"] += 1
        row["left_out_as_air"] += record["left_out_as_air"]
        for cube in record["cubes"]:
            scale = str(cube["scale_id"])
            row["by_scale"][scale] = row["by_scale"].get(scale, 0) + 1
    return {"corpora": dict(sorted(counts.items())), "failed": dict(sorted(failed.items()))}


def cases_of(recipe: Recipe, folders: Sequence[str]) -> list[Case]:
    """List the cases of ``corpus=folder`` arguments that the recipe trains on.

    The rivals' proxy tasks train on the training set of a target task (Sec. IV-D), everything else
    on what Table II gives to pre-training; both leave out what a target task tests on.

    Raises:
        ConfigError: If an argument is not of that form, or a corpus is not the recipe's.
    """
    rival = recipe.objective.task in ("rotation", "jigsaw")
    choose = fine_tuning_cases if rival else pretraining_cases
    cases: list[Case] = []
    for text in folders:
        name, equals, folder = text.partition("=")
        if not equals or name not in CORPORA:
            raise ConfigError(
                f"Expected corpus=folder with a corpus out of {', '.join(CORPORA)}, got {text!r}."
            )
        if name not in recipe.corpora:
            raise ConfigError(
                f"The recipe {recipe.name} does not use {name} (only "
                f"{', '.join(recipe.corpora)}). Leave it out, or use another recipe."
            )
        found = choose(name, Path(folder))
        cases += [case for case in found if case.modality in recipe.modalities]
    return cases


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m training.prepare", description=__doc__)
    parser.add_argument("folders", nargs="+", metavar="CORPUS=FOLDER")
    parser.add_argument("--recipe", type=Path, required=True)
    parser.add_argument("--output", "-o", type=Path, required=True, help="folder of the store")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--dry-run", action="store_true", help="print the plan, and only that")
    options = parser.parse_args(arguments)
    try:
        recipe = load_recipe(options.recipe, options.set)
        cases = cases_of(recipe, options.folders)
        if options.dry_run:
            print(preparation_plan(recipe, cases, options.output, options.workers))
            return 0
        summary = prepare(cases, recipe, options.output, workers=options.workers)
    except UniversalModelError as error:
        print(f"prepare: error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(summary, indent=2))
    return 2 if summary["failed"] else 0


if __name__ == "__main__":
    sys.exit(main())
