"""Publishing: one commit of the right files, or nothing; with the real client and a local Hub."""

import hashlib
import json
import shutil
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from huggingface_hub import ModelCard, constants
from safetensors.torch import load_file, save_file
from torch import nn

from local_hub import Fault, LocalHub
from universal_model_hub.errors import (
    AccessError,
    ConfigError,
    DownloadError,
    IntegrityError,
    NotFoundError,
    PublishError,
    UniversalModelError,
    WeightsError,
)
from universal_model_hub.hub import client, resolve_model, stream
from universal_model_hub.loading import load_unet
from universal_model_hub.networks.unet3d import UNet3D
from universal_model_hub.publish import PushResult, push_to_hub
from universal_model_hub.saving import save_pretrained

TOKEN = "hf_SecretSecretSecretSecret"
METRIC = {"task": "phantom", "metric": "MAE", "value": 0.125, "std": 0.5, "n": 3, "source": "x"}
SENT = [".eval_results/phantom.yaml", "README.md", "config.json", "model.safetensors"]
COMMIT = "*/commit/*"


@pytest.fixture(scope="module")
def model() -> UNet3D:
    """The smallest U-Net there is, its weights drawn once."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return UNet3D(width=1).eval()


@pytest.fixture(scope="module")
def saved(model: UNet3D, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder, whole and with a license."""
    folder = tmp_path_factory.mktemp("saved") / "tiny"
    return save_pretrained(model, folder, license="apache-2.0", metrics=[METRIC])


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of the model folder, to change."""
    return Path(shutil.copytree(saved, tmp_path / "tiny"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalHub]:
    """A local Hub that wants a token; no Xet, no stored token, short pauses."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for module in (client, stream):
        monkeypatch.setattr(module, "PAUSE", 0.01)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)
    with LocalHub(tmp_path / "hub", token=TOKEN) as server:
        yield server


def push(hub: LocalHub, what: Path | nn.Module, **options: Any) -> PushResult:
    options = {"endpoint": hub.url, "token": TOKEN, **options}
    return push_to_hub(what, "org/tiny", **options)


def commits(hub: LocalHub) -> list[str]:
    log = hub.refs("org/tiny")["log"]
    assert isinstance(log, list)
    return log


