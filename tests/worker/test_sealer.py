"""One seal for what a job publishes and for its checkpoints."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoTokenizer

from core.datasets import DatasetStore
from core.jobs import Job
from core.prompt import seal_prompt
from core.volume import Volume
from tests.worker.conftest import Jobs
from tests.worker.trainers import RESULT
from worker.publisher import Publisher
from worker.sealer import save_lora
from worker.training import Precision, load_base


@pytest.fixture
def job(jobs: Jobs) -> Job:
    return jobs.create({"source": "en", "target": "de", "prompt": {"template": "Say: {text}"}})


def test_a_checkpoint_is_served_as_the_version_will_be(
    jobs: Jobs, job: Job, volume: Volume, tiny_base: Path, tmp_path: Path
) -> None:
    base = load_base(tiny_base, Precision(torch.device("cpu"), torch.float32))
    model = get_peft_model(base, LoraConfig(r=4, target_modules=["o_proj"], task_type="CAUSAL_LM"))
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    publisher = Publisher(volume, str(tiny_base), tiny_base)
    sealer = publisher.sealer(
        job,
        job.config,
        DatasetStore(volume).get(job.dataset_id),
        seal_prompt(job.config.prompt, tokenizer),
        {7, 3},
    )
    before = datetime.now(UTC)
    save_lora(model, tmp_path, sealer.base_name)
    checkpoint = sealer.seal(tmp_path, {"steps": 4})
    (volume.jobs / job.id).mkdir(exist_ok=True)
    version = publisher.publish(sealer, model, RESULT, None, lambda: None).seal
    differing = {
        name
        for name, value in version.model_dump().items()
        if value != checkpoint.model_dump()[name]
    }
    assert differing == {"created_at", "metrics", "content_sha256"}
    assert checkpoint.stop_token_ids == [3, 7]
    assert checkpoint.prompt.template == "Say: {text}"
    assert before <= checkpoint.created_at <= version.created_at
