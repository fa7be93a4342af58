"""A page on this machine that shows a scan with its labels, probabilities and features.

``scene`` turns scans and answers into files that a browser can draw, ``server`` serves them to
this machine alone, ``page/`` is what the browser runs: NiiVue and a small script of ours.

NiiVue is the file ``dist/niivue.umd.js`` of the npm package @niivue/niivue 0.69.0, unchanged: one
file of 2.3 MB, 0.8 MB in the wheel. Its Python package ipyniivue is for notebooks and brings some
thirty more packages. Its license and those of its parts are in page/LICENSE.niivue.txt.

Every scan is written anew by ``save_volume``, NIfTI too: the page shows the voxels and the place
that the models are given, whatever a header says twice.
"""

from universal_model_hub.viewer.scene import Scene, make_scene
from universal_model_hub.viewer.server import ViewerServer

__all__ = ["Scene", "ViewerServer", "make_scene"]
