"""Plans: one TOML file says which runs make which table, on what data, for how long.

``training/recipes/benchmark_{paper,mini,smoke}.toml``. A run that several tables need is listed by
each of them and done once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from training.benchmark.rows import ROWS, get_row
from training.benchmark.tasks import TASKS, TargetTask, get_task
from training.config import Recipe, build, find_recipe, merged, read_values, set_value
from training.corpora.paper import TABLE_2
from training.corpora.phantom.scan_files import SIZES
from universal_model_hub.errors import ConfigError
from universal_model_hub.fit.training.settings import FinetuneSettings
from universal_model_hub.preprocess import Preprocessing

SECTIONS = (
    "name", "title", "memory_gib", "curve_points", "overlap", "preprocessing", "phantoms",
    "finetune", "tasks", "networks", "pretraining", "rows", "tables",
)  # fmt: skip


@dataclass(frozen=True, order=True)
class Run:
    """One fine-tuning."""

    trial: int  # first, so that sorted runs give whole tables early
    task: str
    row: str
    share: float = 1.0  # of the subjects that train
    noise: float = 0.0  # mm by which labels are eroded or dilated at most

    def __str__(self) -> str:
        return f"{self.task}-{self.row}-{self.share:g}-{self.noise:g}-{self.trial}"


@dataclass(frozen=True, kw_only=True)
class TablePlan:
    """The runs of one table or figure: every combination of these."""

    rows: tuple[str, ...]
    tasks: tuple[str, ...] = tuple(TASKS)
    shares: tuple[float, ...] = (1.0,)
    noise: tuple[float, ...] = (0.0,)  # mm
    trials: int = 5

    def runs(self, missing: frozenset[str]) -> list[Run]:
        """List the runs, those of rows without weights left out."""
        return [
            Run(trial, task, row, share, noise)
            for trial in range(self.trials)
            for task in self.tasks
            for row in self.rows
            if row not in missing
            for share in self.shares
            for noise in self.noise
        ]


@dataclass(frozen=True, kw_only=True)
class PhantomPlan:
    """Synthetic subjects that stand for the data sets, written in their layouts."""

    subjects: dict[str, int]  # by corpus; mmwhs: as many of CT and of MR
    size: str = "small"
    seed: int = 0
    known: dict[str, tuple[str, ...]] = field(default_factory=dict)  # hashes of one set, by corpus

    def identity(self, corpus: str, sha256: str) -> str:
        """Return the hash that stands for a set: the first of those known as the same.

        NumPy's results depend on the instructions that a processor has: about one voxel in a
        million is another, so the same subjects have a hash for each kind of processor.
        """
        known = self.known.get(corpus, ())
        return known[0] if sha256 in known else sha256


@dataclass(frozen=True, kw_only=True)
class TaskPlan:
    """How a task is trained."""

    settings: FinetuneSettings = field(default_factory=FinetuneSettings)
    spacing: tuple[float, float, float] | None = None  # mm, where not the plan's
    positive_share: float = 0.5  # of lnc: cubes around nodules in a batch
    candidates: Literal["V2", "old"] = "V2"  # of lnc: table of LUNA16
    validation_candidates: int = 4000  # of lnc: at most so many negatives draw the curve


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A whole benchmark."""

    name: str
    title: str
    preprocessing: Preprocessing
    tasks: dict[str, TaskPlan]
    tables: dict[str, TablePlan]
    phantoms: PhantomPlan | None = None
    networks: dict[str, dict[str, Any]] = field(default_factory=dict)  # arguments by architecture
    precisions: dict[str, str] = field(default_factory=dict)  # by architecture
    brought: dict[str, str] = field(default_factory=dict)  # row: model folder of the user's
    pretraining: dict[str, Any] = field(default_factory=dict)  # laid over every recipe
    recipes: dict[str, dict[str, Any]] = field(default_factory=dict)  # laid over one of them
    curve_points: int = 10  # validations of a run, evenly spaced
    memory_gib: float = 3.0  # of one prediction; the same on every machine
    overlap: float = 0.5  # of the windows of the training cube in which scans are segmented

    @property
    def missing(self) -> frozenset[str]:
        """Rows whose weights nobody has brought."""
        return frozenset(
            name for name, row in ROWS.items() if row.brought and name not in self.brought
        )

    def runs(self) -> list[Run]:
        """List all runs once, trial by trial."""
        found = {run for table in self.tables.values() for run in table.runs(self.missing)}
        return sorted(found)

    def corpora(self) -> tuple[str, ...]:
        """Return the data sets that any run or pre-training reads, in the paper's order."""
        names = {get_task(run.task).corpus for run in self.runs()}
        for row in {run.row for run in self.runs()}:
            recipe = self.recipe(row)
            if recipe is not None and not get_row(row).by_task:
                names |= set(recipe.corpora)
        return tuple(name for name in TABLE_2 if name in names)

    def task_preprocessing(self, task: str) -> Preprocessing:
        """Return how a task's scans are preprocessed, for every row alike."""
        spacing = self.tasks[task].spacing
        return replace(self.preprocessing, spacing=spacing) if spacing else self.preprocessing

    def settings(self, run: Run) -> FinetuneSettings:
        """Return the settings of a run: the trial's number is the seed."""
        settings = self.tasks[run.task].settings
        precision = self.precisions.get(get_row(run.row).network, settings.precision)
        return replace(settings, seed=run.trial, precision=precision)

    def recipe(self, row: str, task: str | None = None) -> Recipe | None:
        """Return the recipe that pre-trains a row, with what this plan changes of it.

        Args:
            row: Name of the row.
            task: Of a row that is pre-trained by task: on whose training set.
        """
        chosen = get_row(row)
        if chosen.recipe is None:
            return None
        file = find_recipe(chosen.recipe)
        values = merged(read_values(file), self.pretraining)
        values = merged(values, self.recipes.get(chosen.recipe, {}))
        values.setdefault("name", file.stem)
        recipe: Recipe = build(Recipe, values, f"pretraining of {chosen.recipe}")
        if chosen.by_task and task is not None:
            target = get_task(task)
            name = f"{recipe.name}-{task}"
            recipe = replace(
                recipe, name=name, corpora=(target.corpus,), modalities=(target.modality,)
            )
        return recipe


