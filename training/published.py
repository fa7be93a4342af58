"""The published results: Tables III, IV and V of the paper, and which recipe each row needs.

Source: Zhang et al., Sec. V. IoU (bts, las_ct, las_mr) and AUC (lnc, adc) in percent, mean and
standard deviation of five trials. All of it is reported in the paper; none was measured here.
"""

from dataclasses import dataclass, field

TASKS = ("bts", "lnc", "las_ct", "las_mr", "adc")
METRICS = {"bts": "IoU", "lnc": "AUC", "las_ct": "IoU", "las_mr": "IoU", "adc": "AUC"}


@dataclass(frozen=True, kw_only=True)
class Published:
    """One row of a results table."""

    table: str
    approach: str
    recipe: str | None  # pre-training recipe; None where nothing is pre-trained here
    data: str  # what it is pre-trained on
    scores: dict[str, tuple[float, float]] = field(repr=False)  # task: mean, standard deviation


def five(*pairs: tuple[float, float]) -> dict[str, tuple[float, float]]:
    """Name the five pairs of a row in the tables' order."""
    return dict(zip(TASKS, pairs, strict=True))


SCRATCH = five((58.52, 2.61), (94.25, 5.07), (68.29, 1.68), (67.04, 2.18), (74.00, 3.82))
GENESIS = five((67.96, 1.29), (98.34, 0.44), (76.48, 2.89), (74.53, 1.69), (79.33, 2.29))
UNIVERSAL = five((72.10, 0.67), (99.04, 0.23), (78.14, 0.77), (77.52, 0.50), (86.44, 1.09))
OWN_FILE = "the authors' own weights"

PUBLISHED = (
    Published(table="III, IV", approach="From scratch", recipe=None, data="none", scores=SCRATCH),
    Published(
        table="III",
        approach="I3D",
        recipe=None,
        data=OWN_FILE,
        scores=five((67.83, 0.75), (98.26, 0.27), (76.63, 2.32), (66.71, 1.27), (74.44, 2.53)),
    ),
    Published(
        table="III",
        approach="NiftyNet",
        recipe=None,
        data=OWN_FILE,
        scores=five((60.78, 1.60), (94.14, 4.57), (74.91, 2.78), (64.60, 1.96), (73.21, 3.18)),
    ),
    Published(
        table="III",
        approach="Med3D",
        recipe=None,
        data=OWN_FILE,
        scores=five((66.09, 1.35), (95.80, 0.49), (75.01, 0.74), (63.43, 0.61), (82.00, 3.01)),
    ),
    Published(
        table="III",
        approach="3D Rotation",
        recipe="rotation",
        data="each task's own training set",
        scores=five((56.48, 1.78), (97.13, 0.81), (67.54, 2.80), (71.36, 1.70), (78.44, 4.59)),
    ),
    Published(
        table="III",
        approach="3D Jigsaw",
        recipe="jigsaw",
        data="each task's own training set",
        scores=five((59.65, 0.81), (96.12, 0.63), (68.40, 2.92), (72.99, 2.54), (76.44, 1.47)),
    ),
    Published(
        table="III, IV",
        approach="Model Genesis",
        recipe="genesis",
        data="LUNA2016, or the authors' own weights",
        scores=GENESIS,
    ),
    Published(
        table="III, IV",
        approach="Universal Model",
        recipe="paper",
        data="LUNA2016, LiTS2017, BraTS2018, MSD heart",
        scores=UNIVERSAL,
    ),
    Published(
        table="IV",
        approach="Model_CT",
        recipe="model_ct",
        data="LUNA2016, LiTS2017",
        scores=five((67.76, 0.93), (98.77, 0.26), (76.52, 2.09), (74.81, 1.12), (79.11, 3.12)),
    ),
    Published(
        table="IV",
        approach="Model_MRI",
        recipe="model_mri",
        data="BraTS2018, MSD heart",
        scores=five((68.19, 0.89), (97.08, 0.25), (69.23, 1.55), (74.98, 0.72), (80.13, 2.36)),
    ),
    Published(
        table="IV",
        approach="Model_Multi",
        recipe="model_multi",
        data="as Universal Model",
        scores=five((69.85, 0.79), (98.90, 0.10), (76.94, 2.80), (75.33, 0.87), (82.22, 3.37)),
    ),
    Published(
        table="IV",
        approach="Model_Multi+MIAL",
        recipe="multi_mial",
        data="as Universal Model",
        scores=five((70.76, 0.58), (99.31, 0.27), (77.19, 1.05), (76.13, 0.44), (82.44, 3.54)),
    ),
    Published(
        table="IV",
        approach="Model_Multi+SC",
        recipe="multi_sc",
        data="as Universal Model",
        scores=five((71.14, 0.61), (98.94, 0.25), (75.83, 0.49), (75.62, 0.33), (83.00, 3.40)),
    ),
    Published(
        table="V",
        approach="From scratch, corrupted labels",
        recipe=None,
        data="none",
        scores={"bts": (52.79, 5.28), "las_ct": (62.09, 2.73), "las_mr": (64.36, 0.60)},
    ),
    Published(
        table="V",
        approach="Model Genesis, corrupted labels",
        recipe="genesis",
        data="as above",
        scores={"bts": (67.45, 1.51), "las_ct": (68.49, 3.44), "las_mr": (72.36, 1.26)},
    ),
    Published(
        table="V",
        approach="Universal Model, corrupted labels",
        recipe="paper",
        data="as above",
        scores={"bts": (70.86, 0.76), "las_ct": (71.06, 1.53), "las_mr": (73.61, 1.08)},
    ),
)
