"""A whole fine-tune by OpenAI's own Python client, with a real worker on a tiny model."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

from core.settings import Settings
from tests.clients.conftest import running_server
from tests.standstill import standing_still
from tests.worker.conftest import ROOT, ROWS, WorkerProcess

YODA = ROOT / "examples" / "yoda.csv"
NUM_STEPS = 16
BRIEF = {
    "lora": {"r": 4, "lora_alpha": 8},
    "training": {"max_steps": NUM_STEPS, "logging_steps": 1, "per_device_train_batch_size": 4},
    "evaluation": {"holdout": 3, "promote": "always"},
}


@pytest.fixture
def api(worker_settings: Settings) -> Iterator[OpenAI]:
    settings = worker_settings.model_copy(update={"max_queued_jobs": 3})
    with running_server(settings) as url:
        yield OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)


@pytest.fixture
def file_id(api: OpenAI) -> str:
    turns = (
        [{"role": "user", "content": r.prompt}, {"role": "assistant", "content": r.completion}]
        for r in ROWS
    )
    content = "".join(json.dumps({"messages": t}) + "\n" for t in turns).encode()
    return api.files.create(file=("yoda.jsonl", content), purpose="fine-tune").id


def test_from_file_to_answer(
    api: OpenAI, file_id: str, start_worker: Callable[..., WorkerProcess]
) -> None:
    start_worker()
    job = api.fine_tuning.jobs.create(
        model="base",
        training_file=file_id,
        suffix="yoda",
        seed=7,
        metadata={"team": "jedi"},
        method={
            "type": "supervised",
            "supervised": {
                "hyperparameters": {
                    "n_epochs": 1,
                    "batch_size": 8,
                    "learning_rate_multiplier": 0.5,
                }
            },
        },
        extra_body={
            "config": {
                "source": "en",
                "target": "en-x-yoda",
                "lora": {"r": 4, "lora_alpha": 8},
                "evaluation": {"holdout": 4, "promote": "always"},
            }
        },
    )
    assert job.object == "fine_tuning.job"
    assert job.fine_tuned_model is None
    assert job.training_file == file_id
    assert job.hyperparameters.model_dump() == {
        "n_epochs": 1,
        "batch_size": 8,
        "learning_rate_multiplier": 0.5,
    }
    with pytest.raises(openai.ConflictError):
        api.files.delete(file_id)

    deadline = time.monotonic() + 180
    while job.status not in ("succeeded", "failed", "cancelled"):
        assert time.monotonic() < deadline, job
        time.sleep(0.2)
        job = api.fine_tuning.jobs.retrieve(job.id)
    assert job.status == "succeeded", job.error
    assert job.fine_tuned_model == "yoda@1"
    assert job.finished_at is not None
    assert job.finished_at >= job.created_at
    assert job.trained_tokens is not None
    assert job.trained_tokens > 100
    assert job.seed == 7
    assert job.metadata == {"team": "jedi"}

    events = list(api.fine_tuning.jobs.list_events(job.id, limit=3))  # page after page
    assert len({event.id for event in events}) == len(events) > 5
    assert events[0].message == "The job is succeeded"
    assert events[-1].message == "The job is queued"
    losses: list[Any] = [e.data for e in events if e.type == "metrics"]
    trained = [data for data in losses if data["train_loss"] is not None]
    assert [data["step"] for data in reversed(trained)] == list(range(1, len(trained) + 1))
    assert "training loss=" in next(e.message for e in reversed(events) if e.type == "metrics")

    checkpoint = next(iter(api.fine_tuning.jobs.checkpoints.list(job.id)))
    assert checkpoint.fine_tuned_model_checkpoint == "yoda@1"
    assert checkpoint.step_number == trained[0]["step"]
    assert checkpoint.metrics.train_loss == pytest.approx(trained[0]["train_loss"])

    assert "yoda@1" in {model.id for model in api.models.list()}
    answer = api.chat.completions.create(
        model=job.fine_tuned_model, messages=[{"role": "user", "content": ROWS[0].prompt}]
    )
    assert answer.model == "yoda@1"


def test_the_example_paused_and_resumed(
    settings: Settings, start_worker: Callable[..., WorkerProcess]
) -> None:
    """examples/yoda.csv on the base in the box: file, job, pause, resume, events, checkpoint, answer."""
    settings = settings.model_copy(update={"device": "cpu"})
    with running_server(settings) as url:
        api = OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)
        jobs = api.fine_tuning.jobs
        file = api.files.create(file=YODA, purpose="fine-tune")
        job = jobs.create(
            model="base",
            training_file=file.id,
            suffix="jedi",
            extra_body={"config": {"source": "en", "target": "en-x-yoda", **BRIEF}},
        )
        with pytest.raises(openai.ConflictError):
            jobs.resume(job.id)
        start_worker(settings)
        wait(api, job.id, lambda job: any(e.type == "metrics" for e in jobs.list_events(job.id)))
        with standing_still():
            assert jobs.pause(job.id).status in ("running", "paused")
        paused = wait(api, job.id, lambda job: job.status == "paused")
        assert paused.fine_tuned_model is None
        (kept,) = jobs.checkpoints.list(job.id)
        assert 0 < kept.step_number < NUM_STEPS
        assert say(api, kept.fine_tuned_model_checkpoint), "it can be tried before it is done"
        with pytest.raises(openai.ConflictError):
            jobs.pause(job.id)
        assert jobs.resume(job.id).status == "queued"
        ended = wait(api, job.id, lambda job: job.finished_at is not None)
        assert ended.status == "succeeded", ended.error
        assert ended.fine_tuned_model == "jedi@1"

        events = list(jobs.list_events(job.id, limit=7))
        said = [e.message for e in reversed(events) if e.type == "message"]
        turns = [f"The job is {s}" for s in ("queued", "paused", "queued", "running", "succeeded")]
        places = iter(said)
        assert all(turn in places for turn in turns), said
        losses: list[Any] = [e.data for e in reversed(events) if e.type == "metrics"]
        steps = [data["step"] for data in losses if data["train_loss"] is not None]
        assert steps == list(range(1, NUM_STEPS + 1)), "none twice, none lost"
        checkpoint = next(iter(jobs.checkpoints.list(job.id)))
        assert checkpoint.step_number == NUM_STEPS
        assert checkpoint.fine_tuned_model_checkpoint == "jedi@1"
        assert say(api, "jedi") == say(api, "jedi@1") != say(api, "base")


def say(api: OpenAI, model: str) -> str:
    answer = api.chat.completions.create(
        model=model, messages=[{"role": "user", "content": "The soup is cold."}]
    )
    return answer.choices[0].message.content or ""


def wait(api: OpenAI, job_id: str, is_so: Callable[[Any], bool]) -> Any:
    deadline = time.monotonic() + 240
    while not is_so(job := api.fine_tuning.jobs.retrieve(job_id)):
        assert job.status not in ("failed", "cancelled"), job.error
        assert time.monotonic() < deadline, job
        time.sleep(0.02)
    return job


def test_waiting_jobs(api: OpenAI, file_id: str) -> None:
    """Without a worker."""
    first, second = (
        api.fine_tuning.jobs.create(
            model="base", training_file=file_id, metadata={"number": str(number)}
        )
        for number in (1, 2)
    )
    assert first.status == "queued"
    assert first.hyperparameters.learning_rate_multiplier == 1
    assert [job.id for job in api.fine_tuning.jobs.list(limit=1)] == [second.id, first.id]
    assert [job.id for job in api.fine_tuning.jobs.list(metadata={"number": "1"})] == [first.id]
    assert list(api.fine_tuning.jobs.list(metadata={"number": "3"})) == []
    assert list(api.fine_tuning.jobs.checkpoints.list(first.id)) == []
    assert api.fine_tuning.jobs.cancel(first.id).status == "cancelled"
    with pytest.raises(openai.ConflictError):
        api.fine_tuning.jobs.cancel(first.id)
    messages = [event.message for event in api.fine_tuning.jobs.list_events(first.id)]
    assert messages == ["The job is cancelled", "The job is queued"]


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"training_file": "file-none"}, openai.NotFoundError, "file-none"),
        ({"model": "gpt-4o-mini"}, openai.NotFoundError, "gpt-4o-mini"),
        ({"validation_file": "file-1"}, openai.BadRequestError, "held out"),
        ({"suffix": "Not A Name"}, openai.BadRequestError, "Not A Name"),
        ({"method": {"type": "dpo"}}, openai.BadRequestError, "'dpo'"),
        ({"integrations": [{"type": "wandb"}]}, openai.BadRequestError, "report_to"),
        ({"hyperparameters": {"n_epochs": 0}}, openai.BadRequestError, "n_epochs"),
        ({"hyperparameters": {"n_epochs": 10**6}}, openai.BadRequestError, "num_train_epochs"),
        (
            {"hyperparameters": {"learning_rate_multiplier": 1e9}},
            openai.BadRequestError,
            "learning_rate",
        ),
        ({"seed": -1}, openai.BadRequestError, "seed"),
        ({"metadata": {"k": "v" * 513}}, openai.BadRequestError, "metadata"),
        ({"extra_body": {"config": {"sorce": "en"}}}, openai.BadRequestError, "sorce"),
    ],
)
def test_what_is_refused(
    refusing_api: OpenAI, options: dict[str, Any], error: type[openai.APIStatusError], words: str
) -> None:
    wanted = {"model": "base", "training_file": "file-1"} | options
    with pytest.raises(error, match=words):
        refusing_api.fine_tuning.jobs.create(**wanted)


@pytest.fixture(scope="module")
def refusing_api(boxed_url: str) -> OpenAI:
    return OpenAI(base_url=f"{boxed_url}/v1", api_key="any", max_retries=0)


def test_unknown_jobs(refusing_api: OpenAI) -> None:
    jobs = refusing_api.fine_tuning.jobs
    for call in (jobs.retrieve, jobs.cancel, jobs.list_events, jobs.checkpoints.list):
        with pytest.raises(openai.NotFoundError):
            call("ftjob-none")
    with pytest.raises(openai.NotFoundError):
        jobs.list_events("job-1:events", after="nonsense")
