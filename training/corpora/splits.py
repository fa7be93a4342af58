"""Who is trained on and who is tested on: splits by subject, the same on every machine.

Subjects are ordered by a hash of seed, corpus and subject, and the first ones are the test set. So
a split depends on nothing but its seed, and a subject that comes or goes moves at most one other.
Table II is enforced here: pre-training never sees a subject that any target task tests on.
"""

import hashlib
import json
import warnings
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.corpora import get_corpus, packaged
from training.corpora.case import Case, CorpusWarning
from training.corpora.paper import SPLIT_SIZES, TABLE_2, SplitSize
from universal_model_hub.errors import ConfigError

SPLIT_SEED = 2020  # Source: ours; the paper's lists are unpublished
# LUNA16 is split by subset; sizes 89 x 7 and 88 x 2 + 89 give the paper's 623 and 265.
LUNA_TRAIN = tuple(f"subset{number}" for number in range(7))
# The paper splits 130 volumes where 131 have labels. Source: ours; Models Genesis uses 0 to 129.
LITS_FULL, LITS_LEFT_OUT = 131, "130"


@dataclass(frozen=True, kw_only=True)
class Split:
    """The subjects of one corpus on each side."""

    corpus: str
    seed: int
    rule: str
    train: tuple[str, ...]  # subjects, sorted
    test: tuple[str, ...]
    left_out: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return the split and its hash as JSON values."""
        return {**self._content(), "sha256": self.sha256}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> "Split":
        """Read a stored split back.

        Raises:
            ConfigError: If fields are missing, or the hash does not fit the content.
        """
        try:
            sides = {name: tuple(value[name]) for name in ("train", "test", "left_out")}
            split = cls(corpus=value["corpus"], seed=value["seed"], rule=value["rule"], **sides)
        except (KeyError, TypeError) as cause:
            raise ConfigError(
                f"Expected a split with corpus, seed, rule, train, test and left_out, got {cause}. "
                f"Write it again: python -m training.corpora split."
            ) from cause
        if value.get("sha256") != split.sha256:
            raise ConfigError(
                f"Expected a split with sha256 {split.sha256[:12]}, got "
                f"{str(value.get('sha256'))[:12]}: it was changed by hand. Write it again."
            )
        return split

    @property
    def sha256(self) -> str:
        """Hash of the content: equal splits have equal hashes."""
        return hashlib.sha256(json.dumps(self._content(), sort_keys=True).encode()).hexdigest()

    def of(self, cases: Iterable[Case], side: str) -> tuple[Case, ...]:
        """Return the cases on one side, ``"train"`` or ``"test"``, that are used at all."""
        subjects = set(self.train if side == "train" else self.test)
        return tuple(case for case in cases if case.subject in subjects and not case.left_out)

    def _content(self) -> dict[str, Any]:
        return {
            "corpus": self.corpus,
            "seed": self.seed,
            "rule": self.rule,
            "train": list(self.train),
            "test": list(self.test),
            "left_out": list(self.left_out),
        }


def split(corpus: str, cases: Sequence[Case], *, seed: int = SPLIT_SEED) -> Split:
    """Split a corpus by subject: the paper's sizes, or their proportions if it is smaller.

    Args:
        corpus: Name of the corpus.
        cases: All of its cases.
        seed: Chooses the subjects; LUNA16 is split by subset whatever the seed.

    Raises:
        ConfigError: If the corpus is not one of the paper's.
    """
    sizes = SPLIT_SIZES.get(get_corpus(corpus).name)
    if sizes is None:
        raise ConfigError(f"Expected one of {', '.join(SPLIT_SIZES)}, got {corpus!r}.")
    strata: defaultdict[str, list[str]] = defaultdict(list)
    left_out = set()
    for case in cases:
        stratum = case.group if case.group in sizes else ""
        if stratum not in sizes:  # ADNI subjects of other groups
            left_out.add(case.subject)
        elif case.subject not in strata[stratum]:
            strata[stratum].append(case.subject)
    if corpus == "luna16":
        train = {case.subject for case in cases if case.group in LUNA_TRAIN}
        test = {case.subject for case in cases} - train
        return _made(corpus, seed, "subsets 0-6 train, 7-9 test", train, test, left_out)
    if corpus == "lits2017" and len(strata[""]) == LITS_FULL:
        left_out.add(LITS_LEFT_OUT)
        strata[""].remove(LITS_LEFT_OUT)
    test = set()
    for name, subjects in strata.items():
        num = _num_test(len(subjects), sizes[name])
        test |= set(sorted(subjects, key=lambda subject: _rank(seed, corpus, subject))[:num])
    train = {subject for subjects in strata.values() for subject in subjects} - test
    rule = "by subject, ranked by hash" + (" within group" if len(sizes) > 1 else "")
    return _made(corpus, seed, rule, train, test, left_out)


def pretraining_cases(corpus: str, folder: Path, *, seed: int = SPLIT_SEED) -> tuple[Case, ...]:
    """Return the cases of a corpus that pre-training may see: the training side of its split.

    Of the packaged scans, those whose role is ``pretrain``.

    Raises:
        ConfigError: If Table II does not use the corpus for pre-training.
    """
    if corpus == packaged.NAME:
        return packaged.pretraining_cases(folder)
    return _usable(corpus, folder, "pretraining", "train", seed)


def fine_tuning_cases(corpus: str, folder: Path, *, seed: int = SPLIT_SEED) -> tuple[Case, ...]:
    """Return the cases that target tasks, and the rivals' proxy tasks, train on.

    Raises:
        ConfigError: If Table II does not use the corpus for fine-tuning.
    """
    return _usable(corpus, folder, "fine_tuning", "train", seed)


def evaluation_cases(corpus: str, folder: Path, *, seed: int = SPLIT_SEED) -> tuple[Case, ...]:
    """Return the cases that target tasks are scored on.

    Raises:
        ConfigError: If Table II does not test on the corpus.
    """
    return _usable(corpus, folder, "test", "test", seed)


def refuse_leak(trained: Iterable[Case], tested: Iterable[Case]) -> None:
    """Refuse a training set that shares a subject or a file with a test set.

    Raises:
        ConfigError: If they share one; it names the first ones.
    """
    tested = tuple(tested)
    subjects = {(case.corpus, case.subject) for case in tested}
    files = {case.volume.resolve() for case in tested}
    shared = sorted(
        {
            f"{case.corpus} {case.subject}"
            for case in trained
            if (case.corpus, case.subject) in subjects or case.volume.resolve() in files
        }
    )
    if shared:
        raise ConfigError(
            f"Expected training and test sets without a common subject, got {len(shared)} in both: "
            f"{', '.join(shared[:5])}. Take both sides from one split."
        )


def _usable(corpus: str, folder: Path, stage: str, side: str, seed: int) -> tuple[Case, ...]:
    reader = get_corpus(corpus)
    if corpus not in TABLE_2 or not getattr(TABLE_2[corpus], stage):
        fits = [name for name, usage in TABLE_2.items() if getattr(usage, stage)]
        raise ConfigError(
            f"Expected a corpus that Table II uses for {stage.replace('_', '-')} "
            f"({', '.join(fits)}), got {corpus}. Choose one of them."
        )
    cases = reader.cases(folder)
    parts = split(corpus, cases, seed=seed)
    chosen = parts.of(cases, side)
    left_out = [c for c in cases if c.left_out and c.subject in {*parts.train, *parts.test}]
    if left_out:
        warnings.warn(
            f"{reader.title}: {len(left_out)} case(s) are left out: {left_out[0].id} "
            f"({left_out[0].left_out}), ... See python -m training.corpora check {corpus}.",
            CorpusWarning,
            stacklevel=3,
        )
    if not chosen:
        raise ConfigError(
            f"Expected cases to {side} on in {folder}, got no "
            f"{side} case of {len(cases)} ({parts.rule}). Add cases."
        )
    if side == "train":
        refuse_leak(chosen, parts.of(cases, "test"))
    return chosen


def _made(
    corpus: str, seed: int, rule: str, train: set[str], test: set[str], left_out: set[str]
) -> Split:
    return Split(
        corpus=corpus,
        seed=seed,
        rule=rule,
        train=tuple(sorted(train)),
        test=tuple(sorted(test)),
        left_out=tuple(sorted(left_out)),
    )


def _num_test(num: int, size: SplitSize) -> int:
    """The paper's test size for the paper's number of subjects, else in proportion."""
    if size.test == 0:
        return 0
    share = size.test / (size.train + size.test)
    return min(max(1, round(num * share)), num - 1) if num > 1 else 0


def _rank(seed: int, corpus: str, subject: str) -> str:
    return hashlib.sha256(f"{seed}:{corpus}:{subject}".encode()).hexdigest()