def load_plan(path: str | Path, overrides: Sequence[str] = ()) -> Plan:
    """Read a plan by its path, or by its name from ``training/recipes``.

    Args:
        path: ``benchmark_mini``, say; or a file.
        overrides: ``section.key=value`` strings.

    Raises:
        ConfigError: If the file is missing, or something in it is unknown or does not fit.
    """
    file = find_recipe(path)
    values = read_values(file)
    for override in overrides:
        set_value(values, override)
    try:
        plan = _plan(values, file)
        _check(plan)
        for row in {run.row for run in plan.runs()}:
            plan.recipe(row)
    except ConfigError as error:
        raise ConfigError(f"The plan {file.name} cannot be used: {error}") from error
    return plan


def _plan(values: Mapping[str, Any], file: Path) -> Plan:
    unknown = sorted(set(values) - set(SECTIONS))
    if unknown:
        raise ConfigError(
            f"Expected sections of {', '.join(SECTIONS)}, got {', '.join(unknown)}. Correct them."
        )
    tables = {
        name: build(TablePlan, table, f"tables.{name}")
        for name, table in _table(values, "tables").items()
    }
    needed = dict.fromkeys(task for table in tables.values() for task in table.tasks)
    pretraining = dict(_table(values, "pretraining"))
    recipes = dict(pretraining.pop("recipes", {}))
    phantoms = values.get("phantoms")
    networks = {name: dict(v) for name, v in _table(values, "networks").items()}
    precisions = {name: v.pop("precision") for name, v in networks.items() if "precision" in v}
    return Plan(
        name=str(values.get("name", file.stem)),
        title=str(values.get("title", "")),
        preprocessing=Preprocessing.from_json(values.get("preprocessing", {})),
        tasks={task: _task(get_task(task), values) for task in needed},
        tables=tables,
        phantoms=None if phantoms is None else build(PhantomPlan, phantoms, "phantoms"),
        networks=networks,
        precisions=build(dict[str, str], precisions, "precision in networks"),
        brought={
            name: build(str, row.get("weights"), f"rows.{name}.weights")
            for name, row in _brought(_table(values, "rows")).items()
        },
        pretraining=pretraining,
        recipes=recipes,
        curve_points=build(int, values.get("curve_points", 10), "curve_points"),
        memory_gib=build(float, values.get("memory_gib", 3.0), "memory_gib"),
        overlap=build(float, values.get("overlap", 0.5), "overlap"),
    )


def _brought(rows: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Return the user's weights by their row: ``[rows.i3d]`` fills the row i3d_pretrained."""
    by_network = {row.brought: row.name for row in ROWS.values() if row.brought}
    unknown = sorted(set(rows) - set(by_network))
    if unknown:
        raise ConfigError(
            f"Expected weights for the rows {', '.join(map(str, by_network))}, got "
            f"{', '.join(unknown)}: other rows are pre-trained here, or not at all."
        )
    return {by_network[name]: row for name, row in rows.items()}


def _task(task: TargetTask, values: Mapping[str, Any]) -> TaskPlan:
    own = _table(_table(values, "tasks"), task.name)
    details = merged(dict(_table(values, "finetune")), _table(own, "finetune"))
    own = {key: value for key, value in own.items() if key != "finetune"}
    details["task"] = task.kind
    if "seed" in details:
        raise ConfigError("Expected no seed in finetune, got one: the number of the trial is it.")
    settings = build(FinetuneSettings, details, f"finetune of {task.name}")
    return replace(build(TaskPlan, own, f"tasks.{task.name}"), settings=settings)


def _table(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    found = values.get(name, {})
    if not isinstance(found, Mapping):
        raise ConfigError(f"Expected a table {name}, got {found!r:.80}.")
    return found


def _check(plan: Plan) -> None:
    """Refuse what would fail hours later."""
    for run in plan.runs():
        plan.settings(run)
    if not 0 <= plan.overlap < 1:
        raise ConfigError(f"Expected an overlap from 0 to below 1, got {plan.overlap}.")
    if not plan.tables:
        raise ConfigError("Expected at least one table in [tables], got none.")
    for name, table in plan.tables.items():
        for row in table.rows:
            get_row(row)
        if not table.shares or not all(0 < share <= 1 for share in table.shares):
            raise ConfigError(f"Expected shares above 0 to 1 in {name}, got {table.shares}.")
        if not table.noise or min(table.noise) < 0 or table.trials < 1:
            raise ConfigError(
                f"Expected noise from 0 mm (0.0: none) and trials from 1 in {name}, got noise "
                f"{table.noise} and {table.trials} trials."
            )
        voxels = [task for task in table.tasks if get_task(task).kind == "classification"]
        if max(table.noise) > 0 and voxels:
            raise ConfigError(
                f"Expected segmentation tasks where labels are noisy, got {', '.join(voxels)} in "
                f"{name}. Leave them out."
            )
    if plan.phantoms is None:
        return
    if plan.phantoms.size not in SIZES:
        raise ConfigError(f"Expected a size of {', '.join(SIZES)}, got {plan.phantoms.size!r}.")
    lacking = [name for name in plan.corpora() if name not in plan.phantoms.subjects]
    if lacking:
        raise ConfigError(f"Expected phantoms.subjects of {', '.join(lacking)}, got none.")
