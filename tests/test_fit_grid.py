"""Which grid a segmentation is trained on."""

import numpy as np
import pytest

from universal_model_hub import Volume, save_volume
from universal_model_hub.fit.data.cases import Case
from universal_model_hub.fit.data.grid import Grid, labels_kept, segmentation_grid

ONE = (1.0, 1.0, 1.0)


def label_map(thickness: int, spacing=1.0) -> Volume:
    """Plates of one class, as thick as the gaps between them."""
    array = np.zeros((48, 24, 24), np.uint8)
    array[(np.arange(48) // thickness) % 2 == 1] = 1
    return Volume(array, np.diag([spacing] * 3 + [1.0]))


def case_of(tmp_path, labels: Volume) -> Case:
    save_volume(labels, tmp_path / "labels.nii.gz")
    return Case(id="a", subject="a", images=(), labels=tmp_path / "labels.nii.gz", split="train")


def test_a_grid_that_is_no_coarser_keeps_every_label():
    assert labels_kept(label_map(1), ONE) == 1
    assert labels_kept(label_map(1, spacing=3.0), (3.0, 3.0, 3.0)) == 1
    assert labels_kept(label_map(1, spacing=3.0), ONE) == 1


@pytest.mark.parametrize("factor", [1.5, 2.0, 3.0])
def test_thick_structures_bear_a_coarser_grid_and_thin_ones_do_not(factor):
    coarse = (factor,) * 3
    assert labels_kept(label_map(12), coarse) > 0.9
    assert labels_kept(label_map(1), coarse) < 0.75


def test_an_empty_label_map_bears_nothing():
    assert labels_kept(Volume(np.zeros((8, 8, 8), np.uint8), np.eye(4)), (2.0,) * 3) == 0


def test_the_grid_grows_until_a_cube_sees_a_third_of_the_scan_or_the_labels_suffer(tmp_path):
    thick, thin = case_of(tmp_path, label_map(12)), tmp_path / "thin"
    thin.mkdir()
    shape = (360, 360, 332)
    assert segmentation_grid([thick], ONE, shape, 40).spacing == (3.0, 3.0, 3.0)
    assert segmentation_grid([thick], ONE, (250, 200, 200), 40).spacing == (2.0, 2.0, 2.0)
    assert segmentation_grid([thick], ONE, (100, 100, 100), 40) == Grid(ONE)
    assert segmentation_grid([case_of(thin, label_map(1))], ONE, shape, 40) == Grid(ONE)
    assert segmentation_grid([thick], (3.0, 3.0, 3.0), (120, 120, 110), 40) == Grid((3.0, 3.0, 3.0))


def test_the_grid_says_what_the_labels_lose(tmp_path):
    grid = segmentation_grid([case_of(tmp_path, label_map(12))], ONE, (360, 360, 332), 40)
    assert grid.labels_kept == pytest.approx(labels_kept(label_map(12), grid.spacing))
