"""What kind of intensities a scan holds, and whether the weights have seen the like."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from universal_model_hub.errors import ConfigError, VolumeError
from universal_model_hub.preprocess.notices import notice
from universal_model_hub.preprocess.settings import MODALITIES

MAX_SAMPLE = 2**20  # voxels looked at
AIR_HU = -500.0  # below: air, lung or padding. Source: ours; soft tissue and fat lie above -200
AIR_SHARE = 0.005  # of a scan that counts as a mass of air
DENSE_HU = 1500.0  # above: metal and the densest bone, rare in any CT
DENSE_SHARE = 0.1  # a CT with more is no CT
NARROW_HU = 50.0  # a CT's range below this is not in HU
ROUNDING = 0.01  # relative excess over a range seen that is not worth a warning


@dataclass(frozen=True)
class Choice:
    """A modality and why it was chosen."""

    modality: str  # "CT" or "MR"
    reason: str
    doubt: str = ""  # why the choice may be wrong; empty when sure


def sample_of(oriented: np.ndarray) -> np.ndarray:
    """Return about a million voxels, evenly spread, as float64 (n,).

    Args:
        oriented: (X, Y, Z) in the model's orientation: a scan stored otherwise gives the same.

    Raises:
        VolumeError: If any of them is NaN.
    """
    step = max(1, int(np.ceil((oriented.size / MAX_SAMPLE) ** (1 / 3))))
    sample = np.asarray(oriented[::step, ::step, ::step], dtype=np.float64).ravel()
    refuse_nan(bool(np.isnan(sample).any()))
    return sample


def refuse_nan(found: bool) -> None:
    """Refuse a scan in which NaN was found: a spline would spread it.

    Raises:
        VolumeError: If so.
    """
    if found:
        raise VolumeError(
            "Expected a scan without NaN. Read it with load_volume, which fills such voxels, or "
            "replace them, for instance with np.nan_to_num."
        )


def choose(modality: str, sample: np.ndarray) -> Choice:
    """Take the modality as given, or recognize it; say in a warning what is doubtful.

    Args:
        modality: "CT", "MR" or "auto".
        sample: (n,) intensities.

    Raises:
        ConfigError: If it is another word.
    """
    if modality not in (*MODALITIES, "auto"):
        raise ConfigError(
            f"Expected modality to be 'CT', 'MR' or 'auto', got {modality!r:.40}. Other modalities "
            "have no settings: preprocess them as 'MR', which scales by the scan's own range."
        )
    found = recognized(sample)
    if modality == "auto":
        choice = found
        advice = " Pass modality='CT' or 'MR' to settle it."
    else:
        choice = Choice(modality, "as given", _contradiction(modality, sample, found))
        advice = ""
    if choice.doubt:
        notice(f"Taken as {choice.modality} ({choice.reason}), but {choice.doubt}.{advice}")
    return choice


def recognized(sample: np.ndarray) -> Choice:
    """Tell CT in Hounsfield units from MR by the intensities alone.

    Source: ours. Hounsfield units are absolute: a CT that shows anything but the inside of a body
    has a mass of air near -1000. MR has an arbitrary unit and hardly a value below 0.

    Args:
        sample: (n,) intensities.
    """
    low, high = float(sample.min()), float(sample.max())
    values = f"values {low:g} to {high:g}"
    if low == high:
        return Choice("MR", f"all voxels are {low:g}", "a constant scan tells nothing")
    air, dense = float(np.mean(sample < AIR_HU)), float(np.mean(sample > DENSE_HU))
    negative = float(np.mean(sample < 0))
    if air >= AIR_SHARE and dense <= DENSE_SHARE:
        return Choice("CT", f"Hounsfield units: {values}, {air:.1%} below {AIR_HU:g}")
    if air >= AIR_SHARE:
        return Choice(
            "MR", values, f"{air:.1%} lie below {AIR_HU:g} and {dense:.1%} above {DENSE_HU:g}"
        )
    if negative < AIR_SHARE:
        doubt = "such a range also fits a CT that was rescaled" if high <= 1 else ""
        return Choice("MR", f"no Hounsfield units: {values}, {negative:.1%} negative", doubt)
    if low < -20 and high > 20:
        return Choice(
            "CT",
            f"{values}, {negative:.1%} negative as fat is in Hounsfield units",
            "there is no air to tell it by",
        )
    return Choice("MR", values, f"{negative:.1%} are negative: was it normalized before?")


def _contradiction(modality: str, sample: np.ndarray, found: Choice) -> str:
    low, high = float(sample.min()), float(sample.max())
    values = f"the values {low:g} to {high:g}"
    if modality == "CT" and high - low < NARROW_HU:
        return f"{values} are no Hounsfield units: undo their scaling first"
    if modality == "CT" and low >= 0:
        return f"{values} lack any below 0 HU: is the rescale intercept (-1024) missing?"
    if modality == "MR" and found.modality == "CT" and not found.doubt:
        return f"{values} look like Hounsfield units of CT"
    return ""


def notice_unseen(
    seen: Mapping[str, Any],
    choice: Choice,
    sample: np.ndarray,
    clip: Sequence[float],
    spacing: Sequence[float],
    field_of_view_mm: Sequence[float],
) -> None:
    """Warn if a scan lies outside what the weights were trained on, and name in what.

    Args:
        seen: Entry ``seen`` of config.json: ``modalities`` (a list), ``spacing`` and
            ``field_of_view_mm`` ([lowest (x, y, z), highest (x, y, z)] in mm), ``intensity`` (for
            each modality [lowest, highest]). All are optional.
        choice: The scan's modality.
        sample: (n,) intensities.
        clip: Intensities beyond this never reach the network.
        spacing: (x, y, z) of the scan in mm, model's order of axes.
        field_of_view_mm: (x, y, z) of the scan, model's order of axes.

    Raises:
        ConfigError: If an entry of ``seen`` is not of this form.
    """
    odd = []
    modalities = seen.get("modalities")
    if modalities is not None:
        if not isinstance(modalities, list | tuple):
            raise _malformed("modalities", "a list of names")
        if choice.modality not in modalities:
            odd.append(f"modality {choice.modality} (seen: {', '.join(map(str, modalities))})")
    for key, found in (("spacing", spacing), ("field_of_view_mm", field_of_view_mm)):
        if seen.get(key) is not None:
            odd += _unseen_sides(key, seen[key], found)
    intensity = seen.get("intensity")
    if intensity is not None:
        if not isinstance(intensity, Mapping):
            raise _malformed("intensity", "ranges by modality")
        if choice.modality in intensity:
            low, high = _numbers("intensity", intensity[choice.modality], 2)
            # Single voxels, such as metal or padding, say nothing about a scan.
            bottom, top = np.percentile(np.clip(sample, clip[0], clip[1]), [0.5, 99.5])
            margin = ROUNDING * (high - low)
            if bottom < low - margin or top > high + margin:
                odd.append(f"intensity {bottom:g} to {top:g} (seen: {low:g} to {high:g})")
    if odd:
        notice(
            "This scan lies outside what the weights were trained on, so results may be worse than "
            f"measured: {'; '.join(odd)}."
        )


def _unseen_sides(key: str, bounds: Any, found: Sequence[float]) -> list[str]:
    if not isinstance(bounds, list | tuple) or len(bounds) != 2:
        raise _malformed(key, "[lowest, highest], each with three numbers")
    lowest, highest = (_numbers(key, bound, 3) for bound in bounds)
    name = key.removesuffix("_mm").replace("_", " ")
    return [
        f"{name} along {axis} {value:.3g} mm (seen: {low:g} to {high:g} mm)"
        for axis, value, low, high in zip("xyz", found, lowest, highest, strict=True)
        if not low * (1 - ROUNDING) <= value <= high * (1 + ROUNDING)
    ]


def _numbers(key: str, values: Any, count: int) -> list[float]:
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError, OverflowError) as error:
        raise _malformed(key, f"{count} numbers") from error
    if len(numbers) != count:
        raise _malformed(key, f"{count} numbers")
    return numbers


def _malformed(key: str, expected: str) -> ConfigError:
    return ConfigError(f"Expected {key!r} of the config's entry 'seen' to be {expected}.")
