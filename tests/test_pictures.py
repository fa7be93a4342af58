"""Pictures show what the stages made: the very boxes, intensities and cubes."""

from pathlib import Path

import numpy as np
import pytest
import tiny_corpora
import torch
from matplotlib.patches import Rectangle

from training.config import CubesConfig, load_recipe
from training.corpora.case import Case
from training.cubes import CubeStore
from training.pictures import (
    Scan,
    boxes_of,
    by_corpus,
    clearest_cubes,
    curve,
    histograms_figure,
    main,
    new_figure,
    restored_figure,
    save_figure,
    scales_figure,
    scan_of,
)
from training.restoration import CORRUPTION_NAMES
from training.transforms import CorruptionConfig
from universal_model_hub.errors import ConfigError
from universal_model_hub.files import sha256_of, write_json
from universal_model_hub.volume import Volume

CONFIG = CubesConfig(size=(16, 16, 8))
PNG = b"\x89PNG\r\n"


class _Brighten(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 0.25


def ball(modality: str = "CT", side: int = 40) -> Scan:
    grid = np.indices((side, side, side)) - side / 2
    volume = (np.square(grid).sum(axis=0) < (0.45 * side) ** 2).astype(np.float32) * 0.6
    return Scan("ball", modality, (volume * 2000 - 1000).astype(np.int16), volume)


def small_store(folder: Path) -> CubeStore:
    folder.mkdir()
    for modality in ("CT", "MR"):
        array = np.zeros((4, 16, 16, 8), np.uint16)
        array[2, :8] = 40_000  # the most contrast among the largest scale
        array[1, :8] = 65_535
        case = f"scan-{modality}"
        np.save(folder / f"{case}.npy", array)
        source = {"corpus": "c", "subject": case, "case": case, "modality": modality}
        cubes = [
            {"scale_id": scale, "start": [0, 0, 0], "side": [4, 4, 4], "row": row}
            for row, scale in enumerate((0, 1, 2, 2))
        ]
        digest = sha256_of(folder / f"{case}.npy")
        write_json(folder / f"{case}.json", {"source": source, "sha256": digest, "cubes": cubes})
    return CubeStore(folder)


def test_outlines_are_the_boxes_that_were_cut():
    scan = ball()
    _, places = boxes_of(scan, CONFIG, 0)
    axial = scales_figure([scan], CONFIG).axes[0]
    outlines = [p for p in axial.patches if isinstance(p, Rectangle)]
    assert [(p.get_x() + 0.5, p.get_y() + 0.5) for p in outlines] == [
        tuple(place["start"][:2]) for place in places
    ]
    assert [(p.get_width(), p.get_height()) for p in outlines] == [
        tuple(place["side"][:2]) for place in places
    ]


def test_a_box_that_the_plane_misses_is_dotted():
    scan = ball()
    _, places = boxes_of(scan, CONFIG, 0)
    depth = places[0]["start"][2] + places[0]["side"][2] // 2
    met = [p["start"][2] <= depth < p["start"][2] + p["side"][2] for p in places]
    styles = [p.get_linestyle() for p in scales_figure([scan], CONFIG).axes[0].patches]
    assert styles == ["-" if one else ":" for one in met]
    assert met[0]


def test_the_resized_cubes_stand_beside_the_planes():
    scan = ball("MR")
    cubes, _ = boxes_of(scan, CONFIG, 3)
    axes = scales_figure([scan], CONFIG, seed=3).axes
    assert len(axes) == 6
    for axis, cube in zip(axes[3:], cubes, strict=True):
        assert np.array_equal(axis.images[0].get_array(), cube[:, :, 4].T)


def test_slices_keep_right_and_up_apart():
    scan = ball()
    scan.volume[:] = np.linspace(0, 1, 40)[:, None, None]  # brighter along X alone
    scan.volume[0] = 0.3
    axial, coronal, sagittal = (
        np.asarray(axis.images[0].get_array()) for axis in scales_figure([scan], CONFIG).axes[:3]
    )
    assert (np.diff(axial[:, 1:], axis=1) > 0).all()
    assert (np.diff(coronal[:, 1:], axis=1) > 0).all()
    assert np.ptp(sagittal) == 0


def test_a_scan_of_air_cannot_show_its_scales():
    empty = Scan("air", "CT", np.zeros((20,) * 3, np.int16), np.zeros((20,) * 3, np.float32))
    with pytest.raises(ConfigError, match="nothing but air"):
        scales_figure([empty], CONFIG)


def test_a_histogram_counts_every_voxel_once():
    axis = new_figure(2, 2).subplots()
    curve(axis, np.array([-50.0, 0.1, 0.6, 0.7, 99.0]), np.linspace(0, 1, 3))
    assert axis.lines[0].get_ydata().tolist() == [0.4, 0.6]


def test_normalization_brings_scanners_together():
    recipe = load_recipe("paper", ["preprocessing.spacing=[3, 3, 3]"])
    rng = np.random.default_rng(0)
    scans = []
    for gain in (300, 1200):
        array = (rng.random((20, 20, 20)) * gain).astype(np.int16)
        scans.append(scan_of(f"gain {gain}", "MR", Volume(array, np.diag([3.0, 3, 3, 1])), recipe))
    before, after = histograms_figure({"two scanners": scans}).axes

    def overlap(axis):
        return float(np.minimum(*(line.get_ydata() for line in axis.lines)).sum())

    assert overlap(before) < 0.4
    assert overlap(after) > 0.8


def test_restored_rows_are_what_the_network_answers():
    cube = np.full((16, 16, 8), 0.5, np.float32)
    figure = restored_figure(_Brighten().eval(), {"CT": cube}, CorruptionConfig())
    shown = np.array([np.asarray(axis.images[0].get_array()) for axis in figure.axes])
    original, corrupted, restored = shown.reshape(3, len(CORRUPTION_NAMES), 8 * 2, 16)
    assert (original == 0.5).all()
    assert np.allclose(restored, corrupted + 0.25)
    assert [axis.get_title() for axis in figure.axes[:4]] == [f"CT\n{n}" for n in CORRUPTION_NAMES]


def test_the_clearest_large_cube_of_each_modality_is_shown(tmp_path):
    chosen = clearest_cubes(small_store(tmp_path / "store"), range(8))
    assert list(chosen) == ["CT", "MR"]
    assert all(cube.max() == pytest.approx(40_000 / 65_535) for cube in chosen.values())


def test_cases_are_spread_over_a_corpus():
    cases = [
        Case(corpus="luna16", subject=str(i), id=str(i), modality="CT", volume=Path(str(i)))
        for i in range(9)
    ]
    assert [case.id for case in by_corpus(cases, 3)["luna16"]] == ["0", "4", "8"]
    assert len(by_corpus(cases[:2], 8)["luna16"]) == 2


def test_equal_figures_give_equal_files(tmp_path):
    for name in ("a.png", "b.png"):
        save_figure(scales_figure([ball()], CONFIG), tmp_path / name)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()
    assert (tmp_path / "a.png").read_bytes()[:6] == PNG


def test_histograms_come_from_a_command(tmp_path):
    tiny_corpora.luna16(tmp_path / "luna16")
    output = tmp_path / "histograms.png"
    arguments = ["histograms", f"luna16={tmp_path / 'luna16'}", "-o", str(output)]
    assert main(arguments) == 0
    assert output.read_bytes()[:6] == PNG


def test_an_unknown_corpus_is_one_line_and_exit_code_2(tmp_path, capsys):
    assert main(["scales", f"nowhere={tmp_path}", "-o", str(tmp_path / "x.png")]) == 2
    assert "corpus=folder" in capsys.readouterr().err
    assert not (tmp_path / "x.png").exists()