def rewrite(folder: Path, **entries: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


def test_p07_what_is_published_loads_as_the_same_model(
    hub: LocalHub, folder: Path, model: UNet3D, tmp_path: Path
):
    result = push(hub, folder)
    name = f"hf-hub:org/tiny@{result.revision}"
    options: dict[str, Any] = {"endpoint": hub.url, "token": TOKEN, "cache_dir": tmp_path / "c"}
    got = resolve_model(name, **options)
    assert got.sha256 == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    x = torch.linspace(0, 1, 512).reshape(1, 1, 8, 8, 8)
    with torch.inference_mode():
        assert torch.equal(load_unet(name, **options)(x), model(x))


def test_one_commit_holds_the_files_and_no_other(hub: LocalHub, folder: Path):
    result = push(hub, folder)
    assert len(commits(hub)) == 2  # the empty one of the new repository, and ours
    assert commits(hub)[-1] == result.revision
    assert sorted(hub.files("org/tiny")) == SENT == sorted(f.path for f in result.files)
    assert result.url == f"{hub.url}/org/tiny/commit/{result.revision}"


def test_a_module_is_published_like_its_folder(hub: LocalHub, folder: Path):
    loaded = load_unet(folder)
    result = push(hub, loaded)
    assert sorted(hub.files("org/tiny")) == SENT
    assert result.revision == commits(hub)[-1]


def test_a_module_without_a_license_is_refused(hub: LocalHub, model: UNet3D):
    with pytest.raises(PublishError, match="license"):
        push(hub, model)


def test_the_card_gets_the_name_of_the_repository(hub: LocalHub, folder: Path):
    push(hub, folder)
    card = hub.read("org/tiny", "README.md").decode()
    assert "umh.load_unet('hf-hub:org/tiny')" in card
    assert ModelCard(card).data.license == "apache-2.0"


def test_a_card_that_was_edited_is_sent_as_it_is(hub: LocalHub, folder: Path):
    text = (folder / "README.md").read_text() + "\nBy hand.\n"
    (folder / "README.md").write_text(text)
    push(hub, folder)
    assert hub.read("org/tiny", "README.md").decode() == text


def test_the_metrics_become_results_unless_there_are_some(hub: LocalHub, folder: Path):
    push(hub, folder)
    (entry,) = yaml.safe_load(hub.read("org/tiny", SENT[0]))
    assert (entry["dataset"]["task_id"], entry["value"]) == ("phantom", 0.125)
    (folder / ".eval_results").mkdir()
    (folder / ".eval_results" / "own.yaml").write_text("[]\n")
    result = push(hub, folder)
    assert sorted(f.path for f in result.files) == [".eval_results/own.yaml", *SENT[1:]]


def test_the_same_content_again_makes_no_commit(hub: LocalHub, folder: Path):
    first = push(hub, folder)
    second = push(hub, folder)
    assert second.revision == first.revision
    assert len(commits(hub)) == 2


def test_a_tag_names_the_commit(hub: LocalHub, folder: Path):
    result = push(hub, folder, tag="v1.0")
    assert hub.refs("org/tiny")["tags"] == {"v1.0": result.revision}


def test_a_repository_is_made_only_if_asked_for(hub: LocalHub, folder: Path):
    with pytest.raises(NotFoundError, match="create=True"):
        push(hub, folder, create=False)
    push(hub, folder, private=True)
    assert hub.refs("org/tiny")["private"] is True
    push(hub, folder, create=False)


def test_a_branch_that_is_not_there_is_an_error(hub: LocalHub, folder: Path):
    push(hub, folder)
    with pytest.raises(NotFoundError, match="branch"):
        push(hub, folder, revision="other")
    assert len(commits(hub)) == 2


# Failures on the way


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        (Fault("status", "/lfs/*", "PUT", options={"code": 500}), DownloadError),
        (Fault("drop", "/lfs/*", "PUT", options={"keep": 0}), None),
        (Fault("status", "*/preupload/*", options={"code": 500}), DownloadError),
        (Fault("unauthorized", COMMIT), AccessError),
        (Fault("status", COMMIT, options={"code": 403}), AccessError),
        (Fault("status", COMMIT, options={"code": 500}), DownloadError),
        (Fault("status", "*/objects/batch", options={"code": 500}), DownloadError),
    ],
    ids=lambda value: f"{value.kind}-{value.path}" if isinstance(value, Fault) else "",
)
def test_p01_an_upload_that_fails_changes_nothing(
    hub: LocalHub, folder: Path, fault: Fault, error: type[UniversalModelError] | None
):
    hub.create_repo("org/tiny")
    before = commits(hub)
    hub.faults.append(fault)
    if error is None:  # the object arrived, and only the answer was cut short: all is well
        push(hub, folder)
        return
    with pytest.raises(error) as caught:
        push(hub, folder)
    assert commits(hub) == before
    assert TOKEN not in "".join(traceback.format_exception(caught.value))


def test_p02_a_lost_reply_to_the_commit_is_found_out(hub: LocalHub, folder: Path):
    hub.add_fault("drop", COMMIT, keep=0)
    result = push(hub, folder)
    assert len(commits(hub)) == 2
    assert commits(hub)[-1] == result.revision


