"""Render a phantom as an MR scan: signal equations, slices, bias field, Rician noise.

Source: the signal equations of spin echo, inversion recovery and balanced SSFP as in Bernstein,
King and Zhou, Handbook of MRI Pulse Sequences (2004).
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from training.corpora.phantom.brain import BRAIN_TISSUES
from training.corpora.phantom.deform import Grid, smooth_noise
from training.corpora.phantom.subject import PhantomSubject
from training.corpora.phantom.tissues import TISSUES, tissue_mask, tissue_values
from universal_model_hub.errors import ConfigError
from universal_model_hub.volume import Volume

SEQUENCES = ("T1", "T1c", "T2", "FLAIR", "bSSFP")


@dataclass(frozen=True)
class MRScanner:
    """What differs between scanners and their protocols."""

    field_tesla: float
    noise: float  # standard deviation in each coil channel, fraction of the bright tissue
    bias: float  # standard deviation of the log of the coil's sensitivity
    blur_mm: float  # standard deviation of the point spread function
    slice_mm: float  # thickness of the slices acquired along z
    peak: float  # typical stored value of the bright tissue
    inverted: bool  # T1 weighting by inversion (MPRAGE) instead of spin echo


MR_SCANNERS: dict[str, MRScanner] = {
    "north_1.5T": MRScanner(1.5, 0.030, 0.12, 0.5, 1.0, 450, False),
    "south_1.5T": MRScanner(1.5, 0.050, 0.20, 0.6, 3.0, 900, False),
    "east_3T": MRScanner(3.0, 0.020, 0.28, 0.4, 1.0, 650, True),
    "west_3T": MRScanner(3.0, 0.035, 0.22, 0.5, 2.0, 1500, True),
}


def render_mr(
    subject: PhantomSubject,
    rng: np.random.Generator,
    sequence: str,
    scanner: MRScanner,
    *,
    stripped: bool = False,
    unbiased: bool = False,
) -> Volume:
    """Scan a phantom.

    Args:
        subject: The body, on the grid that the scan will have.
        rng: Draws timing, texture, coil sensitivity, noise and the scale of the stored values.
        sequence: One of ``SEQUENCES``.
        scanner: One of ``MR_SCANNERS`` or your own.
        stripped: Set everything but the brain to exactly 0, after the noise.
        unbiased: Leave most of the coil sensitivity out, as after N3 correction.

    Returns:
        int16, 0 or more, in arbitrary units: most scans end below 4000, some above.

    Raises:
        ConfigError: If the sequence is none of these.
    """
    if sequence not in SEQUENCES:
        raise ConfigError(f"Expected a sequence among {', '.join(SEQUENCES)}, got {sequence!r}.")
    grid = subject.grid
    signal = tissue_signal(subject, sequence, scanner, rng)[subject.labels]
    texture = 0.7 * smooth_noise(grid, 9, rng)
    texture += 0.7 * smooth_noise(grid, max(2.5, 1.2 * max(grid.spacing)), rng)
    signal *= 1 + tissue_values("mr_texture")[subject.labels] * texture
    bright = float(np.percentile(signal[subject.labels > 0], 95)) or 1.0
    signal /= np.float32(bright)
    sigma = [max(0.42, scanner.blur_mm / s) for s in grid.spacing]
    signal = ndimage.gaussian_filter(signal, sigma, mode="nearest", truncate=3)
    strength = scanner.bias * (0.2 if unbiased else 1.0)
    signal *= np.exp(strength * smooth_noise(grid, 90, rng))
    magnitude = acquired_in_slices(np.clip(signal, 0, None), grid, scanner, rng)
    magnitude *= np.float32(scanner.peak * np.exp(rng.normal(0, 0.55)))
    stored = np.clip(np.rint(magnitude), 0, 32767)
    if stripped:
        brain = tissue_mask(*BRAIN_TISSUES)[subject.labels]
        stored = np.where(brain, np.maximum(stored, 1), 0)
    return Volume(stored.astype(np.int16), subject.affine)


def tissue_signal(
    subject: PhantomSubject, sequence: str, scanner: MRScanner, rng: np.random.Generator
) -> np.ndarray:
    """Signal of each tissue in this subject, (K,) float32; timing varies by some percent."""
    strong = scanner.field_tesla > 2
    t1 = tissue_values("t1_ms") * np.exp(0.045 * subject.variation[:, 1])
    t2 = tissue_values("t2_ms") * np.exp(0.05 * subject.variation[:, 2])
    t1, t2 = (t1 * 1.22, t2 * 0.92) if strong else (t1, t2)
    density = tissue_values("density")
    jitter = np.exp(rng.normal(0, 0.06, 3))
    if sequence == "T1c":
        t1 = _with_agent(t1)
    if sequence in ("T1", "T1c"):
        if scanner.inverted:
            signal = _inversion_recovery(t1, t2, 2100, 920 * jitter[0], 3)
        else:
            signal = _spin_echo(t1, t2, 550 * jitter[0], 12 * jitter[1])
    elif sequence == "T2":
        signal = _spin_echo(t1, t2, 4500 * jitter[0], 92 * jitter[1])
    elif sequence == "FLAIR":
        signal = _inversion_recovery(t1, t2, 9000, (2700 if strong else 2450) * jitter[0] ** 0.3,
                                     115 * jitter[1])  # fmt: skip
    else:
        signal = _balanced_ssfp(t1, t2, 3.6 * jitter[0], 60.0 * jitter[1])
    return (density * signal).astype(np.float32)


def acquired_in_slices(
    signal: np.ndarray, grid: Grid, scanner: MRScanner, rng: np.random.Generator
) -> np.ndarray:
    """Average over thick slices, add the noise of two channels, interpolate back to the grid.

    Args:
        signal: (X, Y, Z), 0 or more.
        grid: Of the signal.
        scanner: Its noise and slice thickness.
        rng: Draws the noise.

    Returns:
        (X, Y, Z) float32: magnitudes, so noise is Rician.
    """
    factor = max(1, round(scanner.slice_mm / grid.spacing[2]))
    num_slices = -(-grid.shape[2] // factor)
    padded = np.pad(signal, [(0, 0), (0, 0), (0, num_slices * factor - grid.shape[2])], mode="edge")
    slices = padded.reshape(*grid.shape[:2], num_slices, factor).mean(axis=3)
    noise = rng.standard_normal((2, *slices.shape), dtype=np.float32) * np.float32(scanner.noise)
    slices = np.hypot(slices + noise[0], noise[1])
    if factor == 1:
        return slices
    position = np.clip((np.arange(grid.shape[2]) - (factor - 1) / 2) / factor, 0, num_slices - 1)
    low = np.minimum(position.astype(np.intp), max(0, num_slices - 2))
    high = np.minimum(low + 1, num_slices - 1)
    share = (position - low).astype(np.float32)
    return slices[:, :, low] * (1 - share) + slices[:, :, high] * share


def _with_agent(t1: np.ndarray) -> np.ndarray:
    """T1 after gadolinium: blood, scalp and whatever lets the agent through."""
    uptake = np.zeros_like(t1)  # 1/s, relaxivity times concentration
    for name, rate in (("enhancing_tumor", 0.9), ("vein", 1.8), ("skin", 0.7), ("muscle", 0.3),
                       ("tumor_core", 0.08), ("marrow", 0.3)):  # fmt: skip
        uptake[TISSUES[name]] = rate
    return 1000 / (1000 / t1 + uptake)


def _spin_echo(t1: np.ndarray, t2: np.ndarray, tr: float, te: float) -> np.ndarray:
    return (1 - np.exp(-tr / t1)) * np.exp(-te / t2)


def _inversion_recovery(
    t1: np.ndarray, t2: np.ndarray, tr: float, ti: float, te: float
) -> np.ndarray:
    return np.abs(1 - 2 * np.exp(-ti / t1) + np.exp(-tr / t1)) * np.exp(-te / t2)


def _balanced_ssfp(t1: np.ndarray, t2: np.ndarray, tr: float, flip_degrees: float) -> np.ndarray:
    e1, e2, flip = np.exp(-tr / t1), np.exp(-tr / t2), np.deg2rad(flip_degrees)
    steady = (1 - e1) / (1 - (e1 - e2) * np.cos(flip) - e1 * e2)
    return np.sin(flip) * steady * np.exp(-tr / (2 * t2))
