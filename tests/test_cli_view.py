"""``umh view``: what it prepares, whom it serves, and that a browser can draw it."""

import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from threading import Thread

import nibabel
import numpy as np
import pytest
from chromium import CHROMIUM, Browser

import universal_model_hub as umh
from universal_model_hub.cli.main import main
from universal_model_hub.errors import ConfigError, GeometryError
from universal_model_hub.fit.training.transfer import build_model
from universal_model_hub.viewer import Scene, ViewerServer, make_scene
from universal_model_hub.viewer.scene import color_of, principal_colors
from universal_model_hub.viewer.server import PAGE

ROOT = Path(__file__).parent.parent
AFFINE = np.diag([-2.0, 2.0, 3.0, 1.0])


@pytest.fixture
def scan(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    array = rng.normal(-700, 200, (20, 18, 16)).astype(np.int16)
    array[5:12, 5:12, 5:12] = 60
    umh.save_volume(umh.Volume(array, AFFINE), tmp_path / "a <b>scan.nii.gz")
    return tmp_path / "a <b>scan.nii.gz"


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
    assert next(iter(scene.windows.items())) == ("soft tissue", (-160.0, 240.0))
    assert set(scene.windows) == {"soft tissue", "lung", "bone", "brain", "full range"}
    legend = [(entry["value"], entry["name"], entry["ml"]) for entry in second["legend"]]
    assert legend == [(1, "liver", 2.35), (4, "label 4", 1.76)]  # 196 and 147 voxels of 12 mm^3
    numbers = np.array([0, 1, 0, 0, 2])  # in the order of the legend
    given = umh.load_volume(labels)
    shown = umh.load_volume(place / second["file"])
    np.testing.assert_array_equal(shown.array, numbers[given.array])
    np.testing.assert_allclose(shown.affine, given.affine)


def test_a_scan_that_is_no_ct_opens_in_the_range_that_it_fills(tmp_path, place):
    array = np.linspace(0, 1, 1000, dtype=np.float32).reshape(10, 10, 10)
    umh.save_volume(umh.Volume(array, AFFINE), tmp_path / "mr.nii")
    scene = make_scene(place, tmp_path / "mr.nii", modality="MR")
    assert scene.windows["automatic"] == pytest.approx((0.01, 0.995), abs=1e-3)
    assert scene.windows["full range"] == (0, 1)
    assert scene.volumes[0]["unit"] == ""


def test_labels_of_any_number_and_value_are_shown(tmp_path, place, scan):
    array = np.zeros((20, 18, 16), np.int32)
    array.flat[:401] = [-1, *range(0, 40_000, 100)]  # more than a byte counts; -1: not annotated
    umh.save_volume(umh.Volume(array, AFFINE), tmp_path / "many.nii.gz")
    legend = make_scene(place, scan, [tmp_path / "many.nii.gz"]).volumes[1]["legend"]
    assert [entry["value"] for entry in legend] == list(range(100, 40_000, 100))
    shown = umh.load_volume(place / "labels0.nii").array
    np.testing.assert_array_equal(shown.flat[:401], [0, 0, *range(1, 400)])


def test_colors_tell_labels_apart():
    colors = [color_of(value) for value in range(1, 60)]
    assert len(set(colors)) == len(colors)
    assert all(0 <= channel <= 255 for color in colors for channel in color)


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
        ("moved.nii", umh.Volume(found.array, moved), GeometryError, r"up to 2\.5 voxels off"),
        ("half.nii", umh.Volume(found.array + 0.5, AFFINE), ConfigError, "whole numbers"),
        ("minus.nii", umh.Volume(found.array - 3.0, AFFINE), ConfigError, "whole numbers"),
    ):
        umh.save_volume(volume, tmp_path / name)
        with pytest.raises(error, match=message):
            make_scene(place, scan, [tmp_path / name])


def test_labels_that_share_only_two_corners_with_the_scan_are_refused(tmp_path, place):
    cube = np.zeros((8, 8, 8), np.int16)
    umh.save_volume(umh.Volume(cube, np.eye(4)), tmp_path / "scan.nii")
    turned = np.eye(4)[[1, 2, 0, 3]]  # about the diagonal: first and last voxel stay
    umh.save_volume(umh.Volume(cube, turned), tmp_path / "turned.nii")
    with pytest.raises(GeometryError, match="voxels off"):
        make_scene(place, tmp_path / "scan.nii", [tmp_path / "turned.nii"])


