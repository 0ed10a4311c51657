"""A repository on the Hub, accessed with huggingface_hub: what it refuses, what is retried.

An export is one commit, so no reader sees half a model. Files are stored by checksum before the
commit; files stored by an interrupted upload are not sent again. After the commit the repository's
list of files is compared with the local files.

The token is read only from HF_TOKEN and removed from every message.
"""

import hashlib
import json
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from rlvr.hub.card_text import public
from rlvr.runs.hub_settings import check_repository, token_from_environment

T = TypeVar("T")

MARKER = "rlvr.json"
"""The file that marks a folder or repository as an export."""
KEPT = ".gitattributes"
"""The Hub's own file, which an export does not change."""
_PASSING = {408, 425, 429, 500, 502, 503, 504}


def quiet_hub(*, bars: bool) -> None:
    """Show only the client's errors; ``bars`` keeps its progress bars."""
    from huggingface_hub.utils import disable_progress_bars, logging

    logging.set_verbosity_error()
    warnings.filterwarnings("ignore", module="huggingface_hub")
    if not bars:
        disable_progress_bars()


class HubError(OSError):
    """The Hub refused or could not be reached; ``passing`` if another attempt may succeed."""

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


@dataclass(frozen=True)
class Remote:
    """The content of the target: files by name with their checksums, and their commit.

    ``state`` says whether the repository is missing, the revision is missing, or both exist.
    """

    state: Literal["absent", "no revision", "there"]
    files: dict[str, str]
    commit: str | None = None


@dataclass(frozen=True)
class Pushed:
    """An export on the Hub."""

    url: str
    commit: str


