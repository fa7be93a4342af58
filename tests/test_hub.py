"""Names, the cache and what is proven of a file, with the real client and a local Hub."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants, hf_hub_download, scan_cache_dir

from local_hub import LocalHub
from universal_model_hub import catalog
from universal_model_hub.catalog import Weights
from universal_model_hub.errors import (
    ConfigError,
    DownloadError,
    IntegrityError,
    OfflineError,
    WeightsError,
)
from universal_model_hub.hub import client, download_model, resolve_model, verify_model
from universal_model_hub.hub.names import HubName, LocalName, parse_name
from universal_model_hub.hub.resolve import HubWarning

PYTHON_ROOT = Path(__file__).parent.parent
CONFIG = {"schema": 1, "name": "tiny", "kind": "unet", "architecture": "unet3d"}
WEIGHTS = bytes(range(256)) * 40
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()
FILES = {"config.json": json.dumps(CONFIG).encode(), "model.safetensors": WEIGHTS}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """A local Hub with one model at v1; no Xet, no token and no cache of this machine."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "default"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    with LocalHub(tmp_path / "hub") as server:
        server.add_repo("org/tiny", FILES)
        yield server


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder on disk."""
    path = tmp_path / "folder"
    path.mkdir()
    for name, content in FILES.items():
        (path / name).write_bytes(content)
    return path


def asked(hub: LocalHub) -> int:
    return len(hub.requests)


# Names


def test_a_hub_name_has_a_repository_and_a_revision():
    assert parse_name("hf-hub:org/name") == HubName("org/name", "main")
    assert parse_name("hf-hub:org/name@v1.0") == HubName("org/name", "v1.0")
    assert parse_name("hf-hub:org/name", "refs/pr/1") == HubName("org/name", "refs/pr/1")


def test_the_same_revision_twice_is_one():
    assert parse_name("hf-hub:org/name@v1", "v1") == HubName("org/name", "v1")


def test_two_revisions_are_refused():
    with pytest.raises(ConfigError, match=r"v1.*v2"):
        parse_name("hf-hub:org/name@v1", "v2")


def test_a_revision_of_a_folder_or_a_bundled_model_is_refused(folder: Path):
    for name in (str(folder), f"local-dir:{folder}", "unet3d-compact"):
        with pytest.raises(ConfigError, match="Leave revision out"):
            parse_name(name, "main")


def test_a_bare_repository_is_refused_with_both_schemes():
    with pytest.raises(ConfigError) as caught:
        parse_name("org/name")
    assert "hf-hub:org/name" in str(caught.value)
    assert "local-dir:org/name" in str(caught.value)


def test_a_bare_path_that_exists_is_a_path(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder.parent.parent)
    relative = folder.relative_to(folder.parent.parent)
    assert len(relative.parts) == 2
    assert parse_name(str(relative)) == LocalName(relative / "model.safetensors")


def test_a_catalog_name_wins_over_a_folder_of_the_same_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    folder.rename(folder.parent / "unet3d")
    monkeypatch.chdir(folder.parent)
    assert isinstance(parse_name("unet3d"), Weights)
    assert isinstance(parse_name("./unet3d"), LocalName)
    assert isinstance(parse_name(Path("unet3d")), LocalName)


def test_every_way_to_name_a_folder_finds_the_same_file(folder: Path):
    for name in (str(folder), folder, f"local-dir:{folder}", folder / "model.safetensors"):
        assert parse_name(name) == LocalName(folder / "model.safetensors")


def test_c05_an_unknown_name_lists_the_near_ones():
    with pytest.raises(ConfigError, match="Did you mean unet3d"):
        resolve_model("unet3d-compat")


@pytest.mark.parametrize(
    "name",
    [
        "",
        "hf-hub:",
        "hf-hub:name",
        "hf-hub:a/../b",
        "hf-hub:../b",
        "hf-hub:/etc/passwd",
        "hf-hub:org/name/more",
        "hf-hub:org/na me",
        "hf-hub:org/name@",
        "hf-hub:org/name@../x",
        "hf-hub:org/name@a b",
        "hf-hub:http://evil/x",
        "hf-hub:org/" + "x" * 97,
        "http://evil/x",
        "https://huggingface.co/org/name",
        "org/name@v1",
        "a\0b",
    ],
)
def test_h18_a_malformed_name_is_refused_without_a_request(hub: LocalHub, name: str):
    with pytest.raises(ConfigError):
        resolve_model(name, endpoint=hub.url)
    assert asked(hub) == 0


def test_h18_a_malformed_endpoint_is_refused():
    with pytest.raises(ConfigError, match="address"):
        resolve_model("hf-hub:org/name", endpoint="ftp://x")


# On disk


def test_a_folder_resolves_to_its_files(folder: Path):
    model = resolve_model(folder)
    assert (model.folder, model.weights) == (folder, folder / "model.safetensors")
    assert (model.sha256, model.verified, model.repo_id) == (SHA256, "local", None)


def test_a_folder_that_is_not_there_or_not_whole_is_refused(folder: Path):
    with pytest.raises(ConfigError, match="does not exist"):
        resolve_model(folder / "no")
    (folder / "config.json").rename(folder / "other.json")
    with pytest.raises(ConfigError, match=r"config\.json"):
        resolve_model(folder)
    (folder / "model.safetensors").rename(folder / "model.pt")
    with pytest.raises(WeightsError, match=r"Expected model\.safetensors"):
        resolve_model(folder)
    with pytest.raises(WeightsError, match="save_pretrained"):
        resolve_model(folder / "model.pt")


def test_weights_that_their_config_does_not_describe_are_refused(folder: Path):
    (folder / "config.json").write_text(json.dumps({**CONFIG, "sha256": "0" * 64}))
    with pytest.raises(IntegrityError, match="0000"):
        resolve_model(folder)
    (folder / "config.json").write_text(json.dumps({**CONFIG, "sha256": SHA256}))
    assert resolve_model(folder).sha256 == SHA256


def test_w13_a_huge_config_is_refused_unparsed(folder: Path):
    with (folder / "config.json").open("r+b") as stream:
        stream.truncate(1 << 40)  # sparse: a terabyte that takes no room
    with pytest.raises(ConfigError, match="at most 1 MB"):
        resolve_model(folder)


def test_weights_not_trained_yet_are_refused_plainly(tmp_path, monkeypatch):
    monkeypatch.setattr(catalog, "BUNDLED", tmp_path)
    with pytest.raises(WeightsError, match=r"not trained yet.*pretrained=False"):
        resolve_model("unet3d-compact")


def test_weights_not_published_yet_are_refused_plainly():
    with pytest.raises(WeightsError, match=r"not published yet.*pretrained=False"):
        resolve_model("unet3d")


def bundle(monkeypatch: pytest.MonkeyPatch, folder: Path, sha256: str) -> None:
    row = Weights(
        name="folder",
        source="bundled",
        kind="unet",
        architecture="unet3d",
        summary="",
        sha256=sha256,
    )
    monkeypatch.setattr(catalog, "BUNDLED", folder.parent)
    monkeypatch.setitem(catalog.WEIGHTS, "folder", row)


def test_bundled_weights_are_pinned(folder: Path, monkeypatch: pytest.MonkeyPatch):
    bundle(monkeypatch, folder, SHA256)
    assert resolve_model("folder").verified == "pinned"


def test_changed_bundled_weights_are_refused(folder: Path, monkeypatch: pytest.MonkeyPatch):
    bundle(monkeypatch, folder, "0" * 64)
    with pytest.raises(IntegrityError, match="Reinstall"):
        resolve_model("folder")


# From the Hub


def test_a_model_of_the_hub_is_downloaded_and_proven(hub: LocalHub, tmp_path: Path):
    model = resolve_model("hf-hub:org/tiny", endpoint=hub.url, cache_dir=tmp_path / "c")
    assert model.weights.read_bytes() == WEIGHTS
    assert model.config.read_bytes() == FILES["config.json"]
    assert (model.sha256, model.verified) == (SHA256, "hub")
    assert model.revision == hub.resolve("org/tiny", "main")
    assert model.folder == model.config.parent


def test_a_download_brings_the_card_if_there_is_one(hub: LocalHub, tmp_path: Path):
    options = {"endpoint": hub.url, "cache_dir": tmp_path / "c"}
    model = download_model("hf-hub:org/tiny", **options)
    assert sorted(path.name for path in model.folder.iterdir()) == sorted(FILES)
    hub.add_repo("org/tiny", {"README.md": b"# Tiny"})
    model = download_model("hf-hub:org/tiny", **options)
    assert (model.folder / "README.md").read_bytes() == b"# Tiny"


def test_the_configuration_is_asked_for_first(hub: LocalHub, tmp_path: Path):
    resolve_model("hf-hub:org/tiny", endpoint=hub.url, cache_dir=tmp_path / "c")
    assert hub.requests[0].path.endswith("/config.json")


def test_the_cache_is_the_clients_own(hub: LocalHub, tmp_path: Path):
    cache = tmp_path / "c"
    model = resolve_model("hf-hub:org/tiny", endpoint=hub.url, cache_dir=cache)
    path = hf_hub_download(
        "org/tiny", "model.safetensors", cache_dir=cache, endpoint=hub.url, local_files_only=True
    )
    assert Path(path) == model.weights
    assert not scan_cache_dir(cache).warnings


def test_files_that_the_client_downloaded_are_taken_as_they_are(hub: LocalHub, tmp_path: Path):
    for name in FILES:
        hf_hub_download("org/tiny", name, cache_dir=tmp_path / "c", endpoint=hub.url)
    before = asked(hub)
    model = resolve_model(
        "hf-hub:org/tiny", endpoint=hub.url, cache_dir=tmp_path / "c", local_files_only=True
    )
    assert (model.sha256, model.verified, asked(hub)) == (SHA256, "hub", before)


def test_the_clients_default_cache_is_used(hub: LocalHub, tmp_path: Path):
    model = resolve_model("hf-hub:org/tiny", endpoint=hub.url)
    assert model.weights.is_relative_to(tmp_path / "default")


def test_a_commit_in_the_cache_costs_no_request(hub: LocalHub, tmp_path: Path):
    first = resolve_model("hf-hub:org/tiny", endpoint=hub.url, cache_dir=tmp_path / "c")
    before = asked(hub)
    again = resolve_model(
        f"hf-hub:org/tiny@{first.revision}", endpoint=hub.url, cache_dir=tmp_path / "c"
    )
    assert asked(hub) == before
    assert (again.weights, again.verified) == (first.weights, "hub")


def test_a_branch_in_the_cache_costs_one_request(hub: LocalHub, tmp_path: Path):
    resolve_model("hf-hub:org/tiny", endpoint=hub.url, cache_dir=tmp_path / "c")
    before = asked(hub)
    resolve_model("hf-hub:org/tiny", endpoint=hub.url, cache_dir=tmp_path / "c")
    assert asked(hub) == before + 1


def test_a_moved_branch_is_followed_and_the_old_commit_stays(hub: LocalHub, tmp_path: Path):
    old = resolve_model("hf-hub:org/tiny", endpoint=hub.url, cache_dir=tmp_path / "c")
    hub.add_repo("org/tiny", {"model.safetensors": b"new" * 99})
    new = resolve_model("hf-hub:org/tiny", endpoint=hub.url, cache_dir=tmp_path / "c")
    assert new.weights.read_bytes() == b"new" * 99
    assert old.weights.read_bytes() == WEIGHTS
    assert new.config.samefile(old.config)  # the same content is stored once


def test_tags_and_other_branches_resolve(hub: LocalHub, tmp_path: Path):
    hub.set_ref("org/tiny", "tags", "v1", str(hub.resolve("org/tiny", "main")))
    hub.add_repo("org/tiny", {"model.safetensors": b"later"})
    model = resolve_model(
        "hf-hub:org/tiny", revision="v1", endpoint=hub.url, cache_dir=tmp_path / "c"
    )
    assert model.sha256 == SHA256


def test_h07_offline_and_cached_makes_no_request(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cache = tmp_path / "c"
    first = resolve_model("hf-hub:org/tiny", endpoint=hub.url, cache_dir=cache)
    hub.set_ref("org/tiny", "tags", "v1", str(first.revision))
    resolve_model("hf-hub:org/tiny@v1", endpoint=hub.url, cache_dir=cache)
    before = asked(hub)
    for name in ("hf-hub:org/tiny", "hf-hub:org/tiny@v1", f"hf-hub:org/tiny@{first.revision}"):
        model = resolve_model(name, endpoint=hub.url, cache_dir=cache, local_files_only=True)
        assert (model.weights, model.verified) == (first.weights, "hub")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert resolve_model("hf-hub:org/tiny", endpoint=hub.url, cache_dir=cache).sha256 == SHA256
    assert asked(hub) == before


def test_h08_offline_and_not_cached_names_the_variable(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    started = time.monotonic()
    with pytest.raises(OfflineError, match=r"local_files_only=True.*umh download"):
        resolve_model("hf-hub:org/tiny", cache_dir=tmp_path, local_files_only=True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for name in ("hf-hub:org/tiny", "hf-hub:org/tiny@" + "0" * 40):
        with pytest.raises(OfflineError, match="HF_HUB_OFFLINE is set"):
            resolve_model(name, endpoint=hub.url, cache_dir=tmp_path)
    assert time.monotonic() - started < 1
    assert asked(hub) == 0


def test_an_unreachable_hub_leaves_the_cached_branch_with_a_warning(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cache = tmp_path / "c"
    first = resolve_model("hf-hub:org/tiny", endpoint=hub.url, cache_dir=cache)
    hub.add_fault("status", code=503)
    monkeypatch.setattr(client, "PAUSE", 0.01)
    with pytest.warns(HubWarning, match="cached earlier"):
        again = resolve_model("hf-hub:org/tiny", endpoint=hub.url, cache_dir=cache)
    assert again.weights == first.weights


# Hashing once


def count_hashes(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    from universal_model_hub.hub import fetch

    hashed: list[Path] = []
    real = fetch.hashes_of

    def hashes_of(path: Path) -> tuple[str, str]:
        hashed.append(path)
        return real(path)

    monkeypatch.setattr(fetch, "hashes_of", hashes_of)
    return hashed


def test_a_cached_file_is_hashed_once(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    model = download_model("hf-hub:org/tiny", endpoint=hub.url, cache_dir=tmp_path / "c")
    hashed = count_hashes(monkeypatch)
    name = f"hf-hub:org/tiny@{model.revision}"
    resolve_model(name, cache_dir=tmp_path / "c")
    assert hashed == []
    resolve_model(name, cache_dir=tmp_path / "c", verify=True)
    assert len(hashed) == 2
    verify_model(name, cache_dir=tmp_path / "c")
    assert len(hashed) == 4


@pytest.mark.parametrize("change", ["mtime", "inode", "size"])
def test_a_file_that_looks_changed_is_hashed_again(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str
):
    model = download_model("hf-hub:org/tiny", endpoint=hub.url, cache_dir=tmp_path / "c")
    blob = model.weights.resolve()
    stat = blob.stat()
    if change == "mtime":
        os.utime(blob, ns=(stat.st_atime_ns, stat.st_mtime_ns + 1))
    elif change == "inode":
        shutil.copy2(blob, blob.with_name("copy"))
        blob.with_name("copy").replace(blob)
    else:
        with blob.open("ab") as stream:
            stream.write(b"x")
        os.utime(blob, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    hashed = count_hashes(monkeypatch)
    again = resolve_model(
        f"hf-hub:org/tiny@{model.revision}", endpoint=hub.url, cache_dir=tmp_path / "c"
    )
    assert hashed
    assert again.weights.read_bytes() == WEIGHTS


def test_a_same_size_change_behind_the_sidecar_is_found_by_verify(hub: LocalHub, tmp_path: Path):
    model = download_model("hf-hub:org/tiny", endpoint=hub.url, cache_dir=tmp_path / "c")
    blob = model.weights.resolve()
    stat = blob.stat()
    with blob.open("r+b") as stream:
        stream.write(b"!")
    os.utime(blob, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(IntegrityError, match="content differs"):
        verify_model("hf-hub:org/tiny", cache_dir=tmp_path / "c")
    healed = download_model("hf-hub:org/tiny", endpoint=hub.url, cache_dir=tmp_path / "c")
    assert healed.weights.read_bytes() == WEIGHTS


@pytest.mark.parametrize("sidecar", [b"", b"[]", b"\xff", b'{"model.safetensors": {"size": 1}}'])
def test_a_damaged_sidecar_costs_only_time(hub: LocalHub, tmp_path: Path, sidecar: bytes):
    model = download_model("hf-hub:org/tiny", endpoint=hub.url, cache_dir=tmp_path / "c")
    (path,) = (tmp_path / "c").rglob(".umh/*.json")
    path.write_bytes(sidecar)
    again = resolve_model("hf-hub:org/tiny", cache_dir=tmp_path / "c", local_files_only=True)
    assert (again.sha256, again.verified) == (model.sha256, "hub")
    assert json.loads(path.read_bytes())["model.safetensors"]["sha256"] == SHA256


def test_without_links_offline_and_never_hashed_a_file_proves_nothing(tmp_path: Path):
    commit = "1" * 40
    folder = tmp_path / "models--org--tiny" / "snapshots" / commit
    folder.mkdir(parents=True)
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    model = resolve_model(f"hf-hub:org/tiny@{commit}", cache_dir=tmp_path, local_files_only=True)
    assert (model.sha256, model.verified) == (SHA256, "local")


def test_where_links_fail_the_file_itself_lies_in_the_commit(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def symlink_to(*args: object) -> None:
        raise OSError(1314, "A required privilege is not held by the client")

    monkeypatch.setattr(Path, "symlink_to", symlink_to)
    model = download_model("hf-hub:org/tiny", endpoint=hub.url, cache_dir=tmp_path / "c")
    assert not model.weights.is_symlink()
    before = asked(hub)
    again = resolve_model(f"hf-hub:org/tiny@{model.revision}", cache_dir=tmp_path / "c")
    assert (again.sha256, again.verified, asked(hub)) == (SHA256, "hub", before)


# The catalog


def publish_row(monkeypatch: pytest.MonkeyPatch, hub: LocalHub, sha256: str) -> None:
    row = Weights(
        name="tiny",
        source="hub",
        kind="unet",
        architecture="unet3d",
        summary="",
        repo_id="org/tiny",
        revision=hub.resolve("org/tiny", "main"),
        sha256=sha256,
    )
    monkeypatch.setitem(catalog.WEIGHTS, "tiny", row)


def test_a_catalog_row_is_pinned(hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    publish_row(monkeypatch, hub, SHA256)
    for _ in range(2):
        model = resolve_model("tiny", endpoint=hub.url, cache_dir=tmp_path / "c")
        assert (model.name, model.verified, model.sha256) == ("tiny", "pinned", SHA256)


def test_a_catalog_row_with_another_content_is_refused(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    publish_row(monkeypatch, hub, "0" * 64)
    with pytest.raises(IntegrityError, match="0000"):
        resolve_model("tiny", endpoint=hub.url, cache_dir=tmp_path / "c")
    resolve_model("hf-hub:org/tiny", endpoint=hub.url, cache_dir=tmp_path / "c")
    with pytest.raises(IntegrityError, match="content differs"):
        resolve_model("tiny", cache_dir=tmp_path / "c", local_files_only=True)


def test_another_revision_of_a_catalog_row_is_not_pinned(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    publish_row(monkeypatch, hub, SHA256)
    hub.add_repo("org/tiny", {"model.safetensors": b"newer"})
    model = resolve_model("tiny", revision="main", endpoint=hub.url, cache_dir=tmp_path / "c")
    assert (model.verified, model.weights.read_bytes()) == ("hub", b"newer")


def test_a_row_not_published_is_refused_plainly(
    hub: LocalHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    row = Weights(name="t", source="hub", kind="unet", architecture="unet3d", summary="")
    monkeypatch.setitem(catalog.WEIGHTS, "t", row)
    with pytest.raises(WeightsError, match=r"not published yet.*pretrained=False"):
        resolve_model("t", endpoint=hub.url, cache_dir=tmp_path)
    assert asked(hub) == 0


# The machine


def test_the_environment_is_left_alone(hub: LocalHub, tmp_path: Path):
    before = dict(os.environ)
    download_model("hf-hub:org/tiny", endpoint=hub.url, cache_dir=tmp_path / "c", token="hf_x")
    assert dict(os.environ) == before


def test_the_clients_environment_variables_work(hub: LocalHub, tmp_path: Path):
    code = (
        "from universal_model_hub.hub import resolve_model as r; m = r('hf-hub:org/tiny'); "
        "print(m.verified, m.weights)"
    )
    env = {**os.environ, **hub.env(), "HF_HUB_CACHE": str(tmp_path / "elsewhere")}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=PYTHON_ROOT, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"hub {tmp_path / 'elsewhere'}")
    assert all(request.authorized for request in hub.requests)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="needs another user")
def test_h13_a_read_only_cache_with_the_file_is_enough(hub: LocalHub, tmp_path: Path):
    # Another user than root, for whom modes mean something; in a place that it can reach.
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        download_model("hf-hub:org/tiny", endpoint=hub.url, cache_dir=root)
        shutil.rmtree(root / "models--org--tiny" / ".umh")
        for path in (root, *root.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o555 if path.is_dir() else 0o444)
        # As root first, elsewhere: the other user may be unable to import from where Python lies.
        code = (
            "import os, sys; from universal_model_hub.hub import resolve_model as r; "
            "r('hf-hub:org/tiny', cache_dir=sys.argv[2]); os.setuid(65534); "
            "m = r('hf-hub:org/tiny', cache_dir=sys.argv[1]); print(m.sha256, m.verified)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, name, str(tmp_path / "other")],
            cwd=PYTHON_ROOT,
            env={**os.environ, **hub.env(), "HF_HOME": name},
            capture_output=True,
            text=True,
        )
        assert done.stdout.split() == [SHA256, "hub"], done.stderr
        assert not list(root.rglob(".umh"))


def test_a_cache_that_cannot_be_made_is_a_typed_error(hub: LocalHub, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DownloadError, match="cannot be used"):
        resolve_model("hf-hub:org/tiny", endpoint=hub.url, cache_dir=tmp_path / "file" / "c")


def test_a_link_out_of_the_cache_is_refused(hub: LocalHub, tmp_path: Path):
    model = download_model("hf-hub:org/tiny", endpoint=hub.url, cache_dir=tmp_path / "c")
    outside = tmp_path / "outside.safetensors"
    outside.write_bytes(WEIGHTS)
    model.weights.unlink()
    model.weights.symlink_to(outside)
    with pytest.raises(IntegrityError, match="lie in the cache"):
        resolve_model("hf-hub:org/tiny", cache_dir=tmp_path / "c", local_files_only=True)