def test_a_model_shows_what_it_found_how_sure_it_is_and_its_features(tmp_path, place, scan):
    model = build_model(None, num_classes=3, arguments={"width": 2})
    folder = umh.save_pretrained(
        model, tmp_path / "model", labels={0: "background", 1: "lung", 2: "bone"}
    )
    segmenter = umh.load_segmenter(folder)
    scene = make_scene(place, scan, model=segmenter, probabilities=True, show_features=True)
    kinds = [volume["kind"] for volume in scene.volumes]
    assert kinds == ["scan", "labels", "map", "map", "colors"]
    assert [volume["shown"] for volume in scene.volumes[1:]] == [True, False, False, False]
    assert scene.volumes[3]["name"] == "bone"
    legend = [0, *(entry["value"] for entry in scene.volumes[1]["legend"])]
    shown = np.array(legend)[umh.load_volume(place / "predicted.nii").array]
    volume = umh.load_volume(scan)
    np.testing.assert_array_equal(shown, umh.predict(segmenter, volume).array)
    share = nibabel.load(place / "probability2.nii").get_fdata()
    expected = umh.predict(segmenter, volume, output="probabilities")[2].array
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
        *(f"/{token[:-1]}/", f"/{token}/index.html/", f"/{token}/page/viewer.js"),
    ):
        assert ask(server, path)[0].status == 404, path
    for host in ("evil.example", f"evil.example:{server.server_port}", "127.0.0.1"):
        assert ask(server, f"/{token}/", host=host)[0].status == 403
    for method in ("HEAD", "POST", "PUT", "DELETE", "OPTIONS"):
        assert ask(server, f"/{token}/", method=method)[0].status == 501, method


