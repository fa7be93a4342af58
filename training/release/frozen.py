"""Frozen features and a ridge probe: a segmenter of which only a linear map was fitted.

The probe is linear and so is interpolation, so that the map is applied on each level's own grid
and the K scores are interpolated, not the hundreds of features.
Shape letters: P points, F features of all levels.
"""

from collections.abc import Sequence
from typing import NamedTuple, cast

import numpy as np
import torch
from sklearn.linear_model import Ridge
from torch import Tensor, nn
from torch.nn import functional as F

from training.release.arms import HAND, Arm
from training.release.handmade import HandFeatures
from training.release.scans import NOT_ANNOTATED, GridCase
from training.release.scoring import overlap
from universal_model_hub.loading import load_encoder, load_unet
from universal_model_hub.networks import ARCHITECTURES
from universal_model_hub.networks.layers import crop, pad_to_stride
from universal_model_hub.networks.unet3d import NUM_LEVELS, Decoder, Encoder, UNet3D

ALPHAS = (1.0, 1e2, 1e4, 1e6)  # as many as an arm has learning rates
BALANCES = (0.0, 0.5, 1.0)  # weight of a class: its frequency to the minus this
POINTS = 4000  # of each class at most


class Points(NamedTuple):
    """Voxels drawn from annotated cases."""

    features: np.ndarray  # (P, F) float32
    labels: np.ndarray  # (P,) class numbers
    weights: np.ndarray  # (P,) voxels that each one stands for


class NetworkFeatures(nn.Module):
    """All maps of an encoder, and of a decoder where there is one, with the stride of each.

    Maps (N, 1, X, Y, Z), sides multiples of 8, to maps (N, C, X / stride, ...).
    """

    stride = 8

    def __init__(self, encoder: Encoder, decoder: Decoder | None) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder
        # One voxel more of the deepest level: interpolation looks there.
        self.halo = (48 if decoder is not None else 32) + 8
        width = encoder.width
        self.channels = tuple(2 * width * 2**k for k in range(NUM_LEVELS))
        self.strides = tuple(2**k for k in range(NUM_LEVELS))
        if decoder is not None:
            self.channels += tuple(2 * width * 2**k for k in reversed(range(NUM_LEVELS - 1)))
            self.strides += tuple(2**k for k in reversed(range(NUM_LEVELS - 1)))

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return the maps, the encoder's finest first, then the decoder's coarsest first."""
        maps = self.encoder.pyramid(x)
        if self.decoder is None:
            return maps
        decoded, current = [], maps[-1]
        for level, skip in zip(self.decoder.levels, reversed(maps[:-1]), strict=True):
            current = level(current, skip)
            decoded.append(current)
        return maps + decoded


class RidgeSegmenter(nn.Module):
    """Frozen features and one linear map for each of them: (N, 1, X, Y, Z) to (N, K, X, Y, Z)."""

    head_trained = True

    def __init__(self, features: nn.Module, weight: np.ndarray, bias: np.ndarray) -> None:
        """Args: ``weight`` (K, F) over the channels of all maps, ``bias`` (K,)."""
        super().__init__()
        self.features = features
        self.stride = int(cast(int, features.stride))
        self.halo = int(cast(int, features.halo))
        self.strides = cast(Sequence[int], features.strides)
        parts = (
            torch.from_numpy(weight).float().split(list(cast(Sequence[int], features.channels)), 1)
        )
        self.weights = nn.ParameterList(part[:, :, None, None, None].contiguous() for part in parts)
        self.bias = nn.Parameter(torch.from_numpy(bias).float())
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the scores of each class; the largest is the label."""
        maps = self.features(pad_to_stride(x, self.stride))
        scores = self.bias.view(1, -1, 1, 1, 1)
        for found, weight, stride in zip(maps, self.weights, self.strides, strict=True):
            part = F.conv3d(found, weight)
            if stride > 1:
                part = F.interpolate(part, scale_factor=float(stride), mode="trilinear")
            scores = scores + part
        return crop(scores, x.shape[2:])


