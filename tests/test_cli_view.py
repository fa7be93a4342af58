"""``umh view``: what it prepares, whom it serves, and that a browser can draw it."""

import http.client
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from threading import Thread

import nibabel
import numpy as np
import pytest

import universal_model_hub as umh
from universal_model_hub.cli.main import main
from universal_model_hub.errors import ConfigError, GeometryError
from universal_model_hub.fit.transfer import build_model
from universal_model_hub.viewer import Scene, ViewerServer, make_scene
from universal_model_hub.viewer.scene import principal_colors

ROOT = Path(__file__).parent.parent
AFFINE = np.diag([-2.0, 2.0, 3.0, 1.0])
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
BROWSER = (
    *("--headless=new", "--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader"),
    *("--enable-unsafe-swiftshader", "--virtual-time-budget=20000", "--dump-dom"),
)


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    array = rng.normal(-700, 200, (20, 18, 16)).astype(np.int16)
    array[5:12, 5:12, 5:12] = 60
    return umh.save_volume(umh.Volume(array, AFFINE), tmp_path / "a <b>scan.nii.gz") or (
        tmp_path / "a <b>scan.nii.gz"
    )


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    array = np.zeros((20, 18, 16), np.uint8)
    array[5:12, 5:12, 5:9], array[5:12, 5:12, 9:12] = 1, 4
    umh.save_volume(umh.Volume(array, AFFINE), tmp_path / "labels.nii.gz")
    return tmp_path / "labels.nii.gz"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "scene").mkdir()
    return tmp_path / "scene"


@pytest.fixture
def server(place, scan, labels):
    with ViewerServer(make_scene(place, scan, [labels])) as running:
        Thread(target=running.serve_forever, daemon=True).start()
        yield running
        running.shutdown()


def ask(server: ViewerServer, path: str, *, host: str | None = None, method: str = "GET"):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=5)
    headers = {"Host": host or f"127.0.0.1:{server.server_port}"}
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    return answer, answer.read()


def test_a_scan_and_its_labels_become_files_with_a_description(place, scan, labels):
    scene = make_scene(place, scan, [labels], label_names={1: "liver"})
    first, second = scene.volumes
    assert first["kind"] == "scan"
    assert first["unit"] == "HU"
    assert first["window"] == [-160.0, 240.0]
    assert [(e["value"], e["name"]) for e in second["legend"]] == [(1, "liver"), (4, "label 4")]
    assert "lung" in scene.windows
    np.testing.assert_array_equal(
        umh.load_volume(place / second["file"]).array, umh.load_volume(labels).array
    )


def test_a_scan_of_any_format_is_served_as_nifti(tmp_path, place):
    sitk = pytest.importorskip("SimpleITK")
    image = sitk.GetImageFromArray(np.arange(60, dtype=np.int16).reshape(3, 4, 5))
    sitk.WriteImage(image, str(tmp_path / "scan.nrrd"))
    make_scene(place, tmp_path / "scan.nrrd")
    found = nibabel.load(place / "scan.nii")
    np.testing.assert_array_equal(found.get_fdata(), umh.load_volume(tmp_path / "scan.nrrd").array)


def test_labels_elsewhere_or_none_at_all_are_refused(tmp_path, place, scan, labels):
    found = umh.load_volume(labels)
    moved = AFFINE.copy()
    moved[2, 3] = 5
    for name, volume, error, message in (
        ("cut.nii", umh.Volume(found.array[:-1], AFFINE), GeometryError, r"got \(19, 18, 16\)"),
        ("moved.nii", umh.Volume(found.array, moved), GeometryError, "in another place"),
        ("half.nii", umh.Volume(found.array + 0.5, AFFINE), ConfigError, "is it a label map"),
    ):
        umh.save_volume(volume, tmp_path / name)
        with pytest.raises(error, match=message):
            make_scene(place, scan, [tmp_path / name])


def test_a_model_shows_what_it_found_how_sure_it_is_and_its_features(tmp_path, place, scan):
    model = build_model(None, num_classes=3, arguments={"width": 2})
    folder = umh.save_pretrained(
        model, tmp_path / "model", labels={0: "background", 1: "lung", 2: "bone"}
    )
    segmenter = umh.load_segmenter(folder)
    scene = make_scene(place, scan, model=segmenter, probabilities=True, show_features=True)
    kinds = [volume["kind"] for volume in scene.volumes]
    assert kinds == ["scan", "labels", "map", "map", "colors"]
    assert scene.volumes[3]["name"] == "probability of bone"
    share = nibabel.load(place / "probability2.nii").get_fdata()
    expected = umh.predict(segmenter, umh.load_volume(scan), output="probabilities")[2].array
    np.testing.assert_allclose(share, expected, atol=1 / 255)
    assert nibabel.load(place / "features.nii").get_data_dtype().names == ("R", "G", "B")