def test_odd_requests_and_readers_that_leave_say_nothing_on_the_terminal(server, capfd):
    port = server.server_port
    for line in (b"GET * HTTP/1.0", b"GET /\xe9\xff/ HTTP/1.0", b"GET /%00/ HTTP/1.0"):
        with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
            client.sendall(line + f"\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
            assert client.recv(100).startswith(b"HTTP/1.0 404"), line
    with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # a reset
        head = f"GET /{server.token}/niivue.umd.js HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\n\r\n"
        client.sendall(head.encode())
        client.recv(100)
    assert ask(server, f"/{server.token}/")[0].status == 200
    assert capfd.readouterr().err == ""


def test_every_file_comes_whole_and_with_its_type(server):
    _, body = ask(server, f"/{server.token}/scene.json")
    scene = json.loads(body)
    for volume in scene["volumes"]:
        answer, body = ask(server, f"/{server.token}/{volume['file']}")
        assert answer.status == 200
        assert len(body) == int(answer.headers["Content-Length"])
    for name, kind in (("viewer.js", "text/javascript"), ("viewer.css", "text/css")):
        assert ask(server, f"/{server.token}/{name}")[0].headers["Content-Type"].startswith(kind)


def test_a_port_that_is_taken_is_told(server, place):
    with pytest.raises(ConfigError, match=f"free port, got {server.server_port}"):
        ViewerServer(Scene(place), server.server_port)


def test_bad_input_ends_before_anything_is_served(tmp_path, capsys, scan):
    for arguments, message in (
        ([str(tmp_path / "no.nii.gz")], "no such file"),
        ([str(scan), str(tmp_path / "no.nii.gz")], "no such file"),
        ([str(scan), str(scan)], "whole numbers from 0"),
        ([str(scan), "--features"], "Expected --model"),
        ([str(scan), "--model", "unet3d-compact"], "Expected --model to be a segmenter"),
        ([str(scan), "--label-names", "liver"], "expected names such as 1=liver"),
    ):
        try:
            code = main(["view", *arguments, "--no-browser"])
        except SystemExit as usage:
            code = usage.code
        said = capsys.readouterr()
        assert code == 2, arguments
        assert message in said.err
        assert said.out == ""


def test_every_part_of_the_page_is_ours_or_licensed_and_nothing_comes_from_elsewhere():
    names = {path.name for path in PAGE.iterdir()}
    assert names == {
        *("index.html", "viewer.js", "viewer.css", "niivue.umd.js", "LICENSE.niivue.txt"),
    }
    page = (PAGE / "index.html").read_text()
    assert not re.search(r"https?://|<script>|style=|\son\w+=", page)
    assert "For research only: not a medical device" in page
    assert "version 0.69.0" in (PAGE / "LICENSE.niivue.txt").read_text()
    assert b'"0.69.0"' in (PAGE / "niivue.umd.js").read_bytes()


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
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (apt install chromium)")
def test_a_browser_draws_the_page(scan, labels, tmp_path):
    model = build_model(None, num_classes=2, arguments={"width": 2})
    folder = umh.save_pretrained(model, tmp_path / "model", labels={0: "background", 1: "lung"})
    arguments = ["--label-names", "1=liver,4=<i>tumor</i>", "--model", str(folder)]
    more = ["--probabilities", "--features"]
    process, address = start([str(scan), str(labels), *arguments, *more])
    try:
        with Browser(tmp_path / "profile") as browser:
            browser.open(address)
            check_page(browser)
            check_saved_picture(browser, tmp_path / "saved")
            assert browser.messages == []
    finally:
        process.terminate()
        process.communicate(timeout=20)


def check_page(browser: Browser) -> None:
    assert browser.run("document.body.dataset.state") == "ready"
    assert browser.run("document.querySelector('h1').textContent") == "a <b>scan.nii.gz"
    assert "<i>tumor</i>" in browser.run("document.querySelector('ul').textContent")
    # The crosshair is at the center of the grid, in the first of the two labels.
    place = browser.run("document.getElementById('place').textContent").splitlines()
    assert place[0] == "crosshair: L 19.0, A 17.0, S 22.5 mm", place
    # Voxel (8, 8, 8) by its place in the picture: in a plane the pointer tells what lies there.
    wanted = "viewer.vox2frac([8, 8, 8])"
    browser.run(f"viewer.scene.crosshairPos = {wanted}, viewer.drawScene()")
    x, y = browser.run(f"viewer.frac2canvasPos({wanted}).slice(0, 2)")
    browser.mouse("mouseMoved", x, y)
    told = browser.run("document.getElementById('place').textContent")
    assert told.startswith("pointer: ")
    assert "value: 60 HU" in told
    assert "labels.nii.gz: liver" in told
    # A drag with the right button makes the window wider.
    browser.mouse("mousePressed", x, y, "right")
    browser.mouse("mouseMoved", x + 60, y, "right")
    browser.mouse("mouseReleased", x + 60, y, "right")
    assert browser.run("viewer.volumes[0].cal_max - viewer.volumes[0].cal_min") > 450
    # A map is loaded when it is asked for, and let go of with the key for all overlays.
    assert browser.run("viewer.volumes.length") == 4
    browser.run("[...document.querySelectorAll('.shown')].at(-1).click()")
    browser.wait_for("viewer.volumes.length === 5")
    assert "probability of lung: 0." in browser.run("document.getElementById('place').textContent")
    # Features cover everything in 3D: while they are on, the planes alone are drawn.
    assert browser.run("viewer.screenSlices.length") == 4
    browser.run("document.querySelectorAll('.shown')[2].click()")
    assert browser.run("viewer.screenSlices.length") == 3
    browser.key("o")
    browser.wait_for("viewer.volumes.length === 4")
    assert browser.run("viewer.screenSlices.length") == 4
    assert browser.run("viewer.volumes.slice(1).every((volume) => volume.opacity === 0)")


def check_saved_picture(browser: Browser, folder: Path) -> None:
    folder.mkdir()
    browser.command("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))
    browser.key("s")
    end = time.monotonic() + 60
    while not list(folder.glob("*.png")):
        assert time.monotonic() < end, "no picture was saved"
        time.sleep(0.2)
    (picture,) = folder.glob("*.png")
    assert picture.read_bytes().startswith(b"\x89PNG")
