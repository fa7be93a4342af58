"""The content of one file from the Hub, written to disk as it comes."""

import time
from pathlib import Path
from typing import Any, BinaryIO

from universal_model_hub import __version__
from universal_model_hub.errors import DownloadError, IntegrityError
from universal_model_hub.hub.client import (
    LIBRARY,
    PAUSE,
    TRIES,
    RemoteFile,
    Repo,
    as_our_error,
    cause,
    is_passing,
)

MAX_REQUESTS = 32  # for one file: enough if each brings half of what is left
BAR_FROM = 1 << 20  # bytes: smaller files get no progress bar


def stream(repo: Repo, filename: str, remote: RemoteFile, target: Path) -> None:
    """Write a file of the Hub to ``target``, going on where a dropped connection ended.

    Raises:
        DownloadError: If the Hub refuses, sends nothing three times in a row, or drops too often.
        IntegrityError: If it sends more than it announced.
    """
    what = f"{filename} at {remote.commit}"
    failures = 0
    with target.open("wb") as file, _progress(filename, remote.size) as bar:
        for left in reversed(range(MAX_REQUESTS)):
            start = file.tell()
            try:
                _stream_once(repo, filename, remote, file, bar)
            except Exception as error:  # the client's errors have no common base
                last = left == 0 or (failures + 1 == TRIES and file.tell() <= start)
                if last or not is_passing(error):
                    raise as_our_error(error, repo, what) from cause(error, repo)
            if file.tell() == remote.size:
                return
            failures = 0 if file.tell() > start else failures + 1
            if failures == TRIES:
                break
            if failures:
                time.sleep(PAUSE * 2 ** (failures - 1))
        raise DownloadError(
            f"Expected {remote.size} bytes of {filename} in {repo.repo_id}, {repo.host} ends after "
            f"{file.tell()}. Try again later."
        )


def _stream_once(repo: Repo, filename: str, remote: RemoteFile, file: BinaryIO, bar: Any) -> None:
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    start = file.tell()
    headers = build_hf_headers(token=repo.token, library_name=LIBRARY, library_version=__version__)
    headers["Accept-Encoding"] = "identity"
    if start:
        headers["Range"] = f"bytes={start}-"
    with get_session().stream(
        "GET",
        repo.url(filename, remote.commit),
        headers=headers,
        timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
        follow_redirects=True,  # the session drops the token on the way to another origin
    ) as response:
        hf_raise_for_status(response)
        if start and response.status_code != 206:
            file.seek(0)
            file.truncate()
            bar.reset()
        for chunk in response.iter_bytes():
            if file.tell() + len(chunk) > remote.size:
                raise IntegrityError(
                    f"Expected {remote.size} bytes of {filename} in {repo.repo_id}, {repo.host} "
                    "sends more. Try again; if it stays, tell who runs that server."
                )
            file.write(chunk)
            bar.update(len(chunk))


def _progress(filename: str, size: int) -> Any:
    from huggingface_hub.utils import tqdm

    small = True if size < BAR_FROM else None  # None: shown on a terminal only
    return tqdm(total=size, desc=filename, unit="B", unit_scale=True, disable=small, leave=False)