def test_components_become_colors_that_tell_regions_apart():
    array = np.zeros((5, 8, 8, 8), np.float32)
    array[:, :4] = np.array([1, 2, 0, 0, 1], np.float32).reshape(5, 1, 1, 1)
    array[:, 4:] = np.array([0, 0, 3, 1, 0], np.float32).reshape(5, 1, 1, 1)
    colors = principal_colors(array)
    assert colors.shape == (8, 8, 8, 3)
    assert abs(int(colors[0, 0, 0, 0]) - int(colors[7, 0, 0, 0])) == 255


def test_only_this_machine_with_the_address_gets_anything(server):
    assert server.server_address[0] == "127.0.0.1"
    token = server.token
    good, body = ask(server, f"/{token}/")
    assert good.status == 200
    assert b"umh view" in body
    assert "default-src 'none'" in good.headers["Content-Security-Policy"]
    assert good.headers["Cache-Control"] == "no-store"
    for path in (
        *("/", "/scene.json", "/wrong/scene.json", f"/{token}", f"/{token}/../scene.json"),
        *(f"/{token}/nothing.nii", f"/{token}/%2e%2e/setup.cfg", f"/{token}//etc/passwd"),
    ):
        assert ask(server, path)[0].status == 404, path
    for host in ("evil.example", f"evil.example:{server.server_port}", "127.0.0.1"):
        assert ask(server, f"/{token}/", host=host)[0].status == 403
    assert ask(server, f"/{token}/", method="POST")[0].status == 501


def test_every_file_comes_whole_and_with_its_type(server):
    _, body = ask(server, f"/{server.token}/scene.json")
    scene = json.loads(body)
    for volume in scene["volumes"]:
        answer, body = ask(server, f"/{server.token}/{volume['file']}")
        assert answer.status == 200
        assert len(body) == int(answer.headers["Content-Length"])
        assert ask(server, f"/{server.token}/{volume['file']}", method="HEAD")[1] == b""
    for name, kind in (("viewer.js", "text/javascript"), ("viewer.css", "text/css")):
        assert ask(server, f"/{server.token}/{name}")[0].headers["Content-Type"].startswith(kind)


def test_a_port_that_is_taken_is_told(server, place):
    with pytest.raises(ConfigError, match=f"free port, got {server.server_port}"):
        ViewerServer(Scene(place), server.server_port)


def test_bad_input_ends_before_anything_is_served(tmp_path, capsys, scan):
    assert main(["view", str(tmp_path / "no.nii.gz"), "--no-browser"]) == 2
    assert main(["view", str(scan), "--features", "--no-browser"]) == 2
    assert "Expected --model" in capsys.readouterr().err


def start(arguments: list[str]) -> tuple[subprocess.Popen, str]:
    process = subprocess.Popen(
        [sys.executable, "-m", "universal_model_hub", "view", *arguments, "--no-browser"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


@pytest.mark.slow
def test_the_command_serves_until_a_signal_and_leaves_nothing(scan, labels, tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    process, address = start([str(scan), str(labels)])
    try:
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/[\w-]{24}/", address)
        assert any((tmp_path / "tmp").iterdir())
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=20)
    assert process.returncode == 130
    assert not any((tmp_path / "tmp").iterdir())


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_a_browser_draws_the_page(scan, labels):
    process, address = start([str(scan), str(labels), "--label-names", "1=liver,4=<i>tumor</i>"])
    try:
        done = subprocess.run(
            [str(CHROMIUM), *BROWSER, address], capture_output=True, text=True, timeout=120
        )
    finally:
        process.terminate()
        process.communicate(timeout=20)
    assert 'data-state="ready"' in done.stdout, done.stderr[-2000:]
    assert "a &lt;b&gt;scan.nii.gz" in done.stdout
    assert "&lt;i&gt;tumor&lt;/i&gt;" in done.stdout
    assert "mm (right, front, top)" in done.stdout
