"""The seal of a version, for tests to which little of it matters."""

from datetime import UTC, datetime
from typing import Any

from core.adapter_version import Seal
from core.prompt import SealedPrompt


def make_seal(**values: Any) -> Seal:
    """With `values`, and what is valid for the rest."""
    rest = {
        "base_fingerprint": "f",
        "base_model": "a-base",
        "prompt": SealedPrompt(chat_template="{{ messages[0]['content'] }}"),
        "stop_token_ids": [3],
        "source": "en",
        "target": "en-x-yoda",
        "dataset_id": "ds-0",
        "dataset_sha256": "0",
        "dataset_rows": 1,
        "job_id": "job-0",
        "created_at": datetime.now(UTC),
        "config": {},
        "content_sha256": "0",
    }
    return Seal.model_validate(rest | values)