class Repository:
    """A model repository, or one revision of it.

    Args:
        repo: OWNER/NAME.
        revision: Branch; None is main.
        private: Create it as private; an existing public repository is refused.
        attempts: How often to try a request that fails temporarily.
        first_wait_s: Seconds before the second attempt; the wait doubles each time.
        notify: Called with a line for each new attempt.

    Raises:
        ValueError: ``repo`` is not an id of this form, or HF_TOKEN is not set.
    """

    def __init__(
        self,
        repo: str,
        revision: str | None = None,
        *,
        private: bool = False,
        attempts: int = 5,
        first_wait_s: float = 1.0,
        notify: Callable[[str], None] = lambda text: None,
    ) -> None:
        from huggingface_hub import HfApi

        check_repository(repo)
        self.repo, self.revision, self.private = repo, revision, private
        self.attempts, self.first_wait_s, self.notify = attempts, first_wait_s, notify
        self.api = HfApi(token=token_from_environment(), endpoint=os.environ.get("HF_ENDPOINT"))

    @property
    def name(self) -> str:
        """Name for messages."""
        return self.repo + (f" (revision {self.revision})" if self.revision else "")

    def look(self, run: str, replace: bool = False) -> Remote:
        """Check that an export may go there, before anything is built.

        Args:
            run: Fingerprint of the run; an export of the same run may be replaced.
            replace: Allow any content to be replaced.

        Raises:
            HubError: The token is rejected, the Hub cannot be reached, the repository is public but
                should be private, or it has other content.
        """
        self._asked("whoami", self.api.whoami)
        remote = self.read()
        if remote.state == "absent":
            return remote
        self._check_privacy()
        others = sorted(set(remote.files) - {KEPT})
        if remote.state == "there" and others and not replace and self._owner(remote) != run:
            shown = ", ".join(others[:3]) + (", ..." if others[3:] else "")
            raise HubError(
                f"{self.name} has other content ({shown}); choose another name, send the export to "
                "a branch with --revision NAME, or replace the content with --replace"
            )
        return remote

    def read(self) -> Remote:
        """Read the content of the target."""
        from huggingface_hub.errors import (
            EntryNotFoundError,
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

        def found() -> Remote:
            try:
                info = self.api.model_info(self.repo, revision=self.revision)
                tree = list(
                    self.api.list_repo_tree(self.repo, recursive=True, revision=self.revision)
                )
            except RevisionNotFoundError:
                return Remote("no revision", {})
            except EntryNotFoundError:
                return Remote("there", {})
            except RepositoryNotFoundError as error:
                if error.response.status_code == 404:
                    return Remote("absent", {})
                raise
            files = {
                item.path: item.lfs.sha256 if item.lfs else item.blob_id
                for item in tree
                if hasattr(item, "blob_id")
            }
            return Remote("there", files, info.sha)

        return self._asked("list files", found)

    def push(self, folder: Path, message: str) -> Pushed:
        """Commit exactly the files of ``folder`` to the target, and check the result.

        Raises:
            HubError: A request failed in every attempt; files that were stored stay stored.
        """
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        remote = self._made()
        paths = sorted(path for path in folder.rglob("*") if path.is_file())
        names = {path.relative_to(folder).as_posix(): path for path in paths}
        gone = sorted(set(remote.files) - set(names) - {KEPT})
        pushed = self._asked(
            "upload",
            lambda: self.api.create_commit(
                self.repo,
                # Created again for each attempt, because an operation remembers what it has done.
                [
                    *(CommitOperationAdd(name, path) for name, path in names.items()),
                    *(CommitOperationDelete(name) for name in gone),
                ],
                commit_message=message,
                revision=self.revision,
            ),
        )
        self._verify(names)
        return Pushed(f"{self.api.endpoint}/{self.repo}{self._tree}", str(pushed.oid))

    @property
    def _tree(self) -> str:
        return f"/tree/{self.revision}" if self.revision else ""

    def _made(self) -> Remote:
        """The content of the target, after creating repository and revision if needed."""
        remote = self.read()
        if remote.state == "absent":
            self._asked(
                "create",
                lambda: self.api.create_repo(self.repo, private=self.private, exist_ok=True),
            )
            remote = self.read()
        if remote.state == "no revision":
            assert self.revision is not None, "a repository always has its main branch"
            branch = self.revision
            self._asked(
                "create a branch",
                lambda: self.api.create_branch(self.repo, branch=branch, exist_ok=True),
            )
            remote = self.read()
        return remote

    def _verify(self, names: dict[str, Path]) -> None:
        """Compare the repository's checksums with the local files."""
        files = self.read().files
        for name, path in names.items():
            if files.get(name) not in (sha256(path), git_blob(path)):
                what = "is missing" if name not in files else "has a different checksum"
                raise HubError(
                    f"after the upload to {self.name} {name} {what}; run the same command again",
                    passing=True,
                )

    def _check_privacy(self) -> None:
        if self.private and not self._asked("look", lambda: self.api.model_info(self.repo)).private:
            raise HubError(
                f"{self.repo} exists and is public, but should be private; make it private in its "
                "settings on the Hub, choose another name, or remove --private"
            )

    def _owner(self, remote: Remote) -> str | None:
        """Fingerprint of the run whose export is at the target."""
        if MARKER not in remote.files:
            return None
        with tempfile.TemporaryDirectory() as folder:
            path = self._asked(
                "download",
                lambda: self.api.hf_hub_download(
                    self.repo, MARKER, revision=self.revision, local_dir=folder
                ),
            )
            try:
                return str(json.loads(Path(path).read_text(encoding="utf-8"))["run"])
            except (ValueError, KeyError, TypeError):
                return None

    def _asked(self, what: str, action: Callable[[], T]) -> T:
        """The answer to a request, which is repeated after temporary faults."""
        from huggingface_hub.errors import HTTPError

        for attempt in range(self.attempts):
            if attempt:
                time.sleep(self.first_wait_s * 2 ** (attempt - 1))
            try:
                return action()
            except (HTTPError, ConnectionError, TimeoutError, RuntimeError) as error:
                fault = self._explained(what, error)
                if fault is None:
                    raise
                if not fault.passing or attempt == self.attempts - 1:
                    raise fault from error
                self.notify(f"{fault}; trying again")
        raise AssertionError("at least one attempt is made")

    def _explained(self, what: str, error: BaseException) -> HubError | None:
        """The Hub's fault in one line; None for any other exception."""
        from huggingface_hub.errors import HfHubHTTPError, HTTPError, OfflineModeIsEnabled

        if isinstance(error, OfflineModeIsEnabled):
            return HubError("HF_HUB_OFFLINE is set, so nothing is sent to the Hub; unset it")
        if isinstance(error, HfHubHTTPError):
            return self._refused(what, error)
        if isinstance(error, HTTPError | ConnectionError | TimeoutError):
            reason = _short(error) or type(error).__name__
            return HubError(
                f"the Hub at {self.api.endpoint} cannot be reached ({reason}); check the network, "
                "HF_ENDPOINT and https://status.huggingface.co",
                passing=True,
            )
        if isinstance(error, RuntimeError) and what == "upload":
            # The client wraps faults of files; storage clients raise their own exceptions.
            inner = error.__cause__
            known = None if inner is None else self._explained(what, inner)
            return known or HubError(f"upload to {self.name}: {_short(error)}", passing=True)
        return None

    def _refused(self, what: str, error: Any) -> HubError:  # noqa: ANN401
        status = error.response.status_code
        said = _short(error.server_message or "") or _short(error)
        if status == 401:
            return HubError(
                f"the Hub rejects HF_TOKEN (401, {what}); create a new token with write access "
                "at https://huggingface.co/settings/tokens"
            )
        if status == 403:
            return HubError(
                f"HF_TOKEN has no right to {what} {self.name} (403: {said}); use a token with "
                "write access, or another OWNER"
            )
        if status in _PASSING:
            return HubError(
                f"the Hub answers {status} to {what} {self.name} ({said})", passing=True
            )
        return HubError(f"the Hub refuses to {what} {self.name} ({status}: {said})")


def sha256(path: Path) -> str:
    """Checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git_blob(path: Path) -> str:
    """Git's id of a file's content."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _short(error: object) -> str:
    text = " ".join(public(str(error)).split())
    return text if len(text) <= 200 else text[:197] + "..."
