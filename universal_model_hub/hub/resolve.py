"""From a model's name to a folder on this machine whose content was checked."""

import contextlib
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from universal_model_hub.catalog import Weights
from universal_model_hub.errors import (
    ConfigError,
    IntegrityError,
    NotFoundError,
    OfflineError,
    WeightsError,
)
from universal_model_hub.files import parse_json, sha256_of
from universal_model_hub.hub.cache import RepoCache, default_cache
from universal_model_hub.hub.client import Repo, ask
from universal_model_hub.hub.fetch import Fetched, fetch
from universal_model_hub.hub.names import (
    CARD_FILE,
    CONFIG_FILE,
    WEIGHTS_FILE,
    HubName,
    LocalName,
    check_repo_id,
    check_revision,
    parse_name,
)

MAX_CONFIG_BYTES = 1 << 20
ELSE = "Pass pretrained=False for random weights, or give a model folder as the name."


class HubWarning(UserWarning):
    """The Hub could not be asked, and what it said earlier is used."""


@dataclass(frozen=True)
class LocalModel:
    """A model's files on this machine, and how far their content is proven."""

    name: str
    weights: Path  # .safetensors
    config: Path  # config.json
    sha256: str  # of the weights
    verified: Literal["pinned", "hub", "local"]
    repo_id: str | None = None
    revision: str | None = None  # full commit id

    @property
    def folder(self) -> Path:
        """The folder that both files lie in."""
        return self.weights.parent


def resolve_model(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    local_files_only: bool = False,
    token: str | bool | None = None,
    endpoint: str | None = None,
    verify: bool = False,
) -> LocalModel:
    """Find a model by its name, downloading it if need be, and check its content.

    ``verified`` says by what: ``"pinned"`` by the sha256 of the catalog, ``"hub"`` by the hash
    that the Hub gives, ``"local"`` by nothing but the sha256 that its own config.json may state.

    Args:
        name: A catalog name, ``hf-hub:org/name@revision``, ``local-dir:folder``, or a path to a
            folder or to a ``.safetensors`` file beside its ``config.json``.
        revision: Branch, tag or commit on the Hub; the catalog's commit, or ``main``.
        cache_dir: The Hub client's cache; its own default if None.
        local_files_only: Make no request.
        token: Of the Hub; the stored one if None, none at all if False.
        endpoint: Address of the Hub; HF_ENDPOINT or huggingface.co if None.
        verify: Hash files of the cache again, even if they look unchanged.

    Raises:
        ConfigError: If the name or the revision cannot be used.
        WeightsError: If the weights are not there: not trained, not published, not in the folder.
        DownloadError: If the Hub cannot be reached, refuses, or has no such model.
        IntegrityError: If the content is not what was published.
    """
    parsed = parse_name(name, revision)
    if isinstance(parsed, LocalName):
        return _local(os.fspath(name), parsed, pin=None)
    if isinstance(parsed, Weights) and parsed.folder is not None:
        if not parsed.available:
            raise WeightsError(f"The weights of {parsed.name!r} are not trained yet. {ELSE}")
        return _local(parsed.name, LocalName(parsed.folder / WEIGHTS_FILE), pin=parsed.sha256)
    pin = None
    if isinstance(parsed, Weights):
        if parsed.repo_id is None or parsed.revision is None:
            raise WeightsError(f"The weights of {parsed.name!r} are not published yet. {ELSE}")
        # Another revision than the catalog's has another content: nothing here pins it.
        pin = parsed.sha256 if revision in (None, parsed.revision) else None
        hub_name = HubName(parsed.repo_id, check_revision(revision or parsed.revision))
    else:
        hub_name = parsed
    return _from_hub(
        os.fspath(name),
        repo_of(hub_name.repo_id, cache_dir=cache_dir, token=token, endpoint=endpoint),
        hub_name.revision,
        offline=_reason_to_stay_offline(local_files_only),
        verify=verify,
        pin=pin,
    )


def download_model(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    endpoint: str | None = None,
) -> LocalModel:
    """Bring a model into the cache, so that it loads without a network from then on.

    What is cached already is hashed again and, if damaged, repaired; the model's card comes too, if
    it has one. Arguments and errors are those of ``resolve_model``.
    """
    model = resolve_model(
        name,
        revision=revision,
        cache_dir=cache_dir,
        token=token,
        endpoint=endpoint,
        verify=True,
    )
    if model.repo_id is not None and model.revision is not None:
        repo = repo_of(model.repo_id, cache_dir=cache_dir, token=token, endpoint=endpoint)
        offline = _reason_to_stay_offline(False)
        # The model is whole without its card.
        with contextlib.suppress(NotFoundError, OfflineError):
            fetch(repo, model.revision, CARD_FILE, offline=offline, verify=True)
    return model


