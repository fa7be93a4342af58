"""A page on this machine that shows a scan with its labels, probabilities and features.

``scene`` turns scans and answers into files that a browser can draw, ``server`` serves them to
this machine alone, ``page/`` is what the browser runs: NiiVue (a built file, see its license) and
a small script of ours.
"""

from universal_model_hub.viewer.scene import Scene, make_scene
from universal_model_hub.viewer.server import ViewerServer

__all__ = ["Scene", "ViewerServer", "make_scene"]
