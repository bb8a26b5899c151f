import json
import time
from collections.abc import Callable
from typing import Any

from tests.dragoman.cli.conftest import Run
from tests.dragoman.conftest import YODA
from tests.dragoman.servers import Reply, ScriptedServer

BRIEF = ["--set", "training.logging_steps=1", "--set", "evaluation.holdout=3"]


def wait_until(at: Run, job_id: str, is_so: Callable[[Any], bool]) -> None:
    deadline = time.monotonic() + 180
    while not is_so(job := json.loads(at("jobs", "show", job_id, "--json").out)):
        assert job["error"] is None, job["error"]
        assert time.monotonic() < deadline, job["status"]
        time.sleep(0.2)


def test_paused_resumed_published_and_deleted(at: Run) -> None:
    options = [*BRIEF, "--epochs", "500", "--priority", "high"]
    submitted = at("train", str(YODA), "-a", "cli-paused", *options, "--detach", "--json")
    job = json.loads(submitted.out)
    assert job["priority"] == "high"
    assert at("jobs", "resume", job["id"]).code == 4
    wait_until(at, job["id"], lambda job: job["progress"]["step"] > 0)
    paused = at("jobs", "pause", job["id"])
    assert (paused.code, paused.err) == (0, "")
    assert paused.out in (f"{job['id']} pausing\n", f"{job['id']} paused\n")
    wait_until(at, job["id"], lambda job: job["status"] == "paused")
    assert "status:     paused" in at("jobs", "show", job["id"]).out
    again = at("jobs", "pause", job["id"])
    assert again.code == 4
    assert "paused" in again.err
    assert at("jobs", "delete", job["id"]).code == 4
    resumed = json.loads(at("jobs", "resume", job["id"], "--json").out)
    assert resumed["status"] == "queued"
    wait_until(at, job["id"], lambda job: job["status"] == "running")
    assert at("jobs", "cancel", job["id"], "--publish").code == 0
    at("jobs", "follow", job["id"])
    assert "cli-paused@1" in at("jobs", "show", job["id"]).out
    assert at("jobs", "delete", job["id"]).out == f"{job['id']} deleted\n"
    for command in ("show", "follow", "log", "pause", "resume", "cancel", "delete"):
        assert at("jobs", command, job["id"]).code == 4


def test_following_as_json_ends_as_the_job_does(run: Run, scripted: ScriptedServer) -> None:
    stream = {"content-type": "text/event-stream"}
    job = {"id": "j", "adapter": "a", "dataset_id": "d", "created_at": "2030-01-01T00:00:00Z"}
    for status, code in (("succeeded", 0), ("failed", 1), ("cancelled", 1)):
        body = f'event: done\nid: 1-0\ndata: {{"status": "{status}"}}\n\n'
        scripted.replies = [
            Reply(body=job | {"status": status}),
            Reply(body=body, headers=stream),
        ]
        ran = run("jobs", "follow", "j", "--json", "--url", scripted.url)
        assert json.loads(ran.out)["data"] == {"status": status}
        assert ran.code == code


def test_a_server_that_was_never_there_is_not_waited_for(run: Run, unused_url: str) -> None:
    for options in ([], ["--json"]):
        ran = run("jobs", "follow", "j", *options, "--url", unused_url)
        assert ran.code == 3
        assert "cannot reach" in ran.err
