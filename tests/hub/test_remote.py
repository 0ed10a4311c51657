"""Through the real client to a Hub on loopback and back: what arrives, what fails, what goes on."""

import json
import os
import shutil
import signal
import socket
import subprocess
import time

import pytest
from huggingface_hub import HfApi, snapshot_download

from rlvr.hub.export import Wanted, export_run
from rlvr.hub.remote import HubError, Repository, git_blob, sha256
from rlvr.policy.tiny import TinySettings, write_tiny_model
from tests.command import call
from tests.hub.runs import ROOT, command, environment, rl_values, train
from tests.hub.server import OWNER, TOKEN, Fault

REPO = f"{OWNER}/tiny"


def push(run, hub, **wanted):
    """Without waiting between attempts; the lines that were said."""
    said = []
    wanted = Wanted(**{"repo": REPO, "attempts": 3, **wanted})
    step = 2 if wanted.revision == "step-2" else None
    found = export_run(run, wanted, step=step, notify=said.append)
    return found, said


pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    """The waits between attempts, counted and not waited."""
    monkeypatch.setattr("rlvr.hub.remote.time.sleep", lambda seconds: None)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda seconds: None)


@pytest.fixture(scope="module")
def folder(run, tmp_path_factory):
    """What the export is, as a folder."""
    folder = tmp_path_factory.mktemp("export") / "tiny"
    export_run(run, Wanted(to=folder))
    return folder


