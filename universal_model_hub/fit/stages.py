"""The stages of a fine-tuning: prepare, train, judge; each is left out when its output is there."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from universal_model_hub.fit.arms import read_training, save_training, train_arm
from universal_model_hub.fit.data.cases import Case, CaseSet
from universal_model_hub.fit.data.prepare import Prepared, prepare_cases
from universal_model_hub.fit.data.splits import fold_cases
from universal_model_hub.fit.judging import JudgedCase, judge_cases
from universal_model_hub.fit.outcome import ArmOutcome
from universal_model_hub.fit.request import Plan
from universal_model_hub.fit.training.engine import Process, StopRequest, wait_for_all
from universal_model_hub.saving import save_pretrained


def run_plan(
    plan: Plan, work: Path, process: Process, stop: StopRequest, *, progress: bool
) -> list[ArmOutcome]:
    """Train and judge every arm, its folds first where there are some."""
    share = plan.data.cases[process.rank :: process.world_size]
    prepare_all(plan, share, work, progress=progress)
    wait_for_all(process)
    outcomes = []
    for number, title in enumerate(plan.arms):
        trained: list[dict[str, Any]] = []
        judged: list[JudgedCase] = []
        for fold, cases in enumerate(folds_of(plan), start=1):
            name = f"{title}, fold {fold}"
            folder = work / "folds" / f"{number}-{fold}"
            trained.append(
                train_and_save(plan, title, cases, folder, process, stop, name=name, show=progress)
            )
            judged += judge(plan, cases.of("validation"), folder, process, name, progress)
        folder = work / "arms" / str(number)
        everything = train_and_save(
            plan, title, plan.data, folder, process, stop, name=title, show=progress
        )
        if not judged:
            judged = judge(plan, held_out(plan), folder, process, title, progress)
        outcomes.append(
            ArmOutcome(title, folder / "model", tuple(trained or [everything]), tuple(judged))
        )
    return outcomes


def prepare_all(
    plan: Plan, cases: Sequence[Case], work: Path, *, progress: bool = False
) -> list[Prepared]:
    """Bring cases to the model grid with all of their labels."""
    cache, numbers = work / "cache", plan.numbers
    return prepare_cases(cases, plan.data, plan.preprocessing, numbers, cache, progress=progress)


def train_and_save(
    plan: Plan,
    title: str,
    data: CaseSet,
    folder: Path,
    process: Process,
    stop: StopRequest,
    *,
    name: str,
    show: bool,
) -> dict[str, Any]:
    """Train one arm on one split and save its model in ``folder``; return how it went."""
    training, validation = sides(plan, data)
    if not (folder / "training.json").is_file():
        done = train_arm(
            plan,
            plan.arms[title],
            training,
            validation,
            folder,
            process,
            stop=stop,
            progress=name if show else None,
        )
        if process.is_main:
            save_pretrained(
                done.model.to("cpu"),
                folder / "model",
                name="unfinished",
                labels=plan.classes,
                preprocessing=plan.preprocessing,
                channels=channels_of(plan),
                head_trained=True,
                force=True,
            )
            save_training(done, folder)
    wait_for_all(process)
    return read_training(folder)


def judge(
    plan: Plan,
    cases: Sequence[Case],
    folder: Path,
    process: Process,
    name: str,
    progress: bool,
) -> list[JudgedCase]:
    """Judge a saved model on held-out cases, in the first process alone."""
    judged: list[JudgedCase] = []
    if process.is_main:
        judged = judge_cases(
            plan,
            folder / "model",
            cases,
            folder / "judged",
            device=process.device,
            progress=f"judging {name}" if progress else None,
        )
    wait_for_all(process)
    return judged


def sides(plan: Plan, data: CaseSet | None = None) -> tuple[tuple[Case, ...], tuple[Case, ...]]:
    """Return the cases to train on, and those that choose the best step.

    With folds the model that is kept trains on all cases, for all its steps.
    """
    if data is None or data is plan.data:
        if plan.request.folds:
            return plan.data.cases, ()
        data = plan.data
    if plan.within_subject:
        return data.of("train"), data.of("train")
    return data.of("train"), data.of("validation")


def folds_of(plan: Plan) -> list[CaseSet]:
    """Return the splits of the cross-validation; none without one."""
    if not plan.request.folds:
        return []
    return fold_cases(plan.data, folds=plan.request.folds, seed=plan.settings.seed)


def held_out(plan: Plan) -> tuple[Case, ...]:
    """Return the cases that a model is judged on: the test part, else the validation part."""
    if plan.within_subject:
        return plan.data.cases
    return plan.data.of("test") or plan.data.of("validation")


def channels_of(plan: Plan) -> list[dict[str, str]] | None:
    """Return what config.json says of several channels; None for one."""
    if plan.data.num_channels == 1:
        return None
    return [
        {"name": f"channel {number}", "modality": modality}
        for number, modality in enumerate(plan.data.modalities)
    ]
