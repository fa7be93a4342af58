"""A model folder to the Hub: checked before, in one commit, and compared afterwards.

Only the files of a model folder are sent, whatever else lies beside them. Nothing is overwritten
that someone else put there meanwhile: the commit names the one it was made for.
"""

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from universal_model_hub.errors import (
    AccessError,
    DownloadError,
    IntegrityError,
    NotFoundError,
    PublishError,
)
from universal_model_hub.hub import resolve_model
from universal_model_hub.hub.client import (
    TOKEN_HINT,
    Repo,
    as_our_error,
    ask,
    cause,
    is_passing,
    retry,
    status_of,
)
from universal_model_hub.hub.names import check_revision
from universal_model_hub.hub.resolve import repo_of
from universal_model_hub.publish.contents import publishable_files

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class PublishedFile:
    """A file of the repository: its path there, its size and its hash."""

    path: str
    size: int  # bytes
    sha256: str


@dataclass(frozen=True)
class PushResult:
    """What was published, or would be."""

    repo_id: str
    files: tuple[PublishedFile, ...]
    revision: str | None  # full commit id; None after a dry run
    url: str | None  # of the commit
    tag: str | None = None

    def __str__(self) -> str:
        lines = [f"{file.sha256}  {file.size:>12,}  {file.path}" for file in self.files]
        return "\n".join([*lines, self.url or f"nothing sent to {self.repo_id}"])


def push_to_hub(
    model_or_folder: "nn.Module | str | os.PathLike[str]",
    repo_id: str,
    *,
    token: str | None = None,
    endpoint: str | None = None,
    revision: str = "main",
    private: bool = False,
    create: bool = True,
    dry_run: bool = False,
    tag: str | None = None,
    message: str | None = None,
) -> PushResult:
    """Publish a model in one commit, and check that the Hub gives back the same.

    Sent are ``model.safetensors``, ``config.json``, ``README.md``, ``LICENSE`` if there is one, and
    ``.eval_results/*.yaml`` (made from the metrics if there are none). A card that was not edited
    is written anew with the repository's name.

    Args:
        model_or_folder: A model folder, or a module of this package that came with a license.
        repo_id: ``org/name``.
        token: With permission to write; the stored one if None.
        endpoint: Address of the Hub; HF_ENDPOINT or huggingface.co if None.
        revision: Branch to commit to.
        private: For a repository that is made new.
        create: Make the repository if there is none.
        dry_run: Print the files, sizes and hashes, and make no request.
        tag: Name to give the commit; must be new.
        message: Of the commit.

    Raises:
        PublishError: If the folder must not be published as it is, the tag exists, or someone else
            committed meanwhile. Nothing was changed on the Hub.
        AccessError: If there is no token, or it may not write.
        DownloadError: If the Hub cannot be reached.
        IntegrityError: If the Hub gives back something else than was sent.
    """
    check_revision(revision)
    if tag is not None:
        check_revision(tag)
    repo_of(repo_id, endpoint=endpoint)  # so that a wrong name is found before the token
    token = token if dry_run else _write_token(token)
    with _folder_of(model_or_folder, repo_id) as folder:
        contents = publishable_files(folder, repo_id, secrets=(token,) if token else ())
    files = tuple(
        PublishedFile(path, len(data), hashlib.sha256(data).hexdigest())
        for path, data in contents.items()
    )
    if dry_run:
        result = PushResult(repo_id, files, None, None, tag)
        print(result)
        return result
    with tempfile.TemporaryDirectory(prefix="umh-") as cache:
        repo = repo_of(repo_id, cache_dir=cache, token=token, endpoint=endpoint)
        _check_may_write(repo)
        head = _head(repo, revision, create=create, private=private)
        _check_tag_is_new(repo, tag)
        commit = _commit(repo, revision, head, contents, message or f"Upload {repo_id}")
        _check_published(repo, commit, contents)
        if tag is not None:
            _make_tag(repo, commit, tag)
    url = f"{repo.api().endpoint}/{repo_id}/commit/{commit}"
    return PushResult(repo_id, files, commit, url, tag)


def _write_token(token: str | None) -> str:
    from huggingface_hub import get_token

    token = token or get_token()
    if not token:
        raise AccessError(f"Expected a token that may write, there is none. {TOKEN_HINT}")
    return token


@contextlib.contextmanager
def _folder_of(model_or_folder: Any, repo_id: str) -> Iterator[Path]:
    if isinstance(model_or_folder, (str, os.PathLike)):
        yield Path(model_or_folder)
        return
    from universal_model_hub.saving import save_pretrained

    with tempfile.TemporaryDirectory(prefix="umh-") as temporary:
        yield save_pretrained(model_or_folder, Path(temporary) / repo_id.partition("/")[2])