def content(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def download(hub, tmp_path, **which):
    path = tmp_path / "back"
    shutil.rmtree(path, ignore_errors=True)
    snapshot_download(REPO, local_dir=path, endpoint=hub.url, token=TOKEN, **which)
    shutil.rmtree(path / ".cache", ignore_errors=True)
    (path / ".gitattributes").unlink()
    return path


class TestRoundTrip:
    def test_what_was_sent_comes_back(self, run, hub, folder, tmp_path):
        pushed, _ = push(run, hub)
        assert pushed.url == f"{hub.url}/{REPO}"
        back = download(hub, tmp_path)
        one, two = content(folder), content(back)
        assert set(one) == set(two)
        # The card names the repository instead of the folder; the marker holds its checksum.
        assert {name for name in one if one[name] != two[name]} == {"README.md", "rlvr.json"}
        sums = json.loads(two["rlvr.json"])["files"]
        for name, item in sums.items():
            assert (sha256(back / name), (back / name).stat().st_size) == (
                item["sha256"],
                item["size"],
            )
        assert f"from_pretrained({REPO!r})" in two["README.md"].decode()
        assert hub.repos[REPO].log == ["main: initial commit", "main: Step 4 of whole"]

    def test_again_sends_nothing_and_commits_nothing(self, run, hub):
        push(run, hub)
        before = dict(hub.received)
        push(run, hub)
        assert hub.received == before
        assert len(hub.repos[REPO].log) == 2

    def test_a_later_step_takes_the_place_of_an_earlier_one(self, run, hub):
        export_run(run, Wanted(repo=REPO), step=2)
        push(run, hub)
        assert json.loads(hub.files(REPO)["rlvr.json"])["step"] == 4
        assert len(hub.repos[REPO].log) == 3

    def test_a_revision_stands_beside_main(self, run, hub):
        push(run, hub)
        pushed, _ = push(run, hub, revision="step-2")
        assert pushed.url == f"{hub.url}/{REPO}/tree/step-2"
        steps = {
            branch: json.loads(hub.files(REPO, branch)["rlvr.json"])["step"]
            for branch in ("main", "step-2")
        }
        assert steps == {"main": 4, "step-2": 2}

    def test_an_adapter_takes_the_place_of_the_merged_model(self, lora_run, hub):
        push(lora_run, hub)
        push(lora_run, hub, adapter_only=True)
        assert "adapter_model.safetensors" in hub.files(REPO)
        assert "model.safetensors" not in hub.files(REPO)

    def test_privacy(self, run, hub):
        push(run, hub, private=True)
        assert hub.repos[REPO].private
        hub.repos[REPO].private = False
        with pytest.raises(HubError, match="exists and is public"):
            push(run, hub, private=True)

    def test_it_also_leaves_the_folder(self, run, hub, tmp_path):
        push(run, hub, to=tmp_path / "m")
        assert content(tmp_path / "m") == hub.files(REPO)


class TestOtherContent:
    FILES = {"thesis.txt": b"mine", "model.safetensors": b"x" * 9000}  # noqa: RUF012

    def test_it_is_left_alone(self, run, hub):
        hub.make(REPO, self.FILES)
        with pytest.raises(HubError, match=r"other content \(model.safetensors, thesis.txt\)"):
            push(run, hub)
        assert hub.files(REPO) == self.FILES
        assert not hub.count("POST .*/commit/")

    def test_another_runs_export_is_other_content(self, run, lora_run, hub):
        push(lora_run, hub)
        with pytest.raises(HubError, match="--revision NAME, or replace"):
            push(run, hub)

    def test_a_new_revision_holds_the_export_alone(self, run, hub):
        hub.make(REPO, self.FILES)
        push(run, hub, revision="step-2")
        assert hub.files(REPO) == self.FILES
        assert "thesis.txt" not in hub.files(REPO, "step-2")
        assert "README.md" in hub.files(REPO, "step-2")

    def test_an_old_revision_is_as_safe_as_main(self, run, hub):
        repo = hub.make(REPO, self.FILES)
        repo.branches["step-2"] = repo.branches["main"]
        with pytest.raises(HubError, match=r"\(revision step-2\) has other content"):
            push(run, hub, revision="step-2")

    def test_it_is_replaced_on_demand(self, run, hub, folder):
        hub.make(REPO, self.FILES)
        push(run, hub, replace=True)
        assert set(hub.files(REPO)) == set(content(folder))
        assert ".gitattributes" in hub.repos[REPO].commits[hub.repos[REPO].branches["main"]]

    def test_an_empty_repository_is_taken(self, run, hub):
        hub.make(REPO)
        push(run, hub)
        assert "model.safetensors" in hub.files(REPO)


class TestFaults:
    def refusal(self, run, hub, match, **wanted):
        with pytest.raises((HubError, ValueError), match=match) as caught:
            push(run, hub, **wanted)
        assert "\n" not in str(caught.value)
        assert TOKEN not in str(caught.value)
        return caught.value

    def test_no_token(self, run, hub, monkeypatch):
        monkeypatch.delenv("HF_TOKEN")
        self.refusal(run, hub, "set HF_TOKEN")
        assert not hub.requests

    def test_a_token_in_a_file_is_not_taken(self, run, hub, monkeypatch, tmp_path):
        (tmp_path / "token").write_text(TOKEN)
        monkeypatch.delenv("HF_TOKEN")
        monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "token"))
        self.refusal(run, hub, "set HF_TOKEN")

    def test_a_token_that_is_not_accepted(self, run, hub, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", "hf_wrongwrongwrong")
        self.refusal(run, hub, r"rejects HF_TOKEN \(401")
        assert hub.count("whoami") == 1

    def test_no_rights(self, run, hub):
        self.refusal(run, hub, r"no right to create other/tiny \(403: You don't", repo="other/tiny")

    def test_no_rights_to_commit(self, run, hub):
        hub.faults.append(Fault("POST .*/commit/", status=403, message="read-only token"))
        self.refusal(run, hub, r"no right to upload .*read-only token")
        assert not hub.files(REPO)

    def test_an_impossible_name(self, run, hub):
        for name in ("tiny", "a/b/c", "a/b c", "../x"):
            self.refusal(run, hub, "not the id of a Hub repository", repo=name)
        assert not hub.requests

    def test_nobody_listens(self, run, hub, monkeypatch):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{port}")
        error = self.refusal(run, hub, rf"127.0.0.1:{port} cannot be reached")
        assert error.passing

    @pytest.mark.parametrize(
        ("request_", "status"),
        [
            *((request, 503) for request in ("GET /api/whoami", "POST /api/repos/create")),
            *((request, 500) for request in ("preupload", "PUT", "/commit/")),
            *(("/commit/", status) for status in (502, 503, 429)),
        ],
    )
    def test_a_fault_that_passes_is_overcome(self, run, hub, folder, status, request_):
        hub.faults.append(Fault(request_, status=status, times=2))
        push(run, hub)
        assert set(hub.files(REPO)) == set(content(folder))

    @pytest.mark.parametrize("request_", ["whoami", "/tree/", "create", "PUT", "/commit/"])
    def test_a_cut_connection_is_overcome(self, run, hub, folder, request_):
        hub.faults.append(Fault(request_, drop=True, times=2))
        push(run, hub)
        assert set(hub.files(REPO)) == set(content(folder))

    def test_a_fault_that_stays_ends_in_one_line(self, run, hub):
        hub.faults.append(Fault("/commit/", status=500, times=1000, message="out of order"))
        error = self.refusal(run, hub, r"answers 500 to upload .*out of order")
        assert error.passing
        assert hub.count("/commit/") == 3

    def test_a_commit_whose_answer_is_lost_is_not_made_twice(self, run, hub, monkeypatch):
        send, calls = HfApi.create_commit, []

        def lost(self, *args, **kwargs):
            done = send(self, *args, **kwargs)
            calls.append(done)
            if len(calls) == 1:
                raise ConnectionResetError("cut")
            return done

        monkeypatch.setattr(HfApi, "create_commit", lost)
        push(run, hub)
        assert len(calls) == 2
        assert len(hub.repos[REPO].log) == 2

    def test_what_arrives_otherwise_is_noticed(self, run, hub, monkeypatch):
        commit = type(hub.repos.setdefault(REPO, hub.make(REPO))).commit

        def spoiling(self, branch, files, summary):
            files = {n: e for n, e in files.items() if n != "config.json"}
            return commit(self, branch, files, summary)

        monkeypatch.setattr("tests.hub.server.Repo.commit", spoiling)
        self.refusal(run, hub, r"config.json is missing; run the same command again")

    def test_a_slow_hub(self, run, hub, folder):
        hub.faults.append(Fault("", delay=0.3, times=8))
        push(run, hub)
        assert set(hub.files(REPO)) == set(content(folder))

    def test_offline(self, run, hub):
        done = subprocess.run(
            command(run, "--push-to-hub", REPO),
            env=environment(HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN, HF_HUB_OFFLINE="1"),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=200,
        )
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].startswith("rlvr: HF_HUB_OFFLINE is set")


