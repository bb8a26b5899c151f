"""The real application over the embedded base model, a real Redis and two adapters."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from fastapi.testclient import TestClient
from transformers import AutoTokenizer

# Before Triton is imported, where it is installed at all.
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

from app.main import create_app
from core.adapter_version import SEAL_FILE, content_sha256
from core.adapters import AdapterRegistry
from core.base_model import EMBEDDED, fingerprint
from core.prompt import Prompt, seal_prompt
from core.settings import Settings
from core.volume import Volume
from embedded.redis_server import EmbeddedRedis
from tests.app.harness import load_reference, make_adapter
from tests.app.tiny import Tiny, make_tiny
from tests.seals import make_seal


def publish(
    registry: AdapterRegistry, folder: Path, name: str, source: str, target: str, **seal: str
) -> None:
    """Publishes a PEFT folder as a job would, and makes it current."""
    prompt = seal_prompt(Prompt(system=None), AutoTokenizer.from_pretrained(EMBEDDED))
    values = {
        "base_fingerprint": fingerprint(EMBEDDED),
        "base_model": "embedded",
        "prompt": prompt,
        "stop_token_ids": [3, 7],
        "source": source,
        "target": target,
        "description": f"{source} to {target}",
        "content_sha256": content_sha256(folder),
    }
    (folder / SEAL_FILE).write_text(make_seal(**values | seal).model_dump_json())
    version = registry.publish(name, folder)
    registry.promote(name, version.version)


@pytest.fixture(scope="session")
def app_settings(
    _redis_server: EmbeddedRedis, tmp_path_factory: pytest.TempPathFactory
) -> Settings:
    root = tmp_path_factory.mktemp("app")
    volume = Volume(root / "data")
    volume.create()
    registry = AdapterRegistry(volume)
    base = load_reference(EMBEDDED, nf4=False)
    for seed, (name, source, target) in enumerate(
        [("pirate", "en", "en-x-pirate"), ("modern", "lzh", "zh"), ("german", "de", "en")]
    ):
        folder = make_adapter(root, base, name, seed=seed, scale=0.3).path
        publish(registry, folder, name, source, target)
    foreign = make_adapter(root, base, "foreign", scale=0.01).path
    publish(registry, foreign, "foreign", "fr", "en", base_fingerprint="another")
    return Settings(
        _env_file=None,
        data_dir=volume.root,
        redis_url=f"{_redis_server.url}?db=1",
        device="cpu",
        lora_width=128,
        num_threads=1,  # more of them spin where tests share the processors, and take seconds for a token
        max_batch=8,
        max_text_chars=2000,
        max_queued_jobs=3,
        max_upload_mb=1,
    )


@pytest.fixture(scope="session")
def client(app_settings: Settings) -> Iterator[TestClient]:
    with TestClient(create_app(app_settings), raise_server_exceptions=False) as client:
        deadline = time.monotonic() + 240
        while client.get("/ready").status_code != 200:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        yield client


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Phi-3-shaped, nf4."""
    return make_tiny(tmp_path_factory.mktemp("tiny"), "phi3", nf4=True)
