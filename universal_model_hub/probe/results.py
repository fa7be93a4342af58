"""What a probe found: a row for each share of labels, kind of features and classifier."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

SCHEMA = 1
HEADINGS = (
    *("labels", "from", "features", "classifier", "balanced accuracy", "sd", "n"),
    *("over draws", "over subjects", "AUC"),
)


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A score over draws of the labels."""

    mean: float
    sd: float | None  # between draws; None of one draw
    low: float | None  # 95 % t interval of the mean over draws; None of one draw
    high: float | None
    n: int  # different draws
    subjects_low: float | None = None  # 95 % bootstrap over the subjects that were held out
    subjects_high: float | None = None


@dataclass(frozen=True, kw_only=True)
class ProbeRow:
    """How well one classifier did on one kind of features with one share of the labels."""

    percent: float  # of the labeled training subjects
    num_subjects: int  # whose labels were used
    num_samples: int  # labels that were used, mean over draws
    slab: bool  # less than one subject: a contiguous slab of its scans
    features: str  # of ``arms.ARMS``, or majority class
    classifier: str | None  # linear or kNN; of the majority class None
    balanced_accuracy: Spread
    auc: Spread  # one class against the rest, mean over classes


@dataclass(frozen=True, kw_only=True)
class ProbeResult:
    """What simple classifiers on frozen features reach on data of the user's."""

    model: str
    sha256: str | None
    task: Literal["segmentation", "classification"]  # samples are voxels, or scans
    classes: tuple[str, ...]
    train_subjects: int
    test_subjects: int
    train_samples: int
    test_samples: int
    within_subject: bool  # one subject alone: a slab of its scans was held out
    seed: int
    rows: tuple[ProbeRow, ...]
    notes: tuple[str, ...]

    def row(self, features: str, classifier: str | None, percent: float) -> ProbeRow:
        """Return one row; KeyError if there is none."""
        for row in self.rows:
            if (row.features, row.classifier, row.percent) == (features, classifier, percent):
                return row
        raise KeyError((features, classifier, percent))

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        found = {"schema": SCHEMA, **asdict(self)}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in found.items()}

    def text(self) -> str:
        """Return the result as a table for people."""
        unit = "voxels" if self.task == "segmentation" else "scans"
        head = [
            f"Probe of {self.model}: {len(self.classes)} classes ({', '.join(self.classes)})",
            f"trained on {self.train_samples} {unit} of {_subjects(self.train_subjects)}, asked "
            f"of {self.test_samples} {unit} of {_subjects(self.test_subjects)} that were held out"
            if not self.within_subject
            else f"within one subject: trained on {self.train_samples} {unit}, asked of "
            f"{self.test_samples} in a slab that was held out",
            "",
        ]
        table: list[tuple[str, ...]] = [HEADINGS]
        for before, row in zip((None, *self.rows), self.rows, strict=False):
            if before is not None and before.percent != row.percent:
                table.append(("",) * len(HEADINGS))
            table.append(_line(row))
        widths = [max(len(line[k]) for line in table) for k in range(len(HEADINGS))]
        lines = ["  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) for line in table]
        legend = [
            "",
            "Intervals are 95 %: over draws of the labels (t), and over the subjects held out "
            "(bootstrap).",
        ]
        notes = [f"Note: {note}" for note in self.notes]
        return "\n".join(line.rstrip() for line in [*head, *lines, *legend, *notes])


def _line(row: ProbeRow) -> tuple[str, ...]:
    score = row.balanced_accuracy
    source = "a slab of 1 subject" if row.slab else _subjects(row.num_subjects)
    return (
        f"{row.percent:g} %",
        source,
        row.features,
        row.classifier or "",
        f"{score.mean:.3f}",
        "" if score.sd is None else f"{score.sd:.3f}",
        str(score.n),
        _interval(score.low, score.high),
        _interval(score.subjects_low, score.subjects_high),
        f"{row.auc.mean:.3f}",
    )


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"[{low:.2f}, {high:.2f}]"


def _subjects(count: int) -> str:
    return f"{count} subject" + ("" if count == 1 else "s")


def model_identity(model: Any) -> tuple[str, str | None]:
    """Return the name of a model, and the sha256 of its weights where they came from a file."""
    config, report = getattr(model, "config", None), getattr(model, "load_report", None)
    name = getattr(config, "name", None) or type(model).__name__
    sha256 = getattr(report, "sha256", None)
    return str(name), None if sha256 is None else str(sha256)
