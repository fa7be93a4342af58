"""Requests to the Hub through ``huggingface_hub``'s session, and its errors made ours.

The client lets out OSError, RuntimeError, ValueError, ConnectionError and the errors of its HTTP
library, which have no base of their own and changed modules between its versions. Here each becomes
one of our few, with what to do. No message repeats what a server said: it could hold anything.
"""

import errno
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit

from universal_model_hub import __version__
from universal_model_hub.errors import (
    AccessError,
    DownloadError,
    IntegrityError,
    NotFoundError,
    OfflineError,
    UniversalModelError,
)
from universal_model_hub.hub.cache import COMMIT, RepoCache

if TYPE_CHECKING:
    from huggingface_hub import HfApi

Result = TypeVar("Result")

LIBRARY = "universal_model_hub"
TRIES = 3  # in a row without a byte gained
RETRY_WITHIN = 15.0  # seconds: a server that answers slowly gets two tries
PAUSE = 1.0  # seconds before the second try, doubled before the third
BUSY = (408, 429, 500, 502, 503, 504)
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
TOKEN_HINT = "Log in with `hf auth login`, set HF_TOKEN, or pass token=."


@dataclass(frozen=True)
class Repo:
    """A repository, and how to reach it."""

    repo_id: str
    cache: RepoCache
    endpoint: str | None = None  # None: HF_ENDPOINT, or huggingface.co
    token: str | bool | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        # The HTTP library would refuse such a header, and quote it.
        if isinstance(self.token, str) and not re.fullmatch("[!-~]+", self.token):
            raise AccessError(f"Expected a token without spaces or line ends. {TOKEN_HINT}")

    @property
    def host(self) -> str:
        """The server's name and port, without anything secret that an address can hold."""
        from huggingface_hub import constants

        parts = urlsplit(self.endpoint or constants.ENDPOINT)
        return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)

    def url(self, filename: str, revision: str) -> str:
        """Where a file of a revision is served."""
        from huggingface_hub import hf_hub_url

        return hf_hub_url(self.repo_id, filename, revision=revision, endpoint=self.endpoint)

    def api(self) -> "HfApi":
        """The client, for what changes the repository."""
        from huggingface_hub import HfApi

        return HfApi(
            endpoint=self.endpoint,
            token=self.token,
            library_name=LIBRARY,
            library_version=__version__,
        )


@dataclass(frozen=True)
class RemoteFile:
    """What the Hub says of one file of one commit."""

    commit: str
    etag: str  # sha256 of an LFS file, git blob id of a small one
    size: int  # bytes


def ask(repo: Repo, filename: str, revision: str) -> RemoteFile:
    """Ask the Hub for a file's commit, hash and size.

    Raises:
        DownloadError: If the Hub cannot be reached, refuses, or has no such file.
        IntegrityError: If it does not say a commit, a hash and a size.
    """
    from huggingface_hub import constants, get_hf_file_metadata

    answer = retry(
        repo,
        f"{filename} at {revision}",
        lambda: get_hf_file_metadata(
            repo.url(filename, revision),
            token=repo.token,
            timeout=constants.HF_HUB_ETAG_TIMEOUT,
            endpoint=repo.endpoint,
            library_name=LIBRARY,
            library_version=__version__,
        ),
    )
    commit, etag, size = answer.commit_hash or "", answer.etag or "", answer.size
    # The cache's paths are built from both, so they must be plain hashes.
    plain = COMMIT.fullmatch(commit) and is_hash(etag)
    if not plain or size is None or (COMMIT.fullmatch(revision) and commit != revision):
        raise IntegrityError(
            f"Expected {repo.host} to give the commit, the hash and the size of {filename} in "
            f"{repo.repo_id}; some are missing or malformed. It does not behave like a Hub: check "
            "HF_ENDPOINT and your proxy."
        )
    return RemoteFile(commit, etag, size)


def is_hash(etag: str) -> bool:
    """Whether an ETag is a sha256 or a git blob id."""
    return len(etag) in (40, 64) and not etag.strip("0123456789abcdef")


