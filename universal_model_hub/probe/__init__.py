"""Is this encoder any good on my data? Simple classifiers on its frozen features, in minutes.

Voxels of labeled scans, or whole scans of a class, become feature vectors; nearest neighbors and
a linear classifier learn from a few of the labels and are asked about subjects that were held out.
Random weights and hand-made features answer the same questions beside it.

Needs the ``[finetune]`` extra. Shape letters: P samples, F features.
"""

from universal_model_hub.probe.asking import probe
from universal_model_hub.probe.drawing import curve_picture
from universal_model_hub.probe.results import ProbeResult, ProbeRow, Spread

__all__ = ["ProbeResult", "ProbeRow", "Spread", "curve_picture", "probe"]