def _check_may_write(repo: Repo) -> None:
    owner = retry(repo, "the token's permissions", lambda: repo.api().whoami())
    role = (owner.get("auth") or {}).get("accessToken", {}).get("role")
    if role == "read":
        raise AccessError(
            f"Expected a token that may write to {repo.repo_id}, this one may only read. Make one "
            "with the role write."
        )


def _head(repo: Repo, revision: str, *, create: bool, private: bool) -> str:
    """Return the commit that the branch is at, making the repository if there is none."""
    what = f"the branch {revision!r}"
    try:
        return _sha(repo, revision)
    except NotFoundError as error:
        if not create or _exists(repo):
            raise NotFoundError(
                f"{error} Make the repository or the branch first, or pass create=True for a "
                "new repository."
            ) from error
    retry(
        repo,
        what,
        lambda: repo.api().create_repo(repo.repo_id, private=private, exist_ok=True),
    )
    return _sha(repo, revision)


def _sha(repo: Repo, revision: str | None) -> str:
    from huggingface_hub import constants

    timeout = constants.HF_HUB_ETAG_TIMEOUT
    info = retry(
        repo,
        f"the branch {revision!r}",
        lambda: repo.api().model_info(repo.repo_id, revision=revision, timeout=timeout),
    )
    return str(info.sha)


def _exists(repo: Repo) -> bool:
    try:
        _sha(repo, None)
    except NotFoundError:
        return False
    return True


def _check_tag_is_new(repo: Repo, tag: str | None) -> None:
    if tag is None:
        return
    refs = retry(repo, "the tags", lambda: repo.api().list_repo_refs(repo.repo_id))
    if tag in [ref.name for ref in refs.tags]:
        raise _tag_exists(repo, tag)


def _commit(
    repo: Repo, revision: str, head: str, contents: Mapping[str, bytes], message: str
) -> str:
    """Upload all files in one commit on top of ``head``; returns the commit."""
    from huggingface_hub import CommitOperationAdd

    try:
        done = repo.api().create_commit(
            repo.repo_id,
            [CommitOperationAdd(path, data) for path, data in contents.items()],
            commit_message=message,
            revision=revision,
            parent_commit=head,
        )
        return str(done.oid)
    except Exception as error:  # the client's errors have no common base
        if status_of(error) == 412:
            raise PublishError(
                f"Someone committed to {repo.repo_id} meanwhile: {revision!r} is not at "
                f"{head[:12]} any more. Nothing was changed. Look at it, then publish again."
            ) from cause(error, repo)
        # The reply to a commit can get lost, or be misread, after the commit was made.
        unclear = status_of(error) is None or is_passing(error)
        landed = _landed(repo, revision, contents) if unclear else None
        if landed is None:
            raise as_our_error(error, repo, "the upload") from cause(error, repo)
        return landed


def _landed(repo: Repo, revision: str, contents: Mapping[str, bytes]) -> str | None:
    """Return the branch's commit if it holds what was sent."""
    try:
        now = _sha(repo, revision)
        return None if _differing(repo, now, contents) else now
    except NotFoundError:
        return None
    except DownloadError as error:
        raise DownloadError(
            f"The connection to {repo.host} was lost while {repo.repo_id} was committed to, and "
            f"it is not known whether the commit was made. Look at {revision!r} before you publish "
            "again."
        ) from error


def _differing(repo: Repo, commit: str, contents: Mapping[str, bytes]) -> list[str]:
    """Return the files of a commit whose hash on the Hub is not that of what was sent."""
    differing = []
    for path, data in contents.items():
        git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        if ask(repo, path, commit).etag not in (git, hashlib.sha256(data).hexdigest()):
            differing.append(path)
    return differing


def _check_published(repo: Repo, commit: str, contents: Mapping[str, bytes]) -> None:
    """Download the model into an empty cache and compare it, bit by bit, with what was sent."""
    differing = _differing(repo, commit, contents)
    if not differing:
        model = resolve_model(
            f"hf-hub:{repo.repo_id}@{commit}",
            cache_dir=repo.cache.root,
            token=repo.token,
            endpoint=repo.endpoint,
        )
        differing = [
            path.name
            for path in (model.config, model.weights)
            if path.read_bytes() != contents[path.name]
        ]
    if differing:
        raise IntegrityError(
            f"Expected {repo.repo_id} at {commit[:12]} to hold what was sent, {differing} differ. "
            "The commit exists: revert it on the Hub, and publish again."
        )


def _make_tag(repo: Repo, commit: str, tag: str) -> None:
    try:
        repo.api().create_tag(repo.repo_id, tag=tag, revision=commit)
    except Exception as error:  # the client's errors have no common base
        if status_of(error) == 409:
            raise _tag_exists(repo, tag) from cause(error, repo)
        raise as_our_error(error, repo, f"the tag {tag!r}") from cause(error, repo)


def _tag_exists(repo: Repo, tag: str) -> PublishError:
    return PublishError(
        f"The tag {tag!r} exists in {repo.repo_id} and is not moved. Choose a new name."
    )
