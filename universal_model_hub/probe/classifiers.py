"""The two classifiers: nearest neighbors by cosine, and logistic regression.

What they leave open, the number of neighbors and the strength of the penalty, is chosen by
cross-validation within the labels that they are given.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from universal_model_hub.extras import needed

NEIGHBORS = (1, 3, 5, 10, 20, 50)
PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # scikit-learn's C: the smaller, the stronger
USUAL_NEIGHBORS, USUAL_PENALTY = 1, 1e-2  # where there are too few labels to choose
FOLDS = 3
BLOCKS = 6  # of contiguous samples, where one subject's must be told apart
ITERATIONS = 200


@dataclass(frozen=True)
class Lesson:
    """Labeled samples that a classifier learns from."""

    features: np.ndarray  # (P, F)
    classes: np.ndarray  # (P,) class numbers
    folds: Sequence[tuple[np.ndarray, np.ndarray]]  # rows to learn from and to judge on
    num_classes: int  # K, of all samples


@dataclass(frozen=True)
class Answer:
    """What a classifier says of samples."""

    predicted: np.ndarray  # (P,) class numbers
    scores: np.ndarray  # (P, K), the larger, the likelier


def nearest_neighbors(lesson: Lesson, asked: np.ndarray) -> Answer:
    """Let the nearest samples vote, by cosine similarity of standardized features.

    The number of neighbors is chosen on the folds.

    Args:
        lesson: P labeled samples.
        asked: (Q, F) features of the samples to classify.
    """
    features, classes, K = lesson.features, lesson.classes, lesson.num_classes
    totals = np.zeros(len(NEIGHBORS))
    for learned, judged in lesson.folds:
        for column, (scores, _) in enumerate(
            _votes(features[learned], classes[learned], features[judged], K)
        ):
            totals[column] += balanced_accuracy(classes[judged], scores.argmax(axis=1))
    chosen = NEIGHBORS[int(totals.argmax())] if len(lesson.folds) else USUAL_NEIGHBORS
    (scores,) = [s for s, k in _votes(features, classes, asked, K) if k == chosen]
    return Answer(scores.argmax(axis=1), scores)


def linear(lesson: Lesson, asked: np.ndarray) -> Answer:
    """Fit a logistic regression on standardized features, every class weighing the same.

    The strength of the penalty is chosen on the folds. Arguments as of ``nearest_neighbors``.
    """
    model_selection = needed("sklearn.model_selection")
    metrics = needed("sklearn.metrics")
    known = np.unique(lesson.classes)
    scores = np.full((len(asked), lesson.num_classes), -np.inf)
    if len(known) == 1:
        scores[:, known] = 0
        return Answer(np.full(len(asked), known[0]), scores)
    fitted = _regression(USUAL_PENALTY)
    if len(lesson.folds):
        fitted = model_selection.GridSearchCV(
            _regression(USUAL_PENALTY),
            {"logisticregression__C": PENALTIES},
            scoring=metrics.make_scorer(balanced_accuracy),
            cv=list(lesson.folds),
        )
    with warnings.catch_warnings():
        # Of a probe that stopped early the answer counts, as that of any other.
        warnings.simplefilter("ignore", needed("sklearn.exceptions").ConvergenceWarning)
        fitted.fit(lesson.features, lesson.classes)
    scores[:, known] = fitted.predict_proba(asked)
    return Answer(scores.argmax(axis=1), scores)


CLASSIFIERS = {"linear": linear, "kNN": nearest_neighbors}


def folds_of(
    classes: np.ndarray, subjects: np.ndarray, rng: np.random.Generator
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Divide labeled samples for choosing: by subject; one subject's by blocks of its samples.

    Args:
        classes: (P,) class numbers.
        subjects: (P,) whose each sample is; neighbors in a scan are neighbors here.
        rng: Says which subject comes into which fold.

    Returns:
        Rows to learn from and rows to judge on. Folds that would learn from one class only are
        left out, so that there may be none.
    """
    names, groups = np.unique(subjects, return_inverse=True)
    if len(names) == 1:
        groups = np.arange(len(classes)) * BLOCKS // len(classes)
    numbers = np.unique(groups)
    usual = [np.bincount(classes[groups == number]).argmax() for number in numbers]
    # Dealt like cards, class by class, so that each fold has some groups of each.
    order = np.lexsort((rng.random(len(numbers)), usual))
    fold_of = np.empty(int(numbers.max()) + 1, np.int64)
    fold_of[numbers[order]] = np.arange(len(numbers)) % FOLDS
    found = []
    for fold in range(min(FOLDS, len(numbers))):
        judged = fold_of[groups] == fold
        if len(np.unique(classes[~judged])) > 1:
            found.append((np.flatnonzero(~judged), np.flatnonzero(judged)))
    return found


def balanced_accuracy(truth: np.ndarray, predicted: np.ndarray) -> float:
    """Return the mean over the classes of the truth of how often each was recognized."""
    return float(np.mean([np.mean(predicted[truth == c] == c) for c in np.unique(truth)]))


def area_under_curve(truth: np.ndarray, scores: np.ndarray) -> float:
    """Return the area under the ROC curve of each class of the truth against the rest, averaged.

    Args:
        truth: (P,) class numbers, at least two different ones.
        scores: (P, K).
    """
    roc_auc_score = needed("sklearn.metrics").roc_auc_score
    finite = np.where(np.isfinite(scores), scores, 0)  # a class never seen: all are equally likely
    return float(np.mean([roc_auc_score(truth == c, finite[:, c]) for c in np.unique(truth)]))


def _regression(penalty: float) -> Any:
    pipeline, linear_model = needed("sklearn.pipeline"), needed("sklearn.linear_model")
    return pipeline.make_pipeline(
        needed("sklearn.preprocessing").StandardScaler(),
        linear_model.LogisticRegression(
            C=penalty, class_weight="balanced", max_iter=ITERATIONS, tol=1e-3
        ),
    )


def _votes(
    features: np.ndarray, classes: np.ndarray, asked: np.ndarray, num_classes: int
) -> list[tuple[np.ndarray, int]]:
    """Return the share of votes of each class, (Q, K), for each number of neighbors."""
    mean, spread = features.mean(axis=0), features.std(axis=0)
    spread[spread == 0] = 1
    search = needed("sklearn.neighbors").NearestNeighbors(
        n_neighbors=min(max(NEIGHBORS), len(features)), metric="cosine"
    )
    search.fit((features - mean) / spread)
    near = classes[search.kneighbors((asked - mean) / spread, return_distance=False)]
    found = []
    for count in NEIGHBORS:
        taken = near[:, :count]
        votes = [(taken == number).mean(axis=1) for number in range(num_classes)]
        found.append((np.stack(votes, axis=1), count))
    return found