def frozen_features(arm: Arm, transfer: str, seed: int, cases: Sequence[GridCase]) -> nn.Module:
    """Return the frozen features of an arm, in eval mode.

    A freshly initialized network has no running statistics; it takes them from the training cases
    once, or its features would not be those of the network that training starts from.

    Args:
        arm: Weights, scratch (then: random features) or hand-made features.
        transfer: ``"full"`` adds the decoder's maps.
        seed: Of a random network.
        cases: Training cases.
    """
    if arm.name == HAND:
        return HandFeatures().train(False)
    if arm.weights is not None:
        if transfer == "full" and arm.has_decoder:
            unet = load_unet(arm.weights)
            return NetworkFeatures(unet.encoder, unet.decoder).train(False)
        encoder = cast(Encoder, load_encoder(arm.weights))
        return NetworkFeatures(encoder, None).train(False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        unet = cast(UNet3D, ARCHITECTURES[arm.architecture](**dict(arm.arguments)))
    settle_statistics(unet, cases)
    decoder = unet.decoder if transfer == "full" else None
    return NetworkFeatures(unet.encoder, decoder).train(False)


@torch.no_grad()
def settle_statistics(network: nn.Module, cases: Sequence[GridCase]) -> None:
    """Set the running statistics of batch norm to the average over the cases."""
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm3d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average
    network.train(True)
    for case in cases:
        network(image_tensor(case))
    network.train(False)


def image_tensor(case: GridCase) -> Tensor:
    """Return a case's image as a batch of one, (1, 1, X, Y, Z)."""
    return torch.from_numpy(np.array(case.image))[None, None]


@torch.inference_mode()
def point_features(features: nn.Module, case: GridCase, places: np.ndarray) -> np.ndarray:
    """Return the features of all levels at some voxels of a case, interpolated: (P, F) float32.

    Args:
        features: Frozen features.
        case: Its image is run whole.
        places: (P, 3) voxel indices.
    """
    x = pad_to_stride(image_tensor(case), int(cast(int, features.stride)))
    sides = torch.tensor(x.shape[2:])
    at = (torch.from_numpy(places).float() + 0.5) / sides * 2 - 1  # (P, 3), -1 to 1
    grid = at.flip(1).view(1, -1, 1, 1, 3)  # grid_sample wants the last axis first
    rows = [
        F.grid_sample(found, grid, padding_mode="border", align_corners=False)[0, :, :, 0, 0]
        for found in features(x)
    ]  # each (C, P)
    return torch.cat(rows).T.contiguous().numpy()


def draw_points(
    features: nn.Module,
    cases: Sequence[GridCase],
    labels: Sequence[np.ndarray],
    rng: np.random.Generator,
    *,
    limit: int = POINTS,
) -> Points:
    """Draw voxels of each class from cases and compute their features.

    Args:
        features: Frozen features.
        cases: Whose images are run.
        labels: For each case (X, Y, Z) class numbers; -1 is not drawn.
        rng: Draws the voxels.
        limit: Of voxels of one class over all cases.
    """
    totals: dict[int, int] = {}
    for array in labels:
        values, counts = np.unique(array[array != NOT_ANNOTATED], return_counts=True)
        for value, count in zip(values.tolist(), counts.tolist(), strict=True):
            totals[value] = totals.get(value, 0) + count
    rows, classes, weights = [], [], []
    for case, array in zip(cases, labels, strict=True):
        chosen = []
        for value, total in sorted(totals.items()):
            places = np.flatnonzero(array == value)
            count = min(len(places), max(1, round(limit * len(places) / total)))
            chosen.append(rng.choice(places, count, replace=False) if len(places) else places)
            classes.append(np.full(count if len(places) else 0, value))
            weights.append(np.full(len(classes[-1]), len(places) / max(1, count)))
        flat = np.concatenate(chosen)
        if len(flat):
            where = np.stack(np.unravel_index(flat, array.shape), axis=1)
            rows.append(point_features(features, case, where))
    return Points(np.concatenate(rows), np.concatenate(classes), np.concatenate(weights))


def fit_ridge(
    points: Points, num_classes: int, alpha: float, balance: float
) -> tuple[np.ndarray, np.ndarray]:
    """Fit a ridge regression to the one-hot labels: weight (K, F) and bias (K,) for raw features.

    Args:
        points: Training voxels.
        num_classes: With background.
        alpha: Strength of the penalty on standardized features.
        balance: 0 counts each voxel alike, 1 each class alike.
    """
    x, labels, stands_for = points
    share = np.bincount(labels, stands_for, num_classes) / stands_for.sum()
    weights = stands_for * np.maximum(share, 1e-12)[labels] ** -balance
    weights = weights * len(weights) / weights.sum()
    mean, spread = x.mean(axis=0), np.maximum(x.std(axis=0), 1e-6)
    found = Ridge(alpha).fit((x - mean) / spread, np.eye(num_classes)[labels], weights)
    weight = (found.coef_ / spread).astype(np.float32)
    return weight, (found.intercept_ - weight @ mean).astype(np.float32)


def choose_ridge(fit_on: Points, kept_back: Points, num_classes: int) -> tuple[float, float]:
    """Return the penalty and the balance with the best Dice on kept-back voxels."""

    def dice(alpha: float, balance: float) -> float:
        weight, bias = fit_ridge(fit_on, num_classes, alpha, balance)
        predicted = (kept_back.features @ weight.T + bias).argmax(axis=1)
        pairs = kept_back.labels * num_classes + predicted
        table = np.bincount(pairs, kept_back.weights, num_classes**2)
        values = overlap(table.reshape(num_classes, num_classes))[0]
        return float(np.nanmean(values)) if np.isfinite(values).any() else 0.0

    options = [(alpha, balance) for alpha in ALPHAS for balance in BALANCES]
    return max(options, key=lambda option: dice(*option))


def ridge_segmenter(
    features: nn.Module,
    cases: Sequence[GridCase],
    splits: Sequence[tuple[np.ndarray, np.ndarray]],
    num_classes: int,
    rng: np.random.Generator,
) -> tuple[RidgeSegmenter, dict[str, float]]:
    """Fit a ridge probe on annotated cases; its two settings are chosen on kept-back labels.

    Args:
        features: Frozen features.
        cases: Training cases.
        splits: For each case the labels to choose on: those fitted and those kept back.
        num_classes: With background.
        rng: Draws the voxels.

    Returns:
        The segmenter, fitted on all labels, and the settings chosen.
    """
    fit_on = draw_points(features, cases, [split[0] for split in splits], rng)
    kept_back = draw_points(features, cases, [split[1] for split in splits], rng)
    alpha, balance = choose_ridge(fit_on, kept_back, num_classes)
    points = draw_points(features, cases, [case.labels for case in cases], rng)
    weight, bias = fit_ridge(points, num_classes, alpha, balance)
    return RidgeSegmenter(features, weight, bias), {"alpha": alpha, "balance": balance}
