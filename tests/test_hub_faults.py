"""What the Hub, the network, the disk and other processes can do to a download."""

import hashlib
import logging
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from test_hub import FILES, PYTHON_ROOT, SHA256, WEIGHTS

from local_hub import Fault, LocalHub
from universal_model_hub.errors import (
    AccessError,
    ConfigError,
    DownloadError,
    IntegrityError,
    NotFoundError,
    OfflineError,
    UniversalModelError,
)
from universal_model_hub.hub import LocalModel, client, download_model, resolve_model, stream

TOKEN = "hf_SecretSecretSecretSecret"
CONFIG_PATH, WEIGHTS_PATH = "*/resolve/*/config.json", "*/resolve/*/model.safetensors"
# Jobs that a shell put in the background ignore Ctrl-C, and so would what they start.
RUN = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    "import sys, time; from universal_model_hub.hub import resolve_model as r\n"
    "from universal_model_hub.errors import UniversalModelError\n"
    "start = time.monotonic()\n"
    "try: print(r('hf-hub:org/tiny', cache_dir=sys.argv[1]).sha256)\n"
    "except UniversalModelError as e: print(type(e).__name__, time.monotonic() - start, e)\n"
)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses and timeouts."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 0.4)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.4)
    for module in (client, stream):
        monkeypatch.setattr(module, "PAUSE", 0.01)


@pytest.fixture
def hub(tmp_path: Path, quick: None) -> Iterator[LocalHub]:
    """A local Hub that wants a token, with one model."""
    with LocalHub(tmp_path / "hub", token=TOKEN) as server:
        server.add_repo("org/tiny", FILES)
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """An empty cache folder."""
    return tmp_path / "cache"


def load(hub: LocalHub, cache: Path, **options: Any) -> LocalModel:
    options = {"endpoint": hub.url, "token": TOKEN, "cache_dir": cache, **options}
    return resolve_model("hf-hub:org/tiny", **options)


def run(hub: LocalHub, cache: Path, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(cache)],
        cwd=PYTHON_ROOT,
        env={**os.environ, **hub.env(), **env},
        stdout=subprocess.PIPE,
        text=True,
    )


def incomplete(cache: Path) -> list[Path]:
    return list(cache.rglob("*.incomplete"))


def check_nothing_wrong_is_kept(hub: LocalHub, cache: Path) -> None:
    """Whatever the cache holds is whole; the model is not taken from it as if it were there."""
    assert incomplete(cache) == []
    for blob in cache.rglob("blobs/*"):
        data = blob.read_bytes()
        git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        assert blob.name in (hashlib.sha256(data).hexdigest(), git)
    with pytest.raises(OfflineError):
        load(hub, cache, local_files_only=True)


# Once: the download succeeds


@pytest.mark.parametrize(
    ("kind", "path", "method", "options"),
    [
        ("drop", WEIGHTS_PATH, "GET", {}),
        ("drop", WEIGHTS_PATH, "GET", {"keep": 0}),
        ("drop", CONFIG_PATH, "GET", {}),
        ("stall", WEIGHTS_PATH, "GET", {"seconds": 1}),
        ("stall", WEIGHTS_PATH, "HEAD", {"seconds": 1}),
        ("stall", CONFIG_PATH, None, {"seconds": 1}),
        ("truncate", WEIGHTS_PATH, "GET", {}),
        ("truncate", WEIGHTS_PATH, "GET", {"keep": 0}),
        ("pad", WEIGHTS_PATH, "GET", {}),
        ("status", WEIGHTS_PATH, "GET", {"code": 429}),
        ("status", WEIGHTS_PATH, "GET", {"code": 503}),
        ("status", WEIGHTS_PATH, "HEAD", {"code": 503}),
        ("status", CONFIG_PATH, "HEAD", {"code": 429}),
    ],
)
def test_h03_what_passes_is_outlasted(
    hub: LocalHub, cache: Path, kind: str, path: str, method: str | None, options: dict[str, Any]
):
    fault = hub.add_fault(kind, path, method=method, times=1, **options)
    assert load(hub, cache).weights.read_bytes() == WEIGHTS
    assert fault.hits == 1
    assert incomplete(cache) == []