def retry(repo: Repo, what: str, request: Callable[[], Result]) -> Result:
    """Run a request; what looks passing is tried again, what is left becomes our error.

    Raises:
        DownloadError: If the request fails.
    """
    started = time.monotonic()
    for left in reversed(range(TRIES)):
        try:
            return request()
        except Exception as error:  # the client's errors have no common base
            late = time.monotonic() - started > RETRY_WITHIN
            if left == 0 or late or not is_passing(error):
                raise as_our_error(error, repo, what) from cause(error, repo)
        time.sleep(PAUSE * 2 ** (TRIES - 1 - left))
    raise AssertionError("unreachable")


def cause(error: Exception, repo: Repo) -> Exception | None:
    """Return the error to chain to ours: none if its text holds the token."""
    return None if isinstance(repo.token, str) and repo.token in str(error) else error


def is_passing(error: Exception) -> bool:
    """Whether the same request may well work in a moment."""
    return status_of(error) in BUSY or (_is_transport(error) and not _is_offline(error))


def as_our_error(error: Exception, repo: Repo, what: str) -> UniversalModelError:
    """Say in one of our errors what an error of the client means.

    Args:
        error: What the client raised.
        repo: The repository that was asked.
        what: What it was asked for, such as ``"config.json at main"``.
    """
    from huggingface_hub import errors

    if isinstance(error, UniversalModelError):
        return error
    status, asked = status_of(error), f"{what} of {repo.repo_id} on {repo.host}"
    if _is_offline(error):
        return OfflineError(
            f"Expected to ask for {asked}, but HF_HUB_OFFLINE is set. Unset it, or download the "
            "model once with a network: umh download NAME."
        )
    if isinstance(error, errors.GatedRepoError):
        return AccessError(
            f"{repo.repo_id} on {repo.host} is gated: accept its conditions on its page there, "
            f"then use that account's token. {TOKEN_HINT}"
        )
    if isinstance(error, errors.LocalTokenNotFoundError):
        return AccessError(f"Expected a token for {repo.host}, none is stored. {TOKEN_HINT}")
    if status == 401:
        return AccessError(
            f"{repo.host} did not accept the request for {asked} (401): the repository does not "
            f"exist, or is private and the token is missing or wrong. {TOKEN_HINT}"
        )
    if status == 403:
        return AccessError(
            f"{repo.host} forbids access to {asked} (403): the token lacks the permission, or the "
            "network blocks the address. Check the token's permissions and your proxy."
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return NotFoundError(f"There is no such revision: {asked}. Check its name.")
    if isinstance(error, errors.RepositoryNotFoundError):
        return NotFoundError(
            f"There is no repository {repo.repo_id} on {repo.host}. Check its name; if it is "
            f"private, a token is needed. {TOKEN_HINT}"
        )
    if status == 404:
        return NotFoundError(f"There is no such file: {asked}. Is it a model of this package?")
    if status is not None:
        kind = OfflineError if status >= 500 else DownloadError
        return kind(f"{repo.host} answered {status} to the request for {asked}. Try again later.")
    return _unanswered(error, repo, asked)


def _unanswered(error: Exception, repo: Repo, asked: str) -> UniversalModelError:
    if isinstance(error, OSError) and error.errno in FULL:
        return DownloadError(
            f"No space left in {repo.cache.root} for {asked} ({error.strerror}). Free some, or "
            "choose another place with cache_dir= or HF_HOME."
        )
    if _is_transport(error):
        return OfflineError(
            f"{repo.host} cannot be reached for {asked} ({type(error).__name__}). Check the "
            "network and the proxy; without one, use a model that is bundled or in the cache."
        )
    if isinstance(error, OSError) and error.errno is not None:
        return DownloadError(
            f"The cache {repo.cache.root} cannot be used for {asked} ({error.strerror}). Choose "
            "another place with cache_dir= or HF_HOME."
        )
    return DownloadError(f"The request for {asked} failed ({type(error).__name__}). Try again.")


def status_of(error: Exception) -> int | None:
    """Return the HTTP status that an error of the client stands for, if any."""
    response = getattr(error, "response", None)
    return getattr(response, "status_code", None)


def _is_transport(error: Exception) -> bool:
    # By name: the client moved from one HTTP library to another, and may again.
    names = {kind.__name__ for kind in type(error).__mro__}
    return bool(names & {"TransportError", "ConnectionError"})


def _is_offline(error: Exception) -> bool:
    return any(kind.__name__ == "OfflineModeIsEnabled" for kind in type(error).__mro__)
