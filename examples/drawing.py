"""Pictures of scans, features and labels in three planes, for a page of their own."""

import base64
import html
import io
from collections.abc import Callable
from typing import Any

import matplotlib
import numpy as np

from training.release.feature_planes import isotropic, three_planes
from universal_model_hub import Volume

matplotlib.use("Agg")
from matplotlib import pyplot as plt


def figure(draw: Callable[[], Any], caption: str) -> str:
    """Draw with matplotlib and return the picture as an HTML figure."""
    drawn = draw()
    stream = io.BytesIO()
    drawn.savefig(stream, format="png", dpi=110, bbox_inches="tight")
    plt.close(drawn)
    data = base64.b64encode(stream.getvalue()).decode()
    text = html.escape(caption)
    return (
        f"<figure><img alt='{text}' src='data:image/png;base64,{data}'>"
        f"<figcaption>{text}</figcaption></figure>"
    )


def draw_labels(volume: Volume, labels: Volume) -> Any:
    """Three planes of a scan with its labels laid over, a color each."""
    gray = isotropic(volume).array
    classes = isotropic(labels, order=0).array
    drawn, axes = plt.subplots(1, 3, figsize=(9, 3))
    for axis, plane, over in zip(axes, three_planes(gray), three_planes(classes), strict=True):
        axis.imshow(plane.T, cmap="gray", origin="lower", vmin=-1000, vmax=400)
        painted = np.ma.masked_where(over.T == 0, over.T)
        axis.imshow(painted, cmap="tab20", origin="lower", alpha=0.6, vmin=1, vmax=20)
        axis.axis("off")
    return drawn
