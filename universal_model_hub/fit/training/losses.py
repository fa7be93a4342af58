"""What a fine-tuning minimizes.

Shape letters: N batch, X Y Z axes, K classes.
"""

from torch import Tensor
from torch.nn import functional as F

from universal_model_hub.fit.data.cases import NOT_ANNOTATED
from universal_model_hub.fit.training.settings import FinetuneSettings

DICE_SMOOTHING = 1e-2  # voxels; keeps a class that a batch lacks from pulling


def batch_loss(logits: Tensor, targets: Tensor, settings: FinetuneSettings) -> Tensor:
    """Return the loss that the settings ask for.

    Args:
        logits: (N, K, X, Y, Z) float32 for segmentation, (N, K) for classification.
        targets: (N, X, Y, Z) int64, -1 does not count; or (N,) int64.
        settings: Of the run.
    """
    weights = settings.class_weights
    weight = None if weights is None else logits.new_tensor(weights)
    if settings.task == "classification":
        return F.cross_entropy(logits, targets, weight=weight)
    if settings.loss == "cross_entropy":
        return _cross_entropy(logits, targets, weight)
    dice = dice_loss(logits, targets)
    if settings.loss == "dice":
        return dice
    return _cross_entropy(logits, targets, weight) + dice


def segmentation_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return cross-entropy plus soft Dice loss over the annotated voxels.

    Source: Dice loss as in Milletari et al. 2016 and Zhang et al., Sec. IV-C, in the mean over the
    classes that the batch's labels have; cross-entropy beside it is ours (steadier at first).

    Args:
        logits: (N, K, X, Y, Z) float32.
        labels: (N, X, Y, Z) int64; -1 does not count.
    """
    return _cross_entropy(logits, labels, None) + dice_loss(logits, labels)


def dice_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Return 1 minus the soft Dice of the classes, background left out, that the labels have.

    Without a labeled voxel it is 0, with a gradient of 0.

    Source: Milletari et al. 2016; Zhang et al., Sec. IV-C.
    """
    known = (labels != NOT_ANNOTATED)[:, None]
    truth = F.one_hot(labels.clamp(min=0), logits.shape[1]).movedim(-1, 1) * known
    predicted = logits.softmax(dim=1) * known
    axes = (0, 2, 3, 4)
    hit = (truth * predicted).sum(axes)[1:]
    both = (truth.sum(axes) + predicted.sum(axes))[1:]
    there = truth.sum(axes)[1:] > 0
    dice = (2 * hit + DICE_SMOOTHING) / (both + DICE_SMOOTHING)
    if not bool(there.any()):
        return 0.0 * logits.sum()
    return (1 - dice[there]).mean()


def _cross_entropy(logits: Tensor, labels: Tensor, weight: Tensor | None) -> Tensor:
    if not bool((labels != NOT_ANNOTATED).any()):
        return 0.0 * logits.sum()  # the mean over no voxel would be NaN
    return F.cross_entropy(logits, labels, weight=weight, ignore_index=NOT_ANNOTATED)
