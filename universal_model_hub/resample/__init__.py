"""Separable B-spline resampling of order 0, 1 and 3: exact, in float32, slab by slab.

Output voxel i of an axis samples the input at position ``scale * i + offset``, in input voxels: 0
is the center of the first voxel, side - 1 of the last. Positions are clamped to [0, side - 1]: what
lies past the last voxel's center repeats that voxel, and an axis of one voxel is constant.

Order 3 interpolates: at a voxel's center it gives the voxel's own value. Its coefficients
continue the volume by mirroring at the outermost voxel centers, as ``scipy.ndimage`` does with
``mode="mirror"``.

Along one axis interpolation is a matrix, and the prefilter's influence falls by 0.268 a voxel, so
the matrix is banded: each axis becomes a few small dense products.
"""

from universal_model_hub.resample.slabs import MAX_BYTES, resample
from universal_model_hub.resample.weights import ORDERS, axis_weights

__all__ = ["MAX_BYTES", "ORDERS", "axis_weights", "resample"]
