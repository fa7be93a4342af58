"""From a scan to the cube that a network reads: orient, clip, resample, clip again, scale."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from universal_model_hub.errors import ConfigError
from universal_model_hub.preprocess.modality import choose, notice_unseen, refuse_nan, sample_of
from universal_model_hub.preprocess.orientation import orient
from universal_model_hub.preprocess.record import PreprocessRecord, model_grid
from universal_model_hub.preprocess.settings import Preprocessing
from universal_model_hub.resample import MAX_BYTES, resample
from universal_model_hub.volume import Volume

CONSTANT = 1e-5  # a range this small a part of the values is rounding of the spline, no structure


def preprocess(
    volume: Volume,
    model_or_config: Any,
    modality: str = "auto",
    *,
    max_bytes: int = MAX_BYTES,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, PreprocessRecord]:
    """Orient a scan, resample it, clip it and scale it to [0, 1].

    Source: Zhang et al., Sec. IV-B.1. Source: ours, that intensities are also clipped before the
    spline and not only after it: padding of -2048 or -3024 and metal of 3071 HU would otherwise
    ring into the voxels beside them.

    Args:
        volume: A scan; left as it is.
        model_or_config: ``Preprocessing``, a config.json mapping, or a model or config that has
            ``preprocessing``. What its ``seen`` excludes is named in a warning.
        modality: "CT", "MR", or "auto" to recognize Hounsfield units.
        max_bytes: Largest result, in bytes.
        device: Where to resample and where the result lies.

    Returns:
        (1, 1, X, Y, Z) float32 in [0, 1], and the record that leads back. A scan without contrast
        becomes 0 where it is scaled by its own range.

    Raises:
        ConfigError: If the settings or the modality cannot be used.
        TooLargeError: If the resampled scan would need more than ``max_bytes``.
        VolumeError: If it holds NaN.
    """
    settings = preprocessing_of(model_or_config)
    grid = model_grid(volume, settings)
    oriented = orient(volume.array, grid.axes, grid.flips)
    sample = sample_of(oriented)
    choice = choose(modality, sample)
    clip = settings.clip(choice.modality)
    seen = seen_of(model_or_config)
    if seen is not None:
        spacing = [volume.spacing[axis] for axis in grid.axes]
        extent = [s * n for s, n in zip(spacing, oriented.shape, strict=True)]
        notice_unseen(seen, choice, sample, clip, spacing, extent)
    cube = resample(
        oriented,
        grid.model_shape,
        grid.scale,
        grid.offset,
        settings.order,
        clip=clip,
        max_bytes=max_bytes,
        device=device,
    ).to(torch.float32)
    low, high = _scale(cube, clip, settings.rescale(choice.modality))
    record = PreprocessRecord(
        source_shape=volume.shape,
        source_affine=volume.affine.copy(),
        axes=grid.axes,
        flips=grid.flips,
        model_shape=grid.model_shape,
        model_affine=grid.model_affine,
        scale=grid.scale,
        offset=grid.offset,
        modality=choice.modality,
        modality_reason="; ".join(filter(None, (choice.reason, choice.doubt))),
        intensity_range=(low, high),
    )
    return cube[None, None], record


def preprocessing_of(model_or_config: Any) -> Preprocessing:
    """Return the settings themselves, or those of a config.json mapping, a config or a model.

    Raises:
        ConfigError: If there are none.
    """
    if isinstance(model_or_config, Preprocessing):
        return model_or_config
    if isinstance(model_or_config, Mapping):
        found = model_or_config.get("preprocessing")
        found = Preprocessing.from_json(found) if isinstance(found, Mapping) else found
    else:
        found = getattr(model_or_config, "preprocessing", None)
    if not isinstance(found, Preprocessing):
        raise ConfigError(
            f"Expected a Preprocessing, or a model or config that has one, got "
            f"{type(model_or_config).__name__}. Pass Preprocessing() for the paper's settings."
        )
    return found


def seen_of(model_or_config: Any) -> Mapping[str, Any] | None:
    """Return what a config's or model's weights were trained on, if it says so.

    Raises:
        ConfigError: If the entry is not a mapping.
    """
    if isinstance(model_or_config, Mapping):
        seen = model_or_config.get("seen")
    else:
        seen = getattr(getattr(model_or_config, "config", model_or_config), "seen", None)
    if seen is not None and not isinstance(seen, Mapping):
        raise ConfigError(f"Expected the config's entry 'seen' to be a mapping, got {seen!r:.80}.")
    return seen


def _scale(cube: Tensor, clip: tuple[float, float], rescale: str) -> tuple[float, float]:
    """Clip and scale in place to [0, 1]; return the intensities that became 0 and 1."""
    low, high = clip
    cube.clamp_(low, high)
    refuse_nan(bool(cube.sum(dtype=torch.float64).isnan()))
    if rescale == "volume":
        low, high = (float(extreme) for extreme in torch.aminmax(cube))
        if high - low <= CONSTANT * max(abs(low), abs(high)):
            cube.zero_()
            return low, high
    cube.sub_(low).div_(high - low).clamp_(0, 1)
    return low, high
