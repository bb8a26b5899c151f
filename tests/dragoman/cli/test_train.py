import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import dragoman
from dragoman.cli.exit_codes import WrongUsageError
from dragoman.cli.train import build_config
from tests.dragoman.cli.conftest import Run
from tests.dragoman.conftest import YODA

SHORT = ["--set", "training.max_steps=3", "--set", "evaluation.holdout=3"]
ALWAYS = ["--set", "evaluation.promote=always"]


def test_a_file_becomes_an_adapter(at: Run, client: dragoman.Client) -> None:
    ran = at("train", str(YODA), "-a", "cli-made", "-s", "en", "-t", "en-x-cli", *SHORT, *ALWAYS)
    assert ran.code == 0, ran.err
    assert "180 pairs" in ran.err
    assert "step 3/3" in ran.err
    assert ran.out.splitlines()[0].startswith("loss ")
    assert "BLEU" in ran.out or "new version 1\t" in ran.out
    assert "published cli-made@1, now current" in ran.out
    command = next(line for line in ran.err.splitlines() if line.startswith("try it: "))
    assert command.endswith("--adapter cli-made")
    assert client.adapters.get("cli-made").target == "en-x-cli"

    job = json.loads(at("jobs", "list", "-a", "cli-made", "--json").out)[0]
    assert at("jobs", "list", "-a", "cli-made").out.split("\t")[:4] == [
        job["id"],
        "cli-made",
        "1",
        "succeeded",
    ]
    shown = at("jobs", "show", job["id"])
    assert "status:     succeeded" in shown.out
    assert "3 of 3 steps" in shown.out
    events = [
        json.loads(line) for line in at("jobs", "follow", job["id"], "--json").out.splitlines()
    ]
    assert events[-1]["event"] == "done"
    assert at("jobs", "follow", job["id"]).code == 0
    assert "training" in at("jobs", "log", job["id"]).out
    assert at("jobs", "cancel", job["id"]).code == 4
    version = at("adapters", "show", "cli-made@1")
    assert job["id"] in version.out


def test_json_is_the_job_and_nothing_else(at: Run) -> None:
    ran = at("train", str(YODA), "-a", "cli-json", *SHORT, "--json")
    assert ran.err == ""
    job = json.loads(ran.out)
    assert (job["status"], job["adapter_version"]) == ("succeeded", 1)


def test_detached_then_cancelled(at: Run, client: dragoman.Client) -> None:
    ran = at("train", str(YODA), "-a", "cli-detached", "--epochs", "500", "--detach")
    job_id = ran.out.strip()
    assert f"jobs follow {job_id}" in ran.err
    assert client.jobs.get(job_id).config["training"]["num_train_epochs"] == 500
    assert at("jobs", "cancel", job_id).code == 0
    ran = at("jobs", "follow", job_id)
    assert ran.code == 1
    assert "cancelled" in ran.err


def test_ctrl_c_leaves_the_job_running(service_url: str, client: dragoman.Client) -> None:
    options = ["-a", "cli-left", "--epochs", "500", "--url", service_url]
    with subprocess.Popen(
        [sys.executable, "-m", "dragoman.cli", "train", str(YODA), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={k: v for k, v in os.environ.items() if k != "DRAGOMAN_URL"},
        # Whoever runs the tests in the background has it ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stderr
        while not process.stderr.readline().startswith("running"):
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        said = process.stderr.read()
        assert process.wait(120) == 130
    job = client.jobs.list(adapter="cli-left")[0]
    assert f"dragoman jobs follow {job.id} --url {service_url}" in said
    assert "Traceback" not in said
    time.sleep(0.5)
    assert not client.jobs.get(job.id).ended
    client.jobs.cancel(job.id)


def test_a_bad_file_is_told_line_by_line(at: Run, tmp_path: Path) -> None:
    bad = tmp_path / "bad.csv"
    bad.write_text("prompt,completion\nfine,fine too\nno target,\n")
    ran = at("train", str(bad), "-a", "cli-bad")
    assert ran.code == 4
    assert "line 3" in ran.err
    assert "--skip-errors" in ran.err
    ran = at("train", str(bad), "-a", "cli-bad", "--json")
    assert json.loads(ran.err)["error"]["report"]["errors"][0]["line"] == 3


def test_a_wrong_setting_is_named(at: Run) -> None:
    ran = at("train", str(YODA), "-a", "x", "--set", "training.learning_rat=1")
    assert ran.code == 4
    assert "learning_rat" in ran.err


def test_config_from_a_file_and_options(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"lora": {"r": 8}, "preset": "fast"}')
    config = build_config(
        path,
        [
            "lora.lora_alpha=16",
            "training.learning_rate=3e-4",
            "training.lr_scheduler_type=cosine",
            "training.packing=true",
            'lora.target_modules=["q_proj"]',
        ],
    )
    assert config == {
        "preset": "fast",
        "lora": {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]},
        "training": {"learning_rate": 3e-4, "lr_scheduler_type": "cosine", "packing": True},
    }


@pytest.mark.parametrize("wrong", ["lora.r", "=3", "preset.r=3"])
def test_odd_assignments_are_named(tmp_path: Path, wrong: str) -> None:
    path = tmp_path / "config.json"
    path.write_text('{"preset": "fast"}')
    with pytest.raises(WrongUsageError, match=wrong.split("=")[0] or "KEY=VALUE"):
        build_config(path, [wrong])
    path.write_text("[]")
    with pytest.raises(WrongUsageError, match="no JSON object"):
        build_config(path, [])