def verify_model(
    name: str | os.PathLike[str],
    *,
    revision: str | None = None,
    cache_dir: str | os.PathLike[str] | None = None,
) -> LocalModel:
    """Hash a model that is on this machine again; makes no request and repairs nothing.

    Raises:
        IntegrityError: If its content is not what was published.
        OfflineError: If it was not downloaded yet.
    """
    return resolve_model(
        name, revision=revision, cache_dir=cache_dir, local_files_only=True, verify=True
    )


def repo_of(
    repo_id: str,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    token: str | bool | None = None,
    endpoint: str | None = None,
) -> Repo:
    """Return a repository on the Hub, its name and the Hub's address checked.

    Raises:
        ConfigError: If either cannot be used.
        AccessError: If the token cannot be sent.
    """
    if endpoint is not None and not endpoint.startswith(("https://", "http://")):
        raise ConfigError(f"Expected the Hub's address as https://..., got {endpoint[:200]!r}.")
    root = Path(cache_dir).expanduser() if cache_dir is not None else default_cache()
    cache = RepoCache(root, check_repo_id(repo_id))
    return Repo(repo_id, cache, endpoint and endpoint.rstrip("/"), token)


def _from_hub(
    name: str, repo: Repo, revision: str, *, offline: str, verify: bool, pin: str | None
) -> LocalModel:
    commit, offline = _commit_of(repo, revision, offline)
    # The configuration first: its request is what the Hub counts as a download.
    config = fetch(repo, commit, CONFIG_FILE, offline=offline, verify=verify)
    weights = fetch(repo, commit, WEIGHTS_FILE, offline=offline, verify=verify, pin=pin)
    if not offline:
        repo.cache.remember_commit(revision, commit)
    _check_stated(config.path, weights.path, weights.sha256)
    return LocalModel(
        name=name,
        weights=weights.path,
        config=config.path,
        sha256=weights.sha256,
        verified=_proof(weights, config, pin),
        repo_id=repo.repo_id,
        revision=commit,
    )


def _proof(weights: Fetched, config: Fetched, pin: str | None) -> Literal["pinned", "hub", "local"]:
    if pin is not None:
        return "pinned"
    return "hub" if weights.proven and config.proven else "local"


def _commit_of(repo: Repo, revision: str, offline: str) -> tuple[str, str]:
    """Resolve a revision once, so that all files come from one commit; and say if offline now."""
    cached = repo.cache.commit_of(revision)
    if cached == revision:
        return revision, offline
    if offline:
        if cached is None:
            raise OfflineError(
                f"Expected {repo.repo_id} at {revision!r} in the cache {repo.cache.root}, it is "
                f"not there and {offline}. Download it once with a network: umh download NAME."
            )
        return cached, offline
    try:
        return ask(repo, CONFIG_FILE, revision).commit, ""
    except OfflineError as error:
        if cached is None:
            raise
        warnings.warn(
            f"{error} Going on with the copy of {revision!r} that was cached earlier, commit "
            f"{cached[:12]}.",
            HubWarning,
            stacklevel=5,
        )
        return cached, "the Hub cannot be reached"


def _reason_to_stay_offline(local_files_only: bool) -> str:
    from huggingface_hub import constants

    if local_files_only:
        return "local_files_only=True allows no request"
    return "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else ""


def _local(name: str, local: LocalName, pin: str | None) -> LocalModel:
    sha256 = sha256_of(local.weights)
    if pin not in (None, sha256):
        raise IntegrityError(
            f"Expected {local.weights} to hash to {pin}, got {sha256}. Reinstall the package."
        )
    _check_stated(local.config, local.weights, sha256)
    return LocalModel(
        name=name,
        weights=local.weights,
        config=local.config,
        sha256=sha256,
        verified="local" if pin is None else "pinned",
    )


def _check_stated(config: Path, weights: Path, sha256: str) -> None:
    """Compare the weights with the sha256 that their own config.json states, if it does."""
    with config.open("rb") as stream:
        data = stream.read(MAX_CONFIG_BYTES + 1)
    if len(data) > MAX_CONFIG_BYTES:
        raise ConfigError(f"Expected a config.json of at most 1 MB, {config} is larger.")
    entries = parse_json(data)
    stated = entries.get("sha256") if isinstance(entries, dict) else None
    if stated not in (None, sha256):
        raise IntegrityError(
            f"Expected {weights} to hash to {str(stated)[:64]}, as {config.name} beside it says, "
            f"got {sha256}. Restore both from where they were published."
        )
