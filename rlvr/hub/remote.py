"""A repository of the Hub, through huggingface_hub: what it refuses, what is tried again.

An export is one commit, so no reader ever meets half a model. Files are stored by checksum before
the commit; what an interrupted upload has stored is not sent again. After the commit the
repository's list of files is held against the local ones.

The token comes from HF_TOKEN alone and is taken out of every message.
"""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from rlvr.hub.settings import check_repository
from rlvr.hub.words import public

T = TypeVar("T")

MARKER = "rlvr.json"
"""The file by which an export knows one of its own."""
KEPT = ".gitattributes"
"""The Hub's own file, which an export leaves as it is."""
_PASSING = {408, 425, 429, 500, 502, 503, 504}


class HubError(OSError):
    """The Hub refused or could not be reached; ``passing`` where another attempt may succeed."""

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


@dataclass(frozen=True)
class Remote:
    """What is at the target: files by name with their checksums, and the commit they are of.

    ``state``: there is no repository; no such revision in it; or there are both.
    """

    state: Literal["absent", "no revision", "there"]
    files: dict[str, str]
    commit: str | None = None


@dataclass(frozen=True)
class Pushed:
    """An export that is on the Hub."""

    url: str
    commit: str


class Repository:
    """A model repository, or one revision of it.

    Args:
        repo: OWNER/NAME.
        revision: Branch; None is main.
        private: Make it so; one that is there and public is refused.
        attempts: How often a request that failed in passing is made.
        first_wait_s: Seconds before the second attempt; each later one waits twice as long.
        say: Gets a line for each new attempt.

    Raises:
        ValueError: ``repo`` is no such id, or HF_TOKEN is not set.
    """

    def __init__(
        self,
        repo: str,
        revision: str | None = None,
        *,
        private: bool = False,
        attempts: int = 5,
        first_wait_s: float = 1.0,
        say: Callable[[str], None] = lambda text: None,
    ) -> None:
        from huggingface_hub import HfApi

        check_repository(repo)
        self.repo, self.revision, self.private = repo, revision, private
        self.attempts, self.first_wait_s, self.say = attempts, first_wait_s, say
        self.api = HfApi(token=token_from_environment(), endpoint=os.environ.get("HF_ENDPOINT"))

    @property
    def name(self) -> str:
        """For messages."""
        return self.repo + (f" (revision {self.revision})" if self.revision else "")

    def look(self, run: str, replace: bool = False) -> Remote:
        """See that an export may go there, before anything is made.

        Args:
            run: Fingerprint of the run; what an export of the same run left may be replaced.
            replace: Anything may be replaced.

        Raises:
            HubError: The token is not accepted, the Hub cannot be reached, the repository is
                public and is to be private, or holds other content.
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
                f"{self.name} holds other content ({shown}); choose another name, put the export "
                "beside it with --revision NAME, or replace it with --replace"
            )
        return remote

    def read(self) -> Remote:
        """What is at the target."""
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
        """Make the target hold exactly the files of ``folder``, in one commit, and check it.

        Raises:
            HubError: Something failed, more often than it is tried; what was stored stays so.
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
                # Anew in each attempt: an operation remembers what it has done.
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
        """The target as it is once repository and revision exist."""
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
        """Hold the repository's checksums against the local files."""
        files = self.read().files
        for name, path in names.items():
            if files.get(name) not in (sha256(path), git_blob(path)):
                what = "is missing there" if name not in files else "arrived otherwise"
                raise HubError(
                    f"after the upload to {self.name} {name} {what}; run the same command again",
                    passing=True,
                )

    def _check_privacy(self) -> None:
        if self.private and not self._asked("look", lambda: self.api.model_info(self.repo)).private:
            raise HubError(
                f"{self.repo} is there and public, but is to be private; make it private in its "
                "settings on the Hub, choose another name, or leave --private out"
            )

    def _owner(self, remote: Remote) -> str | None:
        """Fingerprint of the run whose export is there."""
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
        """The answer, after some attempts where the fault is one that passes."""
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
                self.say(f"{fault}; trying again")
        raise AssertionError("at least one attempt is made")

    def _explained(self, what: str, error: BaseException) -> HubError | None:
        """The fault in one line; None where it is none of the Hub's."""
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
            # The client wraps what went wrong with a file; storage clients raise their own.
            inner = error.__cause__
            known = None if inner is None else self._explained(what, inner)
            return known or HubError(f"upload to {self.name}: {_short(error)}", passing=True)
        return None

    def _refused(self, what: str, error: Any) -> HubError:  # noqa: ANN401
        status = error.response.status_code
        said = _short(error.server_message or "") or _short(error)
        if status == 401:
            return HubError(
                f"the Hub does not accept HF_TOKEN (401, {what}); make a new one with write access "
                "at https://huggingface.co/settings/tokens"
            )
        if status == 403:
            return HubError(
                f"HF_TOKEN has no right to {what} {self.name} (403: {said}); use a token with "
                "write access there, or another OWNER"
            )
        if status in _PASSING:
            return HubError(
                f"the Hub answers {status} to {what} {self.name} ({said})", passing=True
            )
        return HubError(f"the Hub refuses to {what} {self.name} ({status}: {said})")


def token_from_environment() -> str:
    """The Hub's token.

    Raises:
        ValueError: HF_TOKEN is not set.
    """
    token = os.environ.get("HF_TOKEN", "").strip()
    if not token:
        raise ValueError(
            "there is no Hub token: set HF_TOKEN to one with write access "
            "(https://huggingface.co/settings/tokens), or export to a folder with --to"
        )
    return token


def sha256(path: Path) -> str:
    """Checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git_blob(path: Path) -> str:
    """The id that git gives to a file's content."""
    digest = hashlib.sha1(f"blob {path.stat().st_size}\0".encode(), usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def _short(error: object) -> str:
    text = " ".join(public(str(error)).split())
    return text if len(text) <= 200 else text[:197] + "..."