def test_h03_a_dropped_download_goes_on_where_it_ended(hub: LocalHub, cache: Path):
    hub.add_fault("drop", WEIGHTS_PATH, method="GET", times=1, keep=4096)
    load(hub, cache)
    ranges = [r.range for r in hub.requests if r.method == "GET" and "model" in r.path]
    assert ranges == [None, "bytes=4096-"]


def test_h03_a_server_that_ignores_the_range_starts_over(hub: LocalHub, cache: Path):
    hub.add_fault("drop", WEIGHTS_PATH, method="GET", times=1)
    hub.add_fault("no_range", WEIGHTS_PATH, method="GET")
    assert load(hub, cache).sha256 == SHA256


def test_h05_a_500_on_get_is_tried_again(hub: LocalHub, cache: Path):
    hub.add_fault("status", WEIGHTS_PATH, method="GET", times=1, code=500)
    assert load(hub, cache).sha256 == SHA256
    assert hub.count("GET", WEIGHTS_PATH) == 2


@pytest.mark.parametrize("offset", [0, 5000, len(WEIGHTS) - 1])
def test_h01_a_flipped_bit_in_the_weights_is_downloaded_once_more(
    hub: LocalHub, cache: Path, offset: int
):
    hub.add_fault("corrupt", WEIGHTS_PATH, method="GET", times=1, offset=offset)
    assert load(hub, cache).weights.read_bytes() == WEIGHTS
    assert hub.count("GET", WEIGHTS_PATH) == 2


def test_h02_a_flipped_bit_in_the_config_is_downloaded_once_more(hub: LocalHub, cache: Path):
    hub.add_fault("corrupt", CONFIG_PATH, method="GET", times=1)
    assert load(hub, cache).config.read_bytes() == FILES["config.json"]


# Always: a typed error, nothing kept


@pytest.mark.parametrize("path", [WEIGHTS_PATH, CONFIG_PATH])
def test_h01_h02_wrong_content_twice_is_refused_and_not_kept(hub: LocalHub, cache: Path, path: str):
    hub.add_fault("corrupt", path, method="GET")
    with pytest.raises(IntegrityError, match="not kept"):
        load(hub, cache)
    assert hub.count("GET", path) == 2
    check_nothing_wrong_is_kept(hub, cache)
    hub.clear_faults()
    assert load(hub, cache).sha256 == SHA256


@pytest.mark.parametrize(
    ("kind", "method", "options", "error"),
    [
        ("drop", "GET", {"keep": 0}, OfflineError),
        ("drop", "GET", {"keep": 1}, OfflineError),  # a byte a time
        ("stall", "GET", {"seconds": 3}, OfflineError),
        ("stall", "HEAD", {"seconds": 3}, OfflineError),
        ("status", "GET", {"code": 500}, OfflineError),
        ("status", "GET", {"code": 429}, DownloadError),
        ("status", "HEAD", {"code": 500}, OfflineError),
        ("status", "GET", {"code": 418}, DownloadError),
        ("truncate", "GET", {"keep": 0}, DownloadError),
        ("truncate", "GET", {"keep": 1}, DownloadError),
        ("pad", "GET", {}, IntegrityError),
    ],
)
def test_h04_h15_what_stays_wrong_ends_in_an_error(
    hub: LocalHub,
    cache: Path,
    kind: str,
    method: str,
    options: dict[str, Any],
    error: type[UniversalModelError],
):
    started = time.monotonic()
    hub.add_fault(kind, WEIGHTS_PATH, method=method, **options)
    with pytest.raises(error) as caught:
        load(hub, cache)
    assert caught.type is error
    assert time.monotonic() - started < 5
    hub.clear_faults()
    check_nothing_wrong_is_kept(hub, cache)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_h04_with_the_clients_own_timeouts_a_stall_ends_within_a_minute(
    hub: LocalHub, cache: Path, method: str
):
    hub.add_fault("stall", WEIGHTS_PATH, method=method, seconds=100)
    output, _ = run(hub, cache).communicate(timeout=60)
    name, seconds, _ = output.split(maxsplit=2)
    assert name == "OfflineError"
    assert float(seconds) < 45


