"""From a claim to a judged version, in this process: what is judged, where the judgement stands, what is made current."""

import json
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fastapi.testclient import TestClient
from safetensors.torch import load_file

from app.main import create_app
from core.adapter_version import SEAL_FILE, WEIGHTS_FILE, AdapterVersion
from core.datasets import Exchange, Row
from core.holdout import HoldOut
from core.job_store import events_key
from core.jobs import Job, JobStatus
from core.metrics import read_curve
from core.settings import Settings
from tests.worker.conftest import ROWS, SHORT, Jobs
from worker.job_log import LOG_FILE
from worker.tasks import train
from worker.trainer import AdapterTrainer

TrainJob = Callable[..., Job]


def config(**evaluation: Any) -> dict[str, Any]:
    return SHORT | {"evaluation": {"promote": "always"} | evaluation}


@pytest.fixture
def run(jobs: Jobs, worker_settings: Settings) -> TrainJob:
    def run(rows: list[Row] = ROWS, **evaluation: Any) -> Job:
        job = jobs.create(config(**evaluation), rows=rows)
        train(worker_settings)
        job = jobs.store.get(job.id)
        assert (job.status, job.error) == (JobStatus.SUCCEEDED, None)
        return job

    return run


def events(jobs: Jobs, job: Job) -> list[tuple[str, dict[str, Any]]]:
    entries = jobs.store._redis.xrange(events_key(job.id))
    return [(e["type"], json.loads(e["data"])) for _, e in entries]


def test_judgement_stands_in_job_seal_card_and_events(jobs: Jobs, run: TrainJob) -> None:
    job = run(holdout=8)
    evaluation = job.evaluation
    assert evaluation
    assert (evaluation.rows, evaluation.against, evaluation.current) == (8, "base", None)
    assert (evaluation.metric, evaluation.promoted) == ("bleu", True)
    assert evaluation.p_value is None  # of 8 rows
    assert evaluation.gain == pytest.approx(evaluation.candidate.bleu - evaluation.base.bleu)
    assert evaluation.reason.startswith("Made current, as promote is 'always': ")
    assert set(evaluation.signatures) == {"BLEU", "chrF2++"}

    held_out = HoldOut.choose((row.prompt for row in ROWS), 8)
    pairs = {(row.prompt, row.completion) for row in ROWS if held_out.holds(row.prompt)}
    assert {(s.source, s.reference) for s in evaluation.samples} == pairs
    assert len(evaluation.samples) == 8

    version = jobs.registry.resolve("yoda")
    assert version.seal.evaluation == evaluation
    assert job.resolved
    assert job.resolved.evaluation.holdout == 8
    assert version.seal.config == job.resolved.model_dump(mode="json")
    assert evaluation.reason in (version.path / "README.md").read_text()
    (told,) = [data for kind, data in events(jobs, job) if kind == "evaluation"]
    assert told == evaluation.model_dump(mode="json")
    statuses = [data["status"] for kind, data in events(jobs, job) if kind == "status"]
    assert statuses == ["queued", "preparing", "running", "evaluating", "succeeded"]
    assert any("eval" in data for kind, data in events(jobs, job) if kind == "metrics")


def test_held_out_answers_are_those_that_the_server_gives(jobs: Jobs) -> None:
    """With the embedded base, whose answers are no coin tosses; in float32."""
    settings = jobs.settings.model_copy(
        update={"base_model": "", "compute_dtype": "float32", "base_weights": "unpacked"}
    )
    template = "Say it as a master: {text}"
    exact = config(holdout=10) | {
        "quantization": {"bnb_4bit_compute_dtype": "float32"},
        "prompt": {"template": template},
        "training": SHORT["training"] | {"max_steps": 8, "learning_rate": 5e-3, "eval_steps": 8},
    }
    job = jobs.create(exact)
    train(settings)
    evaluation = jobs.store.get(job.id).evaluation
    assert evaluation
    samples = evaluation.samples
    assert len(samples) == 10
    sources = [s.source for s in samples]
    asked = {
        "yoda@1": (sources, [s.candidate for s in samples]),
        "base": ([template.replace("{text}", s) for s in sources], [s.base for s in samples]),
    }
    with TestClient(create_app(settings)) as client:
        while client.get("/ready").status_code != 200:
            time.sleep(0.1)
        for adapter, (texts, answers) in asked.items():
            response = client.post("/translate", json={"q": texts, "adapter": adapter})
            assert response.json()["translatedText"] == answers
    assert any(s.base != s.candidate for s in samples)