def test_checksums_are_gits_and_the_hubs(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"hello\n")
    assert git_blob(path) == "ce013625030ba8dba906f756967f9e9ca394464a"
    assert sha256(path).startswith("5891b5b522d5df086d0ff0b110fbd9d2")


def test_an_unknown_repository_is_absent_and_an_unknown_branch_is_said(hub):
    assert Repository(REPO).read().state == "absent"
    hub.make(REPO, {"a": b"1"})
    assert Repository(REPO, "x").read().state == "no revision"
    remote = Repository(REPO).read()
    assert set(remote.files) == {"a", ".gitattributes"}
    assert remote.commit == hub.repos[REPO].branches["main"]


@pytest.fixture(scope="module")
def big(tmp_path_factory):
    """A LoRA run, so that what is sent is made anew by each command; 12 MB of weights.

    What lies in the buffers of a socket arrives after the sender is gone; this does not fit.
    """
    folder = tmp_path_factory.mktemp("big")
    shape = TinySettings(hidden_size=256, layers=4, heads=8, key_value_heads=8)
    write_tiny_model(folder / "base", 0, shape)
    values = rl_values(folder / "base", folder / "run", steps=2, evaluation={})
    values["model"]["lora"] = {"rank": 4}
    return train(values)


def start(run, hub, *more):
    return subprocess.Popen(
        command(run, "--push-to-hub", REPO, *more),
        env=environment(HF_ENDPOINT=hub.url, HF_TOKEN=TOKEN),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow  # and the machine's buffers have to be behind for it to find a cut file
def test_killed_while_it_sends_the_same_command_goes_on(big, hub, tmp_path):
    hub.pace = 60_000  # bytes a second and file: pictures are soon through, the weights are not
    process = start(big, hub)
    deadline = time.monotonic() + 250
    while not (hub.stored and len(hub.received) > len(hub.stored)):
        assert process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(30)
    hub.pace = 0
    for _ in range(100):  # what was on its way still arrives
        before = dict(hub.received)
        time.sleep(0.2)
        if hub.received == before:
            break
    kept, first = set(hub.stored), dict(hub.received)
    cut = set(first) - kept
    assert kept, "some files were through"
    assert cut, "and one was cut"
    assert not hub.files(REPO), "nothing may show before all is there"
    process = start(big, hub)
    output, _ = process.communicate(timeout=250)
    assert process.returncode == 0, output
    assert TOKEN not in output
    for oid in kept:
        assert hub.received[oid] == first[oid], "what was stored is not sent again"
    assert cut <= set(hub.stored), "what was cut is sent anew, and is the same"
    back = download(hub, tmp_path)
    marker = json.loads((back / "rlvr.json").read_text())
    for name, item in marker["files"].items():
        assert sha256(back / name) == item["sha256"], name
    assert set(marker["files"]) | {"rlvr.json"} == set(content(back))
    for path in big.rglob("*"):
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


def test_the_command_speaks_one_line_of_what_went_wrong(run, hub):
    hub.authorised.clear()
    done = call("export", run, "--push-to-hub", REPO)
    assert done.returncode == 2
    line = done.stderr.strip().splitlines()[-1]
    assert line.startswith(f"rlvr: HF_TOKEN has no right to create {REPO} (403")
    assert TOKEN not in line