def test_h09_an_endpoint_that_is_down_ends_in_an_error(cache: Path):
    started = time.monotonic()
    with pytest.raises(OfflineError, match="cannot be reached"):
        resolve_model("hf-hub:org/tiny", endpoint="http://127.0.0.1:9", cache_dir=cache)
    assert time.monotonic() - started < 10


@pytest.mark.parametrize(
    ("headers", "path"),
    [
        ({"ETag": None, "X-Linked-Etag": None}, WEIGHTS_PATH),
        ({"ETag": '"abc"', "X-Linked-Etag": None}, WEIGHTS_PATH),
        ({"X-Repo-Commit": None}, CONFIG_PATH),
        ({"X-Repo-Commit": "main"}, CONFIG_PATH),
        ({"X-Repo-Commit": "../../evil"}, CONFIG_PATH),
        ({"X-Repo-Commit": "1" * 40}, WEIGHTS_PATH),
        ({"X-Linked-Etag": '"../../../evil"'}, WEIGHTS_PATH),
        ({"ETag": '"../../../../evil"'}, CONFIG_PATH),
        ({"X-Linked-Etag": '"/tmp/evil-evil"'}, WEIGHTS_PATH),
        ({"Content-Length": None, "X-Linked-Size": None}, WEIGHTS_PATH),
    ],
)
def test_h15_h16_headers_that_are_no_hubs_are_refused(
    hub: LocalHub, cache: Path, headers: dict[str, str | None], path: str
):
    hub.add_fault("header", path, method="HEAD", headers=headers)
    with pytest.raises(IntegrityError, match="malformed"):
        load(hub, cache)
    assert not list(cache.parent.rglob("*evil*"))
    hub.clear_faults()
    check_nothing_wrong_is_kept(hub, cache)


@pytest.mark.parametrize(
    ("headers", "error"),
    [
        ({"X-Linked-Etag": f'"{"0" * 64}"'}, IntegrityError),
        ({"X-Linked-Size": "100"}, IntegrityError),
        ({"X-Linked-Size": "0"}, IntegrityError),
        ({"X-Linked-Size": "99999"}, DownloadError),
        ({"X-Linked-Size": str(10**15)}, DownloadError),  # more than the disk has
    ],
)
def test_h15_headers_that_lie_about_the_content_are_found_out(
    hub: LocalHub, cache: Path, headers: dict[str, str], error: type[UniversalModelError]
):
    hub.add_fault("header", WEIGHTS_PATH, method="HEAD", headers=headers)
    with pytest.raises(error):
        load(hub, cache)
    hub.clear_faults()
    check_nothing_wrong_is_kept(hub, cache)


def test_w13_a_huge_config_is_refused_before_the_download(hub: LocalHub, cache: Path):
    hub.add_repo("org/tiny", {"config.json": bytes(1 << 21)})
    with pytest.raises(ConfigError, match="at most 1048576 bytes"):
        load(hub, cache)
    assert hub.count("GET") == 0


# Refusals


REFUSALS: list[tuple[str, dict[str, Any], type[UniversalModelError], str]] = [
    ("unauthorized", {}, AccessError, "401.*HF_TOKEN"),
    ("status", {"code": 401}, AccessError, "401.*HF_TOKEN"),
    ("status", {"code": 403}, AccessError, "forbids.*403.*permission"),
    ("gated", {}, AccessError, "gated.*accept its conditions.*HF_TOKEN"),
    ("not_found", {}, NotFoundError, "no such file"),
]


@pytest.mark.parametrize(("kind", "options", "error", "message"), REFUSALS)
def test_h06_a_refusal_says_which_and_what_to_do(
    hub: LocalHub,
    cache: Path,
    kind: str,
    options: dict[str, Any],
    error: type[UniversalModelError],
    message: str,
):
    hub.add_fault(kind, CONFIG_PATH, **options)
    with pytest.raises(error, match=message):
        load(hub, cache)
    assert len(hub.requests) == 1  # a refusal is not tried again