def test_second_version_is_compared_with_the_current_one(jobs: Jobs, run: TrainJob) -> None:
    first, second = run(holdout=10).evaluation, run(holdout=10).evaluation
    assert first
    assert second
    assert second.against == "yoda@1"
    # The same rows, the same seed: the same translator.
    assert second.current == first.candidate == second.candidate
    assert [s.current for s in second.samples] == [s.candidate for s in first.samples]
    assert (second.gain, second.p_value) == (0, 1)
    assert jobs.registry.get("yoda").current == 2  # always

    third = run(holdout=10, promote="if_better").evaluation
    assert third
    assert third.against == "yoda@2"
    assert third.reason.endswith("is that of yoda@2; any gain was asked for.")
    adapter = jobs.registry.get("yoda")
    assert (adapter.versions, adapter.current) == ([1, 2, 3], 2)


def test_refused_version_is_published(jobs: Jobs, run: TrainJob) -> None:
    job = run(promote="never")
    assert job.evaluation
    assert not job.evaluation.promoted
    assert job.adapter_version == 1
    adapter = jobs.registry.get("yoda")
    assert (adapter.versions, adapter.current) == ([1], None)
    assert run(promote="if_better").evaluation.against == "base"  # type: ignore[union-attr]


def _without_weights(version: AdapterVersion) -> None:
    (version.path / WEIGHTS_FILE).unlink()


def _of_another_base(version: AdapterVersion) -> None:
    seal = version.seal.model_copy(update={"base_fingerprint": "another"})
    (version.path / SEAL_FILE).write_text(seal.model_dump_json())


def _unreadable(version: AdapterVersion) -> None:
    (version.path / SEAL_FILE).write_text("{}")


def _with_a_torn_template(version: AdapterVersion) -> None:
    prompt = version.seal.prompt.model_copy(update={"chat_template": "{% for"})
    seal = version.seal.model_copy(update={"prompt": prompt})
    (version.path / SEAL_FILE).write_text(seal.model_dump_json())


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (_without_weights, "it cannot be loaded: "),
        (_of_another_base, "it was trained on another base model"),
        (_unreadable, "adapter yoda@1 has an unreadable seal"),
        (_with_a_torn_template, "its chat template is unusable: "),
    ],
)
def test_broken_current_version_is_not_compared_with(
    jobs: Jobs, run: TrainJob, damage: Callable[[AdapterVersion], None], reason: str
) -> None:
    run()
    damage(jobs.registry.resolve("yoda"))
    job = run()
    assert job.evaluation
    assert (job.evaluation.against, job.evaluation.current) == ("base", None)
    (warning,) = job.warnings
    assert warning.startswith(
        "yoda's current version was not compared with, only the bare base was: "
    )
    assert reason in warning
    assert jobs.registry.get("yoda").current == 2


@pytest.mark.parametrize(
    ("rows", "holdout", "reason"),
    [
        (ROWS, 0, "evaluation.holdout is 0"),
        (ROWS[:1], 5, "the dataset is too small to hold any row out"),
    ],
)
def test_nothing_is_judged(
    jobs: Jobs, run: TrainJob, rows: list[Row], holdout: int, reason: str
) -> None:
    job = run(rows, holdout=holdout, promote="if_better")
    assert job.evaluation is None
    assert job.warnings == [f"this version was not judged: {reason}"]
    assert jobs.registry.get("yoda").current == 1
    assert jobs.registry.resolve("yoda").seal.evaluation is None
    run(rows, holdout=holdout, promote="never")
    assert jobs.registry.get("yoda").current == 1
    statuses = [data["status"] for kind, data in events(jobs, job) if kind == "status"]
    assert "evaluating" not in statuses


def test_conversations_are_judged_on_their_first_exchange(run: TrainJob) -> None:
    further = (Exchange(prompt="And the moon?", completion="Bright, the moon is."),)
    rows = [row.model_copy(update={"further": further}) for row in ROWS]
    evaluation = run(rows, holdout=6).evaluation
    assert evaluation
    assert {s.source for s in evaluation.samples} <= {row.prompt for row in ROWS}


def test_published_weights_are_those_that_were_judged(jobs: Jobs, run: TrainJob) -> None:
    run()
    weights = load_file(jobs.registry.resolve("yoda").path / WEIGHTS_FILE)
    assert {str(w.dtype) for w in weights.values()} == {"torch.float16"}
    assert all("default" not in name and "current" not in name for name in weights)


