"""What a model's name stands for: a catalog row, a repository on the Hub, or files on disk."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from universal_model_hub.catalog import WEIGHTS, Weights, get_weights
from universal_model_hub.errors import ConfigError, WeightsError

HUB_SCHEME, FOLDER_SCHEME = "hf-hub:", "local-dir:"
WEIGHTS_FILE, CONFIG_FILE, CARD_FILE = "model.safetensors", "config.json", "README.md"
SCHEMES = "Write hf-hub:{0} for a repository on the Hub, or local-dir:{0} for a folder."

_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_REPO_ID = re.compile(f"{_PART}/{_PART}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,254}")


@dataclass(frozen=True)
class HubName:
    """A repository on the Hub, at a branch, a tag or a commit."""

    repo_id: str
    revision: str = "main"


@dataclass(frozen=True)
class LocalName:
    """A weight file on disk, with its config.json beside it."""

    weights: Path

    @property
    def config(self) -> Path:
        """The config.json beside the weights."""
        return self.weights.with_name(CONFIG_FILE)


def parse_name(
    name: str | os.PathLike[str], revision: str | None = None
) -> Weights | HubName | LocalName:
    """Say what a name stands for, without asking the Hub.

    In this order: a scheme (``hf-hub:``, ``local-dir:``), a name of the catalog, a path. A bare
    ``org/name`` is a path if it exists here, and is otherwise refused: it could be either.

    Args:
        name: A catalog name, ``hf-hub:org/name@revision``, ``local-dir:folder``, or a path to a
            folder or to a ``.safetensors`` file beside its ``config.json``.
        revision: Branch, tag or commit; only for a repository on the Hub.

    Raises:
        ConfigError: If the name fits none of these, or two revisions are given.
        WeightsError: If a path leads to a weight file of another format.
    """
    text = os.fspath(name)
    if not text or "\0" in text:
        raise ConfigError(f"Expected the name of a model, got {text!r}.")
    if isinstance(name, str) and text.startswith(HUB_SCHEME):
        return _hub_name(text.removeprefix(HUB_SCHEME), revision)
    if isinstance(name, str) and text in WEIGHTS and WEIGHTS[text].source == "hub":
        return WEIGHTS[text]
    if revision is not None:
        raise ConfigError(
            f"Expected a repository on the Hub beside revision={revision!r}, got {text[:200]!r}. "
            "Leave revision out."
        )
    if isinstance(name, str) and text in WEIGHTS:
        return WEIGHTS[text]
    if isinstance(name, str) and text.startswith(FOLDER_SCHEME):
        return _local_name(Path(text.removeprefix(FOLDER_SCHEME)))
    if not isinstance(name, str) or _is_path(text):
        return _local_name(Path(text))
    if "/" in text or ":" in text:
        shown = text[:200] if _REPO_ID.fullmatch(text.partition("@")[0]) else "org/name"
        raise ConfigError(
            f"Expected a catalog name, a scheme or a path, got {text[:200]!r}. "
            + SCHEMES.format(shown)
        )
    return get_weights(text)


def check_repo_id(repo_id: str) -> str:
    """Return ``repo_id`` if it is of the form ``org/name``.

    Raises:
        ConfigError: If it is not.
    """
    if not _REPO_ID.fullmatch(repo_id) or ".." in repo_id or "--" in repo_id:
        raise ConfigError(
            f"Expected a repository as org/name (letters, digits, '.', '_', '-'), "
            f"got {repo_id[:200]!r}."
        )
    return repo_id


def check_revision(revision: str) -> str:
    """Return ``revision`` if it can name a branch, a tag or a commit.

    Raises:
        ConfigError: If it cannot.
    """
    if not _REVISION.fullmatch(revision) or ".." in revision or revision.endswith("/"):
        raise ConfigError(f"Expected a branch, a tag or a commit, got {revision[:200]!r}.")
    return revision


def _hub_name(text: str, revision: str | None) -> HubName:
    repo_id, at, in_name = text.partition("@")
    if at and revision is not None and in_name != revision:
        raise ConfigError(
            f"Expected one revision, got {in_name[:200]!r} in the name and "
            f"revision={revision[:200]!r}. Give it once."
        )
    return HubName(check_repo_id(repo_id), check_revision(in_name if at else revision or "main"))


def _is_path(text: str) -> bool:
    return text.endswith(".safetensors") or text.startswith((".", "/", "~")) or Path(text).exists()


def _local_name(path: Path) -> LocalName:
    path = path.expanduser()
    if path.is_dir():
        weights = path / WEIGHTS_FILE
        if not weights.is_file():
            raise WeightsError(f"Expected {WEIGHTS_FILE} in the folder {path}, there is none.")
    elif not path.is_file():
        raise ConfigError(f"Expected a model folder or a .safetensors file, {path} does not exist.")
    elif path.suffix != ".safetensors":
        raise WeightsError(
            f"Expected a .safetensors file, got {path.name}. Read a checkpoint that you "
            "trust with torch.load, and write a model folder with save_pretrained."
        )
    else:
        weights = path
    found = LocalName(weights)
    if not found.config.is_file():
        raise ConfigError(f"Expected a {CONFIG_FILE} beside {weights}, there is none.")
    return found