def test_h06_a_missing_repository_revision_and_file_differ(hub: LocalHub, cache: Path):
    hub.add_repo("org/empty", {"README.md": b"x"})
    options: dict[str, Any] = {"endpoint": hub.url, "token": TOKEN, "cache_dir": cache}
    messages = []
    for name in ("hf-hub:org/none", "hf-hub:org/tiny@v9", "hf-hub:org/empty"):
        with pytest.raises(NotFoundError) as caught:
            resolve_model(name, **options)
        messages.append(str(caught.value))
    assert "no repository org/none" in messages[0]
    assert "no such revision" in messages[1]
    assert "v9" in messages[1]
    assert "no such file: config.json at main of org/empty" in messages[2]


def test_h06_a_wrong_token_is_refused_even_if_the_branch_is_cached(hub: LocalHub, cache: Path):
    load(hub, cache)
    with pytest.raises(AccessError, match="401"):
        load(hub, cache, token="hf_wrong")


def test_a_token_that_no_header_can_hold_is_refused_unshown(hub: LocalHub, cache: Path):
    with pytest.raises(AccessError, match="without spaces") as caught:
        load(hub, cache, token=f"{TOKEN}\n")
    assert TOKEN not in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize(
    "fault",
    [
        Fault("unauthorized"),
        Fault("gated"),
        Fault("not_found"),
        Fault("status", options={"code": 403}),
        Fault("status", options={"code": 500}),
        Fault("corrupt", method="GET"),
        Fault("drop", method="GET", options={"keep": 0}),
        Fault("header", options={"headers": {"ETag": f'"{TOKEN}"', "X-Repo-Commit": TOKEN}}),
        Fault("stall", options={"seconds": 2}),
    ],
    ids=lambda fault: f"{fault.kind}-{fault.options.get('code', '')}",
)
def test_threat_3_4_no_output_and_no_file_holds_the_token(
    hub: LocalHub,
    cache: Path,
    fault: Fault,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
):
    caplog.set_level(logging.INFO)  # below it the HTTP library logs what the server sends
    hub.faults += [fault, Fault("header", options={"headers": {"X-Error-Message": TOKEN}})]
    with pytest.raises(UniversalModelError) as caught:
        load(hub, cache)
    hub.clear_faults()
    model = load(hub, cache)
    output = capfd.readouterr()
    shown = [str(caught.value), repr(caught.value), repr(model), output.out, output.err]
    shown += [record.getMessage() for record in caplog.records]
    shown += ["".join(traceback.format_exception(caught.value))]
    assert not [text for text in shown if TOKEN in text]
    assert not [p for p in cache.rglob("*") if p.is_file() and TOKEN.encode() in p.read_bytes()]


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("place", ["http://localhost:{port}/cdn/{sha}", None])
def test_h16_the_token_stays_with_the_hub(
    quick: None, tmp_path: Path, cache: Path, place: str | None
):
    with LocalHub(tmp_path / "h", token=TOKEN, redirect_lfs=True) as server:
        server.add_repo("org/tiny", FILES)
        if place is not None:
            where = place.format(port=server.port, sha=SHA256)
            server.add_fault("header", WEIGHTS_PATH, headers={"Location": where})
        load(server, cache)
        elsewhere = [r for r in server.requests if r.path.startswith("/cdn/")]
        assert elsewhere
        assert not any(r.authorized for r in elsewhere)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("place", ["file:///etc/passwd", "http://127.0.0.1:9/x", "//", "ftp://x/y"])
def test_h16_a_redirect_to_nowhere_is_an_error(
    quick: None, tmp_path: Path, cache: Path, place: str
):
    with LocalHub(tmp_path / "h", redirect_lfs=True) as server:
        server.add_repo("org/tiny", FILES)
        server.add_fault("header", WEIGHTS_PATH, headers={"Location": place})
        with pytest.raises(DownloadError):
            load(server, cache)
        check_nothing_wrong_is_kept(server, cache)


