"""The dashboard as a server: who is answered, with what, and how it starts and ends."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from rlvr.files import locked
from rlvr.report import beside
from rlvr.report.dashboard import check_host, is_local_host
from rlvr.report.run_state import LOCK, WatchedRun
from rlvr.runs.ending import ending_noted
from rlvr.runs.log import RunLog
from tests.command import call, refused
from tests.report.serving import ask, ask_json, served
from tests.report.test_comparison import make


@pytest.fixture
def runs(tmp_path):
    folder = tmp_path / "runs"
    for name in ("a", "b"):
        make(folder, name, steps=6)
    return folder


def append(run, row):
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def test_every_answer_forbids_caching_framing_and_foreign_scripts(runs):
    with served(runs) as url:
        for path in ("", "run?name=a", "compare?run=a&run=b", "runs", "nowhere"):
            status, headers, text = ask(url + path)
            assert status == (404 if path == "nowhere" else 200), text
            assert headers["Cache-Control"] == "no-store"
            assert headers["Referrer-Policy"] == "no-referrer"
            assert headers["X-Content-Type-Options"] == "nosniff"
            policy = headers["Content-Security-Policy"]
            assert "default-src 'none'" in policy
            assert "frame-ancestors 'none'" in policy
            assert "unsafe" not in policy
            if text.startswith("<!doctype"):
                assert "connect-src 'self'" in policy
                inside = re.search(r'http-equiv="Content-Security-Policy" content="(.*?)"', text)
                assert policy.startswith(inside[1])


def test_a_page_written_to_a_file_may_ask_for_nothing(runs, tmp_path):
    from rlvr.report import write_comparison, write_report

    for page in (write_report(runs / "a"), write_comparison([runs], tmp_path / "page.html")):
        assert "connect-src" not in page.read_text().partition("<title>")[0]


def test_only_the_key_this_host_and_get_are_answered(runs):
    with served(runs) as url:
        base, key = re.fullmatch(r"(http://127\.0\.0\.1:\d+)/([\w-]{20,})/", url).groups()
        for wrong in ("/", f"/{key[:-1]}/", f"/{key}x/", "/x/runs", f"/{key}", f"//{key}/"):
            status, _, text = ask(base + wrong)
            assert status == 404, wrong
            assert "seed" not in text
        for host in ("evil.example", "evil.example:80", f"{key}.example", "127.0.0.1.evil.example"):
            assert ask(url, Host=host)[0] == 403, host
        for host in ("localhost:9999", "127.0.0.1", "[::1]:80", "LOCALHOST"):
            assert ask(url, Host=host)[0] == 200, host
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "PATCH"):
            status, headers, _ = ask(url + "runs", method)
            assert (status, headers["Allow"]) == (405, "GET,HEAD")
        assert ask(url + "runs", "HEAD")[0] == 200


@pytest.mark.parametrize(
    "host", ["", "a b", "[::1", "::1", "localhost.", "0.0.0.0", "@localhost.x"]
)
def test_odd_hosts_are_not_this_one(host):
    assert not is_local_host(host)


def test_names_come_from_the_listing_and_steps_are_numbers(runs, tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    make(tmp_path, "outside", steps=2)
    tried = [
        *("run?name=../outside", "run?name=%2e%2e/outside", "run?name=/etc", "run?name=", "run"),
        *("run?name=a/../b", "run?name=a%00", "compare?run=a&run=../outside", "plan", "news?run=a"),
        *(f"../{runs.name}/", "../../secret.txt", "%2e%2e/secret.txt", "a/metrics.jsonl"),
        "completions?run=../outside&kind=training&step=1",
        "completions?run=a&kind=../completions&step=1",
        "completions?run=a&kind=training&step=../1",
        "completions?run=a&kind=training&step=-1",
        "completions?run=a&kind=training&step=99",
        "completions?run=a&kind=&step=1",
        "news?run=a&since=x&files=../1",
    ]
    with served(runs) as url:
        for path in tried:
            status, _, text = ask(url + path)
            assert status in (400, 404), (path, status)
            assert "secret" not in text
        found = ask_json(url + "completions?run=a&kind=training&step=3")
        assert {row["problem_id"][:4] for row in found["rows"]} == {"add-"}


def test_news_are_the_lines_that_were_appended(runs):
    with served(runs) as url:
        page = ask(url + "run?name=a")[2]
        data = json.loads(re.search(r'id="report">(.*?)</script>', page, re.S)[1])
        assert data["steps"] == list(range(7))
        (position,) = data["live"]["positions"]
        files = len(data["completions"])

        def news(since):
            return ask_json(f"{url}news?run=a&since={since}&files={files}")[0]

        nothing = news(position)
        assert (nothing["rows"], nothing["restarted"], nothing["files"]) == ([], False, None)
        append(runs / "a", {"step": 7, "reward/mean": 0.5, "policy/loss": float("nan")})
        with (runs / "a" / "metrics.jsonl").open("a") as file:
            file.write('{"step": 8, "reward/me')
        new = news(position)
        assert new["rows"] == [
            {
                "step": 7,
                "values": {"reward/mean": 0.5},
                "broken": ["policy/loss"],
                "tokens": 0,
                "seconds": 0,
            }
        ]
        assert news(new["position"])["rows"] == [], "half a line is none yet"
        with (runs / "a" / "metrics.jsonl").open("a") as file:
            file.write('an": 0.25}\n')
        assert [row["step"] for row in news(new["position"])["rows"]] == [8]
        (runs / "a" / "new").write_text('{"step": 1}\n')
        (runs / "a" / "new").replace(runs / "a" / "metrics.jsonl")
        again = news(new["position"])
        assert again["restarted"]
        assert [row["step"] for row in again["rows"]] == [1]


def test_a_new_metric_gets_a_chart(runs):
    with served(runs) as url:
        append(runs / "b", {"step": 7, "brand/new": 1.0})
        alone = ask_json(url + "plan?run=b&overlay=0")
        assert "brand/new" in [item["metric"] for chart in alone for item in chart["series"]]
        both = ask_json(url + "plan?run=a&run=b&overlay=1")
        assert "brand/new" in [chart["metric"] for chart in both]


def test_the_state_of_a_run_is_told_by_its_lock_its_files_and_how_it_ended(runs):
    run = WatchedRun(runs / "a")
    assert run.state() == ("finished", "")
    (runs / "a" / "model").rmdir()
    assert run.state() == ("stopped", "")
    with locked(runs / "a" / LOCK, "the run"):
        assert run.state() == ("running", "")
        old = time.time() - 10_000
        for name in ("metrics.jsonl", "timeline.jsonl", "run.json"):
            if (runs / "a" / name).is_file():
                os.utime(runs / "a" / name, (old, old))
        assert run.state()[0] == "silent"
    (runs / "a" / LOCK).write_text("{}")
    assert run.state() == ("failed", "its process was killed")
    with pytest.raises(RuntimeError), ending_noted(runs / "a"):
        raise RuntimeError("no room\nleft")
    assert run.state() == ("failed", "RuntimeError: no room left")
    with ending_noted(runs / "a"):
        assert not (runs / "a" / "ended.json").exists()
    assert not (runs / "a" / "ended.json").exists()
    (runs / "a" / "ended.json").write_text("[]")
    assert run.state()[0] == "failed", "what cannot be read says nothing"


def test_the_time_left_is_that_of_the_last_steps(runs):
    (runs / "a" / "metrics.jsonl").write_text("")
    run = WatchedRun(runs / "a")
    assert run.describe()["eta"] is None
    for step in range(1, 6):
        append(runs / "a", {"step": step, "time/step": 3.0, "reward/mean": 0.1 * step})
    with locked(runs / "a" / LOCK, "the run"):
        told = run.describe()
    assert (told["step"], told["total"], told["eta"]) == (5, 60, 55 * 3.0)
    assert ["reward/mean", 0.5] in told["figures"]


def test_a_broken_run_does_not_hide_the_others(runs):
    (runs / "a" / "recipe.yaml").write_text("{: broken")
    with served(runs) as url:
        assert [run["name"] for run in ask_json(url + "runs")] == ["a", "b"]
        status, _, text = ask(url + "run?name=a")
        assert status == 409
        assert "could not be read" in text


def test_a_run_that_has_logged_nothing_yet_is_listed_and_shown(runs):
    (runs / "a" / "metrics.jsonl").unlink()
    (runs / "a" / "model").rmdir()
    with served(runs) as url, locked(runs / "a" / LOCK, "the run"):
        told = ask_json(url + "runs")[0]
        assert (told["name"], told["state"], told["step"]) == ("a", "running", 0)
        for path in ("run?name=a", "compare"):
            status, _, page = ask(url + path)
            assert status == 200, page
        append(runs / "a", {"step": 1, "reward/mean": 0.5})
        assert len(ask_json(url + "news?run=a&since=0-0&files=0")[0]["rows"]) == 1


def test_a_folder_without_runs_is_served_until_there_are_some(tmp_path):
    with served(tmp_path) as url:
        assert ask_json(url + "runs") == []
        assert ask(url)[0] == 200
        make(tmp_path, "first", steps=2)
        assert [run["name"] for run in ask_json(url + "runs")] == ["first"]


def test_names_do_not_change_when_other_runs_appear(tmp_path):
    make(tmp_path, "sweep/a", steps=2)
    with served(tmp_path) as url:
        assert [run["name"] for run in ask_json(url + "runs")] == ["sweep/a"]
        make(tmp_path, "other/b", steps=2)
        assert [run["name"] for run in ask_json(url + "runs")] == ["other/b", "sweep/a"]
        assert ask(url + "run?name=sweep%2Fa")[0] == 200
    with served(tmp_path / "sweep" / "a") as url:
        assert [run["name"] for run in ask_json(url + "runs")] == ["a"]


def test_wrong_uses_are_refused_in_one_line(runs):
    assert "nowhere is not a folder" in refused("dashboard", "nowhere")
    assert "loopback" in refused("dashboard", runs, "--host", "0.0.0.0")
    assert "ssh -L" in refused("dashboard", runs, "--host", "example.org")
    assert check_host("::1") == "::1"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"--port {port}" in refused("dashboard", runs, "--port", port)


def start(*words, **more):
    return subprocess.Popen(
        [sys.executable, "-m", "rlvr", "dashboard", *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )


def test_it_prints_its_address_and_ctrl_c_ends_it(runs):
    process = start(runs)
    url = process.stdout.readline().strip()
    assert ask(url)[0] == 200
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=20)
    assert (process.returncode, out, error) == (0, "", "")


def test_beside_a_run_it_ends_when_the_run_does(tmp_path):
    lines = []
    with beside.dashboard_beside(tmp_path / "runs" / "new", lines.append):
        deadline = time.monotonic() + 20
        while not lines and time.monotonic() < deadline:
            time.sleep(0.05)
        url = lines[0].removeprefix("dashboard: ")
        assert ask_json(url + "runs") == []
        make(tmp_path / "runs", "new", steps=2)
        assert [run["name"] for run in ask_json(url + "runs")] == ["new"]
    with pytest.raises(OSError, match="refused"):
        ask(url)
    assert len(lines) == 1, lines


def test_beside_a_run_it_never_makes_the_run_fail(tmp_path, monkeypatch):
    lines = []
    monkeypatch.setattr(beside.sys, "executable", str(tmp_path / "no python"))
    with beside.dashboard_beside(tmp_path, lines.append):
        pass
    assert "goes on without" in lines[0]
    monkeypatch.setenv("RANK", "1")
    with beside.dashboard_beside(tmp_path, lines.append):
        pass
    assert len(lines) == 1, "only the first process of a job starts one"


def test_a_run_shows_itself_meanwhile(recipe_values, tmp_path, monkeypatch):
    """The run waits in its first step until its dashboard was asked."""
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(recipe_values))
    found = []

    def step(log, number, metrics, write=RunLog.step):
        write(log, number, metrics)
        deadline = time.monotonic() + 30
        while not found and time.monotonic() < deadline:
            time.sleep(0.05)
            urls = re.findall(r"dashboard: (http://\S+)", sys.stdout.getvalue())
            found.extend(ask_json(urls[0] + "runs") if urls else [])

    monkeypatch.setattr(RunLog, "step", step)
    done = call("train", recipe, "steps=1", "--dashboard")
    assert done.returncode == 0, done.stderr
    (run,) = [run for run in found if run["name"] == Path(recipe_values["output"]).name]
    assert (run["state"], run["total"]) == ("running", 1)
