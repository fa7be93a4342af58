"""What of a model folder is published, and whether it may be: all checks that need no network."""

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from universal_model_hub.card import HUB_LICENSES, LOADERS, eval_results, model_card
from universal_model_hub.config import ModelConfig, read_config
from universal_model_hub.errors import (
    ConfigError,
    IntegrityError,
    PublishError,
    WeightsError,
)

WEIGHTS, CONFIG, CARD, LICENSE = "model.safetensors", "config.json", "README.md", "LICENSE"
RESULTS = ".eval_results"
MAX_TEXT_BYTES = 1 << 20

# What must not leave the machine, and what it is called in the error, which never shows it.
SECRETS = {
    "a Hub token": re.compile("hf_[A-Za-z0-9]{16,}"),
    "a GitHub token": re.compile("gh[pousr]_[A-Za-z0-9]{20,}|github_pat_[A-Za-z0-9_]{20,}"),
    "an AWS key": re.compile("AKIA[0-9A-Z]{16}"),
    "a private key": re.compile("-----BEGIN [A-Z ]*PRIVATE KEY"),
    "a path in a home folder": re.compile(
        r"(?<![\w.~-])(?:/(?:home|Users|root)/|[A-Za-z]:\\{1,2}Users\\{1,2})[\w.-]"
    ),
}


def publishable_files(
    folder: Path, repo_id: str, *, secrets: Iterable[str] = ()
) -> dict[str, bytes]:
    """Read the files to publish, checked: path in the repository to content.

    Args:
        folder: A model folder.
        repo_id: Where it goes, for the card.
        secrets: Texts that no file may hold, such as the token.

    Raises:
        PublishError: If a file is missing, does not fit the others, or holds what must not leave
            the machine; if there is no license; if the weights do not load.
    """
    if not folder.is_dir():
        raise PublishError(f"Expected a model folder, {folder} is none.")
    contents = {name: _read(folder / name) for name in (CONFIG, WEIGHTS, CARD)}
    if (folder / LICENSE).exists():
        contents[LICENSE] = _read(folder / LICENSE)
    config = _checked_model(folder)
    if hashlib.sha256(contents[WEIGHTS]).hexdigest() != config.sha256:
        raise PublishError(f"{folder / WEIGHTS} changes while it is read. Try again.")
    contents[CARD] = _checked_card(contents[CARD], config, repo_id)
    contents |= _results(folder, config)
    _check_secrets(folder, contents, tuple(secrets))
    return contents


def _read(path: Path) -> bytes:
    if path.is_symlink() or not path.is_file():
        raise PublishError(
            f"Expected the file {path.name} in {path.parent} (not a link), there is none. "
            "save_pretrained(model, folder) writes a whole model folder."
        )
    if path.suffix != ".safetensors" and path.stat().st_size > MAX_TEXT_BYTES:
        raise PublishError(f"Expected {path.name} of at most 1 MB, {path} is larger.")
    return path.read_bytes()


def _checked_model(folder: Path) -> ModelConfig:
    """Check that the configuration is whole and that the weights are those it describes."""
    from universal_model_hub import loading

    try:
        config = read_config(folder / CONFIG)
        if config.sha256 is None:
            raise PublishError(
                f"Expected {CONFIG} to state the sha256 of {WEIGHTS}. Write the folder with "
                "save_pretrained."
            )
        if not config.license:
            raise PublishError(
                f"Expected {CONFIG} to state a license for the weights. Save the folder again: "
                'save_pretrained(model, folder, license="apache-2.0", force=True).'
            )
        # Strict: every tensor of the network, no other, the right shapes, finite, the right hash.
        getattr(loading, LOADERS[config.kind])(folder)
    except (ConfigError, WeightsError, IntegrityError) as error:
        raise PublishError(f"This model cannot be published: {error}") from error
    return config


def _checked_card(data: bytes, config: ModelConfig, repo_id: str) -> bytes:
    from huggingface_hub import ModelCard

    text = _text(CARD, data)
    if text == model_card(config):
        return model_card(config, repo_id=repo_id).encode()
    try:
        stated = ModelCard(text).data.to_dict().get("license")
    except Exception as error:  # of the YAML reader, or of the client's own checks
        raise PublishError(
            f"Expected {CARD} to begin with valid YAML ({type(error).__name__}). "
            "save_pretrained writes one."
        ) from error
    license = str(config.license)
    wanted = license.lower() if license.lower() in HUB_LICENSES else "other"
    if stated != wanted:
        raise PublishError(
            f"Expected {CARD} to state the license {wanted!r}, as {CONFIG} does, got "
            f"{stated!r}. Correct either."
        )
    return data


def _results(folder: Path, config: ModelConfig) -> dict[str, bytes]:
    """Return the files of evaluation results: those of the folder, else the config's metrics."""
    import yaml  # of huggingface_hub

    if (folder / RESULTS).is_symlink():
        raise PublishError(f"Expected {RESULTS} to be a folder, it is a link. Copy its files.")
    found = {f"{RESULTS}/{path.name}": _read(path) for path in (folder / RESULTS).glob("*.yaml")}
    if not found:
        return {path: text.encode() for path, text in eval_results(config).items()}
    for path, data in found.items():
        if not re.fullmatch(r"[A-Za-z0-9_-][A-Za-z0-9._-]*", path.removeprefix(f"{RESULTS}/")):
            raise PublishError(f"Expected a plain file name, got {path!r}. Rename it.")
        try:
            entries = yaml.safe_load(_text(path, data))
        except yaml.YAMLError as error:
            raise PublishError(f"Expected YAML in {path}, got something else.") from error
        if not isinstance(entries, list):
            raise PublishError(f"Expected a list of results in {path}.")
    return dict(sorted(found.items()))


def _check_secrets(folder: Path, contents: Mapping[str, bytes], secrets: tuple[str, ...]) -> None:
    from universal_model_hub.tensors import read_metadata

    texts = {path: _text(path, data) for path, data in contents.items() if path != WEIGHTS}
    texts[f"the metadata of {WEIGHTS}"] = "\n".join(read_metadata(folder / WEIGHTS).values())
    for path, text in texts.items():
        what = [name for name, pattern in SECRETS.items() if pattern.search(text)]
        what += ["the token itself" for secret in secrets if secret in text]
        if what:
            raise PublishError(
                f"{path} holds {' and '.join(what)}, which would become public. Remove it."
            )


def _text(path: str, data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise PublishError(f"Expected {path} to be text in UTF-8.") from error