def test_h17_both_files_come_from_one_commit(
    hub: LocalHub, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    first, take = hub.resolve("org/tiny", "main"), hub.take_faults

    def move_the_branch(method: str, path: str) -> list[Fault]:
        if hub.count() == 2:  # the commit is known, nothing is downloaded yet
            hub.add_repo("org/tiny", {"config.json": b"{}", "model.safetensors": b"new"})
        return take(method, path)

    monkeypatch.setattr(hub, "take_faults", move_the_branch)
    model = load(hub, cache)
    assert model.revision == first != hub.resolve("org/tiny", "main")
    assert model.weights.read_bytes() == WEIGHTS
    assert model.config.read_bytes() == FILES["config.json"]


# The cache


@pytest.mark.parametrize("name", ["weights", "config"])
@pytest.mark.parametrize("damage", ["flip", "empty", "delete"])
def test_h10_a_damaged_cache_is_healed_online_and_refused_offline(
    hub: LocalHub, cache: Path, name: str, damage: str
):
    model = load(hub, cache)
    blob = getattr(model, name).resolve()
    if damage == "delete":
        blob.unlink()
    else:
        data = blob.read_bytes()
        blob.write_bytes(b"" if damage == "empty" else bytes([data[0] ^ 1]) + data[1:])
    with pytest.raises(OfflineError if damage == "delete" else IntegrityError):
        load(hub, cache, local_files_only=True)
    # Healed by its commit too, for which a sound cache makes no request.
    healed = load(hub, cache, revision=model.revision)
    assert healed.weights.read_bytes() == WEIGHTS
    assert healed.config.read_bytes() == FILES["config.json"]


def test_h11_processes_at_once_download_once(hub: LocalHub, cache: Path):
    hub.add_fault("stall", WEIGHTS_PATH, method="GET", seconds=1.5)
    processes = [run(hub, cache) for _ in range(3)]
    assert [p.communicate(timeout=60)[0].strip() for p in processes] == [SHA256] * 3
    assert hub.count("GET", WEIGHTS_PATH) == 1
    assert hub.count("GET", CONFIG_PATH) == 1


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_h12_a_killed_download_is_healed_and_its_rest_removed_later(
    hub: LocalHub, cache: Path, how: signal.Signals
):
    hub.add_fault("stall", WEIGHTS_PATH, method="GET", seconds=20)
    process = run(hub, cache)
    deadline = time.monotonic() + 30
    while not hub.count("GET", WEIGHTS_PATH) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(how)
    process.communicate(timeout=30)
    assert process.returncode == -how
    left = incomplete(cache)
    assert len(left) == (0 if how == signal.SIGINT else 1)
    hub.clear_faults()
    assert load(hub, cache).sha256 == SHA256
    assert incomplete(cache) == left  # young: it may belong to a download that goes on
    for path in left:
        os.utime(path, (time.time() - 90_000,) * 2)
    hub.add_repo("org/tiny", {"model.safetensors": b"another"})
    load(hub, cache)
    assert incomplete(cache) == []


def test_h14_a_full_disk_is_a_typed_error_and_leaves_nothing(hub: LocalHub, cache: Path):
    # A limit on the size of files stands in for a full disk: it fails the same calls.
    code = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n" + RUN
    done = subprocess.run(
        [sys.executable, "-c", code, str(cache)],
        cwd=PYTHON_ROOT,
        env={**os.environ, **hub.env(), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.startswith("DownloadError"), done
    assert "No space left" in done.stdout
    check_nothing_wrong_is_kept(hub, cache)
    assert load(hub, cache).sha256 == SHA256


def test_an_lfs_pointer_in_place_of_the_weights_does_not_pass(hub: LocalHub, cache: Path):
    text = f"version https://git-lfs.github.com/spec/v1\noid sha256:{SHA256}\nsize 10240\n"
    hub.put_blob(text.encode())
    (hub.root / "blobs" / SHA256).write_text(text)
    with pytest.raises(DownloadError):
        load(hub, cache)


def test_a_download_repairs_what_loading_would_only_find_on_use(hub: LocalHub, cache: Path):
    model = load(hub, cache)
    blob = model.weights.resolve()
    stat = blob.stat()
    blob.write_bytes(WEIGHTS[:-1] + b"!")
    os.utime(blob, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    options: dict[str, Any] = {"endpoint": hub.url, "token": TOKEN, "cache_dir": cache}
    healed = download_model("hf-hub:org/tiny", **options)
    assert healed.weights.read_bytes() == WEIGHTS