def test_held_out_rows_that_are_too_long_for_a_loss(jobs: Jobs, worker_settings: Settings) -> None:
    held_out = HoldOut.choose((row.prompt for row in ROWS), 4)
    rows = [
        row.model_copy(update={"completion": row.completion * 20})
        if held_out.holds(row.prompt)
        else row
        for row in ROWS
    ]
    training = SHORT["training"] | {"max_length": 64, "early_stopping_patience": 1}
    job = jobs.create(config(holdout=4) | {"training": training}, rows=rows)
    train(worker_settings)
    job = jobs.store.get(job.id)
    assert (job.status, job.error) == (JobStatus.SUCCEEDED, None)
    assert job.warnings[0].startswith("the 4 held-out rows are all longer than max_length=64")
    assert job.evaluation
    assert job.evaluation.rows == 4


class TestBatchSizeIsFound:
    """Memory is real and short: PyTorch's allocator is asked for more than there can be."""

    TRAINING = SHORT["training"] | {"per_device_train_batch_size": 8, "auto_find_batch_size": True}
    WARNING = (
        "training.per_device_train_batch_size: 8 was asked for, {} is used, with "
        "gradient_accumulation_steps {} in place of 1: memory allows no more"
    )

    @pytest.fixture
    def shorten(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
        step = AdapterTrainer.training_step

        def shorten(max_rows: int, *, after_step: int = 0) -> None:
            def limited(self: AdapterTrainer, *args: Any, **kwargs: Any) -> torch.Tensor:
                is_short = self.state.global_step >= after_step
                if is_short and self.args.per_device_train_batch_size > max_rows:
                    torch.empty(2**60, dtype=torch.uint8)
                return step(self, *args, **kwargs)

            monkeypatch.setattr(AdapterTrainer, "training_step", limited)

        return shorten

    def test_record_says_what_is_used(
        self, jobs: Jobs, worker_settings: Settings, shorten: Callable[..., None]
    ) -> None:
        shorten(3)
        job = jobs.create(config(holdout=0) | {"training": self.TRAINING})
        train(worker_settings)
        job = jobs.store.get(job.id)
        assert (job.status, job.error) == (JobStatus.SUCCEEDED, None)
        assert job.resolved
        used, asked = job.resolved.training, job.config.training
        assert (used.per_device_train_batch_size, used.gradient_accumulation_steps) == (2, 4)
        assert (asked.per_device_train_batch_size, asked.gradient_accumulation_steps) == (8, 1)
        assert job.warnings[1:] == [self.WARNING.format(2, 4)]  # and none that 4 would be used
        assert job.progress.restarts == 2
        assert (job.progress.step, job.progress.total_steps) == (3, 3)
        seal = jobs.registry.resolve("yoda").seal
        assert seal.config["training"]["per_device_train_batch_size"] == 2
        log = (jobs.volume.attempt(job.id, 1) / LOG_FILE).read_text()
        assert "out of memory: training begins anew with batches of 4, 2 in a step" in log

    def test_late_in_a_run(
        self, jobs: Jobs, worker_settings: Settings, shorten: Callable[..., None]
    ) -> None:
        """It goes on from its newest checkpoint; the curve has each step once."""
        shorten(4, after_step=3)
        training = self.TRAINING | {"max_steps": 6, "save_steps": 2}
        job = jobs.create(config(holdout=0) | {"training": training})
        train(worker_settings)
        job = jobs.store.get(job.id)
        assert (job.status, job.error) == (JobStatus.SUCCEEDED, None)
        assert (job.progress.restarts, job.progress.step) == (1, 6)
        assert self.WARNING.format(4, 2) in job.warnings
        attempt = jobs.volume.attempt(job.id, 1)
        assert [p.step for p in read_curve(attempt).train] == [1, 2, 3, 4, 5, 6]
        told = [data for kind, data in events(jobs, job) if kind == "metrics"]
        assert [e["restart_after_step"] for e in told if "restart_after_step" in e] == [0, 2]
        assert [e["train"]["step"] for e in told if "train" in e] == [1, 2, 3, 3, 4, 5, 6]
        line = "out of memory: training begins anew with batches of 4, 2 in a step, after step 2"
        assert line in (attempt / LOG_FILE).read_text()

    def test_an_attempt_with_more_memory_takes_it_back(
        self, jobs: Jobs, worker_settings: Settings
    ) -> None:
        stale = [self.WARNING.format(4, 2), "another"]
        job = jobs.create(config(holdout=0) | {"training": self.TRAINING})
        jobs.store._redis.hset(f"dragoman:job:{job.id}", "warnings", json.dumps(stale))
        train(worker_settings)
        job = jobs.store.get(job.id)
        assert job.resolved
        assert job.resolved.training.per_device_train_batch_size == 8
        assert job.warnings[:1] == ["another"]
        assert not [text for text in job.warnings if "asked for" in text]

    def test_nothing_fits(
        self, jobs: Jobs, worker_settings: Settings, shorten: Callable[..., None]
    ) -> None:
        shorten(0)
        job = jobs.create(config(holdout=0) | {"training": self.TRAINING})
        train(worker_settings)
        job = jobs.store.get(job.id)
        assert job.status == JobStatus.FAILED
        assert job.error
        assert job.error.code == "out_of_memory"
        assert "not even a batch of one row fits" in job.error.message


class TestInTheMidst:
    """The judgement takes seconds here; something happens meanwhile."""

    @pytest.fixture
    def evaluating(self, jobs: Jobs, worker_settings: Settings) -> tuple[Job, threading.Thread]:
        rows = [
            Row(prompt=f"{i} {row.prompt}", completion=row.completion)
            for i in range(8)
            for row in ROWS
        ]
        training = SHORT["training"] | {"eval_steps": 1000}
        job = jobs.create(config(holdout=100) | {"training": training}, rows=rows)
        worker = threading.Thread(target=train, args=(worker_settings,))
        worker.start()
        jobs.wait(job.id, JobStatus.EVALUATING)
        return job, worker

    def test_cancel(self, jobs: Jobs, evaluating: tuple[Job, threading.Thread]) -> None:
        job, worker = evaluating
        assert jobs.store.cancel(job.id).status == JobStatus.CANCELLING
        worker.join(120)
        ended = jobs.store.get(job.id)
        assert (ended.status, ended.evaluation) == (JobStatus.CANCELLED, None)
        assert jobs.registry.all() == []

    def test_job_is_taken_away(self, jobs: Jobs, evaluating: tuple[Job, threading.Thread]) -> None:
        job, worker = evaluating
        jobs.store._redis.hincrby(f"dragoman:job:{job.id}", "fence", 1)
        worker.join(120)
        assert not worker.is_alive()
        left = jobs.store.get(job.id)
        assert (left.status, left.evaluation) == (JobStatus.EVALUATING, None)
        assert jobs.registry.all() == []


class TestResumed:
    """The worker died after it had published; its verdict stands in the seal."""

    @staticmethod
    def again(jobs: Jobs, job: Job) -> Job:
        """The same job once more, as if nothing had been written after publishing."""
        jobs.store._redis.hdel(f"dragoman:job:{job.id}", "evaluation", "adapter_version")
        jobs.store.create(job, max_queued=10)
        train(jobs.settings)
        return jobs.store.get(job.id)

    def test_promotion_is_made_up_for(self, jobs: Jobs, run: TrainJob) -> None:
        job = run()
        jobs.registry.promote("yoda", None)
        resumed = self.again(jobs, job)
        assert (resumed.status, resumed.adapter_version) == (JobStatus.SUCCEEDED, 1)
        assert resumed.evaluation == job.evaluation
        adapter = jobs.registry.get("yoda")
        assert (adapter.versions, adapter.current) == ([1], 1)
        assert [kind for kind, _ in events(jobs, job)].count("evaluation") == 2

    def test_refusal_is_kept(self, jobs: Jobs, run: TrainJob) -> None:
        job = run(promote="if_better", min_gain=99)
        assert job.evaluation
        assert not job.evaluation.promoted
        assert self.again(jobs, job).evaluation == job.evaluation
        assert jobs.registry.get("yoda").current is None

    def test_later_version_stays_current(self, jobs: Jobs, run: TrainJob) -> None:
        job = run()
        run()
        assert self.again(jobs, job).adapter_version == 1
        assert jobs.registry.get("yoda").current == 2

    def test_version_that_was_not_judged(self, jobs: Jobs, run: TrainJob) -> None:
        job = run(holdout=0)
        jobs.registry.promote("yoda", None)
        assert self.again(jobs, job).evaluation is None
        assert jobs.registry.get("yoda").current == 1
