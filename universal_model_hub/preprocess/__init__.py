"""From a scan to what a network reads, and back to the scan's own voxels.

Oriented by its affine, resampled, clipped, scaled to [0, 1]: the settings belong to the weights.
"""

from universal_model_hub.preprocess.channels import preprocess_channels
from universal_model_hub.preprocess.dataset import PreprocessTransform, VolumeDataset
from universal_model_hub.preprocess.notices import PreprocessWarning
from universal_model_hub.preprocess.record import PreprocessRecord, model_shape
from universal_model_hub.preprocess.settings import Preprocessing
from universal_model_hub.preprocess.steps import preprocess

__all__ = [
    "PreprocessRecord",
    "PreprocessTransform",
    "PreprocessWarning",
    "Preprocessing",
    "VolumeDataset",
    "model_shape",
    "preprocess",
    "preprocess_channels",
]