def test_p02_if_nobody_can_tell_the_error_says_so(
    hub: LocalHub, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    hub.create_repo("org/tiny")
    take = hub.take_faults

    def vanish(method: str, path: str) -> list[Fault]:
        if "/commit/" in path:
            hub.add_fault("drop", keep=0)
        return take(method, path)

    monkeypatch.setattr(hub, "take_faults", vanish)
    with pytest.raises(DownloadError, match="not known whether the commit was made"):
        push(hub, folder)


def test_p03_a_commit_in_between_is_not_overwritten(
    hub: LocalHub, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    hub.create_repo("org/tiny")
    take = hub.take_faults

    def commit_first(method: str, path: str) -> list[Fault]:
        if "/commit/" in path:
            hub.add_repo("org/tiny", {"README.md": b"theirs"})
        return take(method, path)

    monkeypatch.setattr(hub, "take_faults", commit_first)
    with pytest.raises(PublishError, match=r"meanwhile.*Nothing was changed"):
        push(hub, folder)
    assert hub.read("org/tiny", "README.md") == b"theirs"
    assert list(hub.files("org/tiny")) == ["README.md"]


def test_p04_a_tag_that_exists_is_not_moved(hub: LocalHub, folder: Path):
    first = push(hub, folder, tag="v1")
    (folder / "LICENSE").write_text("text")
    with pytest.raises(PublishError, match="'v1' exists"):
        push(hub, folder, tag="v1")
    assert hub.refs("org/tiny")["tags"] == {"v1": first.revision}
    assert commits(hub)[-1] == first.revision  # refused before anything was sent


def test_p04_a_tag_that_appears_meanwhile_is_not_moved(
    hub: LocalHub, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    hub.create_repo("org/tiny")
    take, theirs = hub.take_faults, commits(hub)[0]

    def tag_first(method: str, path: str) -> list[Fault]:
        if "/tag/" in path:
            hub.set_ref("org/tiny", "tags", "v1", theirs)
        return take(method, path)

    monkeypatch.setattr(hub, "take_faults", tag_first)
    with pytest.raises(PublishError, match="'v1' exists"):
        push(hub, folder, tag="v1")
    assert hub.refs("org/tiny")["tags"] == {"v1": theirs}


# Refused before any request


def put_nan(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    next(x for x in state.values() if x.is_floating_point()).view(-1)[0] = float("nan")
    save_file(state, folder / "model.safetensors")
    data = (folder / "model.safetensors").read_bytes()
    rewrite(folder, sha256=hashlib.sha256(data).hexdigest())


def add_optimizer_state(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    save_file({**state, "optimizer.exp_avg": torch.zeros(3)}, folder / "model.safetensors")
    data = (folder / "model.safetensors").read_bytes()
    rewrite(folder, sha256=hashlib.sha256(data).hexdigest())


def flip_a_bit(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)


def link_the_card(folder: Path) -> None:
    (folder / "README.md").rename(folder / "other.md")
    (folder / "README.md").symlink_to(folder / "other.md")


def append(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text((folder / name).read_text() + text)


def put_results(text: str, name: str = "x.yaml") -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        (folder / ".eval_results").mkdir()
        (folder / ".eval_results" / name).write_text(text)

    return change


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no card": (lambda folder: (folder / "README.md").unlink(), "README.md"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "config.json"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "model.safetensors"),
    "no license": (lambda folder: rewrite(folder, license=None), "license"),
    "no sha256": (lambda folder: rewrite(folder, sha256=None), "sha256"),
    "other sha256": (lambda folder: rewrite(folder, sha256="0" * 64), "0000"),
    "bit flipped": (flip_a_bit, "hash"),
    "NaN": (put_nan, "NaN|finite"),
    "optimizer state": (add_optimizer_state, "optimizer"),
    "other shapes": (lambda folder: rewrite(folder, arguments={"width": 2}), "shape"),
    "unknown architecture": (lambda folder: rewrite(folder, architecture="vgg"), "vgg"),
    "card without front matter": (
        lambda folder: (folder / "README.md").write_text("# Card\n"),
        "license",
    ),
    "card with broken front matter": (
        lambda folder: (folder / "README.md").write_text("---\na: [\n---\n"),
        "YAML",
    ),
    "card with another license": (
        lambda folder: (folder / "README.md").write_text("---\nlicense: mit\n---\n"),
        "'mit'",
    ),
    "card is a link": (link_the_card, "not a link"),
    "card too large": (append("README.md", "x" * (1 << 20)), "1 MB"),
    "a token in the card": (append("README.md", "hf_" + "A1b2" * 8), "a Hub token"),
    "a private key": (append("README.md", "-----BEGIN RSA PRIVATE KEY-----"), "private key"),
    "a home folder": (
        lambda folder: rewrite(folder, provenance={"data": "/home/jane/scans"}),
        "home folder",
    ),
    "results that are no YAML": (put_results("a: ["), "YAML"),
    "results that are no list": (put_results("a: 1"), "list"),
    "results with an odd name": (put_results("[]", "-rf *.yaml"), "plain file name"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_p05_what_must_not_be_published_is_refused_without_a_request(
    hub: LocalHub, folder: Path, case: str
):
    change, message = REFUSED[case]
    change(folder)
    with pytest.raises(PublishError, match=message):
        push(hub, folder)
    assert hub.requests == []


def test_p05_a_folder_that_is_none_is_refused(hub: LocalHub, tmp_path: Path):
    with pytest.raises(PublishError, match="none"):
        push(hub, tmp_path / "no")
    with pytest.raises(WeightsError):
        push(hub, nn.Linear(1, 1))
    assert hub.requests == []


def test_h18_a_malformed_repository_branch_or_tag_is_refused(hub: LocalHub, folder: Path):
    for repo_id in ("tiny", "a/../b", "", "http://x/y"):
        with pytest.raises(ConfigError):
            push_to_hub(folder, repo_id, endpoint=hub.url, token=TOKEN)
    for options in ({"revision": "../x"}, {"tag": "a b"}):
        with pytest.raises(ConfigError):
            push(hub, folder, **options)
    assert hub.requests == []


def test_p06_without_a_token_nothing_is_read(hub: LocalHub, tmp_path: Path):
    with pytest.raises(AccessError, match="hf auth login"):
        push(hub, tmp_path / "not even there", token=None)
    assert hub.requests == []


def test_p06_a_wrong_token_is_refused_before_the_upload(hub: LocalHub, folder: Path):
    with pytest.raises(AccessError, match="401"):
        push(hub, folder, token="hf_wrong")
    assert {request.method for request in hub.requests} == {"GET"}


def test_p06_a_token_that_may_only_read_is_refused_before_the_upload(
    hub: LocalHub, folder: Path, monkeypatch: pytest.MonkeyPatch
):
    answer = {"name": "x", "auth": {"type": "access_token", "accessToken": {"role": "read"}}}
    monkeypatch.setattr("huggingface_hub.HfApi.whoami", lambda self: answer)
    with pytest.raises(AccessError, match="may only read"):
        push(hub, folder)
    assert hub.requests == []


# After the upload


def test_p07_a_hub_that_gives_back_something_else_is_found_out(hub: LocalHub, folder: Path):
    hub.add_fault("corrupt", "*/resolve/*/model.safetensors", method="GET")
    with pytest.raises(IntegrityError):
        push(hub, folder, tag="v1")
    assert hub.refs("org/tiny")["tags"] == {}


def test_p07_a_hub_that_says_another_hash_is_found_out(hub: LocalHub, folder: Path):
    hub.add_fault("header", "*/resolve/*/README.md", headers={"ETag": f'"{"0" * 40}"'})
    with pytest.raises(IntegrityError, match=r"README\.md.*revert"):
        push(hub, folder)


def test_p08_only_the_files_of_a_model_leave_the_machine(hub: LocalHub, folder: Path):
    for name in (".git/config", ".env", "optimizer.safetensors", "notes.txt", "modeling.py"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(f"private {TOKEN}")
    (folder / ".eval_results").mkdir()
    (folder / ".eval_results" / "own.yaml").write_text("[]\n")
    (folder / ".eval_results" / "secret.txt").write_text("private")
    (folder / "LICENSE").write_text("Apache License\n")
    push(hub, folder)
    expected = [".eval_results/own.yaml", "LICENSE", *SENT[1:]]
    assert sorted(hub.files("org/tiny")) == expected
    sent = b"".join(path.read_bytes() for path in (hub.root / "blobs").iterdir())
    assert b"private" not in sent
    assert TOKEN.encode() not in sent


def test_p08_the_token_in_use_is_never_sent_in_a_file(hub: LocalHub, folder: Path):
    hub.token = "no-pattern-at-all"
    (folder / "LICENSE").write_text("no-pattern-at-all")
    with pytest.raises(PublishError, match="the token itself") as caught:
        push(hub, folder, token="no-pattern-at-all")
    assert "no-pattern" not in str(caught.value)


def test_p09_the_mode_of_the_file_does_not_matter(hub: LocalHub, folder: Path):
    (folder / "model.safetensors").chmod(0o600)
    assert push(hub, folder).revision


def test_p10_a_dry_run_prints_exactly_what_would_be_sent(
    hub: LocalHub, folder: Path, capsys: pytest.CaptureFixture[str]
):
    result = push(hub, folder, dry_run=True, token=None)
    printed = capsys.readouterr().out.splitlines()
    assert hub.requests == []
    assert (result.revision, result.url) == (None, None)
    real = push(hub, folder)
    assert real.files == result.files
    expected = {
        path: (hashlib.sha256(data).hexdigest(), len(data))
        for path in hub.files("org/tiny")
        for data in [hub.read("org/tiny", path)]
    }
    shown = {}
    for line in printed[:-1]:
        sha256, size, path = line.split()
        shown[path] = (sha256, int(size.replace(",", "")))
    assert shown == expected


def test_p10_a_dry_run_refuses_what_a_real_one_would(hub: LocalHub, folder: Path):
    put_nan(folder)
    with pytest.raises(PublishError):
        push(hub, folder, dry_run=True)
