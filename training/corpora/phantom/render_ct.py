"""Render a phantom as a CT scan: HU, partial volume, texture, noise, streaks, table, padding."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from training.corpora.phantom.deform import Grid, smooth_noise
from training.corpora.phantom.subject import PhantomSubject
from training.corpora.phantom.tissues import PHASES, TISSUES, tissue_mask, tissue_values
from universal_model_hub.errors import ConfigError
from universal_model_hub.volume import Volume


@dataclass(frozen=True)
class CTScanner:
    """How a scanner and its reconstruction shape the HU."""

    noise_hu: float  # standard deviation in the middle of the body
    blur_mm: float  # standard deviation of the point spread function
    edge: float  # 0: smooth kernel, 1: sharp kernel (noise loses its low frequencies)
    streak_hu: float  # standard deviation of streaks behind bone
    padding: int | None  # value outside the round field of view; None: no such circle
    couch: bool  # whether the table is in the picture


CT_SCANNERS: dict[str, CTScanner] = {
    "soft": CTScanner(14, 0.65, 0.1, 3, None, True),
    "sharp": CTScanner(38, 0.40, 0.9, 5, -3024, True),
    "low_dose": CTScanner(48, 0.60, 0.4, 12, -2000, True),
    "smooth": CTScanner(9, 0.85, 0.0, 2, None, False),
}


def render_ct(
    subject: PhantomSubject,
    rng: np.random.Generator,
    scanner: CTScanner,
    *,
    phase: str = "plain",
) -> Volume:
    """Scan a phantom.

    Args:
        subject: The body, on the grid that the scan will have.
        rng: Draws texture, noise and streaks.
        scanner: One of ``CT_SCANNERS`` or your own.
        phase: Contrast agent: "plain", "portal" (abdomen) or "arterial" (heart).

    Returns:
        int16 HU. Outside the field of view the scanner's padding value.

    Raises:
        ConfigError: If the phase is none of these.
    """
    if phase not in PHASES:
        raise ConfigError(f"Expected a phase among {', '.join(PHASES)}, got {phase!r}.")
    grid = subject.grid
    hu = _tissue_hu(subject, phase)[subject.labels]
    hu += tissue_values("hu_texture")[subject.labels] * _texture(grid, rng)
    hu += _dependent_density(subject, grid)
    if scanner.couch:
        _add_couch(hu, subject.labels, grid)
    sigma = [max(0.45, scanner.blur_mm / s) for s in grid.spacing]
    hu = ndimage.gaussian_filter(hu, sigma, mode="nearest", truncate=3)
    hu += _noise(grid, scanner, rng)
    if scanner.streak_hu > 0:
        hu += _streaks(subject.labels, grid, scanner.streak_hu, rng)
    scanned = np.clip(np.rint(hu), -1024, 3071)
    if scanner.padding is not None:
        scanned[~_inside_circle(grid)] = scanner.padding
    return Volume(scanned.astype(np.int16), subject.affine)


def _tissue_hu(subject: PhantomSubject, phase: str) -> np.ndarray:
    """HU of each tissue in this subject, (K,) float32."""
    mean = tissue_values("hu")
    spread = tissue_values("hu_spread")
    deviation = subject.variation[:, 0].copy()
    for name, hu in PHASES[phase].items():
        mean[TISSUES[name]] = hu
        spread[TISSUES[name]] = max(spread[TISSUES[name]], 0.10 * hu)
    if phase != "plain":
        # All blood holds the same agent, so it rises and falls together.
        blood = tissue_mask("left_ventricle", "left_atrium", "aorta", "pulmonary_vein",
                            "right_ventricle", "right_atrium", "pulmonary_artery",
                            "lung_vessel", "vein", "liver_vessel")[: len(mean)]  # fmt: skip
        deviation[blood] = deviation[TISSUES["aorta"]] + 0.15 * deviation[blood]
    return mean + spread * deviation


def _texture(grid: Grid, rng: np.random.Generator) -> np.ndarray:
    """Texture of organs with mean 0 and standard deviation 1: coarse and fine parts."""
    fine = max(2.0, 1.2 * max(grid.spacing))
    parts = 0.55 * smooth_noise(grid, 18, rng) + 0.6 * smooth_noise(grid, 7, rng)
    return parts + np.float32(0.58) * smooth_noise(grid, fine, rng)


def _dependent_density(subject: PhantomSubject, grid: Grid) -> np.ndarray:
    """Lungs of someone lying are denser at the back, by some 60 HU."""
    y = grid.axis_mm(1).reshape(1, -1, 1)
    return (subject.labels == TISSUES["lung"]) * np.float32(0.5) * np.clip(-y, -60, 80)


def _add_couch(hu: np.ndarray, labels: np.ndarray, grid: Grid) -> None:
    """Put a curved table under the body, a thin shell around foam."""
    rows = np.flatnonzero((labels > 0).any(axis=(0, 2)))
    if len(rows) == 0 or rows[0] == 0:
        return
    back = grid.axis_mm(1)[rows[0]] - 3
    x, y = grid.axis_mm(0)[:, None], grid.axis_mm(1)[None, :]
    below = back + 0.0011 * x**2 - y  # depth below the table top, mm
    wide = np.abs(x) < 205
    thickness = max(2.5, 0.8 * grid.spacing[1])
    table = np.where((below < thickness) | (below > 34 - thickness), 40.0, -900.0)
    where = (below > 0) & (below < 34) & wide
    empty = where[:, :, None] & (labels == 0)
    hu[empty] = np.broadcast_to(table.astype(np.float32)[:, :, None], hu.shape)[empty]


def _noise(grid: Grid, scanner: CTScanner, rng: np.random.Generator) -> np.ndarray:
    """Correlated noise, stronger in the middle of the body, where fewer photons arrive."""
    noise = rng.standard_normal(grid.shape, dtype=np.float32)
    width = [max(0.3, scanner.blur_mm / s) for s in grid.spacing]
    noise = ndimage.gaussian_filter(noise, width, mode="wrap", truncate=3)
    if scanner.edge > 0:
        wide = [2.5 * w for w in width[:2]] + [0]
        noise -= np.float32(scanner.edge) * ndimage.gaussian_filter(
            noise, wide, mode="wrap", truncate=2
        )
    noise *= np.float32(scanner.noise_hu) / max(float(noise.std()), 1e-6)
    x, y = grid.axis_mm(0)[:, None], grid.axis_mm(1)[None, :]
    strength = 0.55 + 0.45 * np.exp(-(x**2 + (1.3 * y) ** 2) / 130.0**2)
    return noise * strength[:, :, None].astype(np.float32)


def _streaks(
    labels: np.ndarray, grid: Grid, strength_hu: float, rng: np.random.Generator
) -> np.ndarray:
    """Streaks along a few directions, where the ray passed through much bone.

    Each direction adds to every voxel a value that depends on its distance t from the axis and on
    the slice, weighted with the bone that the ray at t met.
    """
    x, y = grid.axis_mm(0)[:, None], grid.axis_mm(1)[None, :]
    bone = tissue_mask("cortical_bone", "marrow")[labels]
    columns = np.argwhere(bone)
    step = min(grid.spacing[:2])
    reach = float(np.hypot(np.abs(x).max(), np.abs(y).max()))
    num_bins = int(2 * reach / step) + 2
    total = np.zeros(grid.shape, np.float32)
    if len(columns) == 0:
        return total
    for angle in rng.uniform(0, np.pi, 6):
        t = np.cos(angle) * x + np.sin(angle) * y
        bins = ((t + reach) / step).astype(np.intp)  # (X, Y)
        flat = bins[columns[:, 0], columns[:, 1]] * grid.shape[2] + columns[:, 2]
        met = np.bincount(flat, minlength=num_bins * grid.shape[2])
        met = met.reshape(num_bins, grid.shape[2]).astype(np.float32)
        met = ndimage.uniform_filter1d(met, 3, axis=0)
        met /= max(float(met.max()), 1e-6)
        profile = met * rng.standard_normal(met.shape, dtype=np.float32)
        total += profile[bins]
    spread = float(total.std())
    return total * np.float32(strength_hu / spread) if spread > 0 else total


def _inside_circle(grid: Grid) -> np.ndarray:
    """The round field of view, (X, Y) boolean."""
    center = [axis_mm.mean() for axis_mm in (grid.axis_mm(0), grid.axis_mm(1))]
    radius = 0.5 * min(grid.shape[a] * grid.spacing[a] for a in (0, 1))
    x, y = grid.axis_mm(0)[:, None] - center[0], grid.axis_mm(1)[None, :] - center[1]
    return np.hypot(x, y) < radius
