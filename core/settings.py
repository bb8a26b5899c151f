"""All configuration: environment variables with the prefix DRAGOMAN_, or a .env file. Never read at import time."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

_HOST = r" *((\*\.)?[A-Za-z0-9._-]+|\[[0-9A-Fa-f:]+\]) *"


class Settings(BaseSettings):
    """One field per environment variable; README.md holds the same table."""

    model_config = SettingsConfigDict(
        env_prefix="DRAGOMAN_", env_file=".env", env_ignore_empty=True, extra="ignore"
    )

    host: str = Field("127.0.0.1", description="address that the server listens on")
    port: int = Field(8000, ge=0, le=65535, description="port that the server listens on")
    allowed_hosts: str = Field(
        "*",
        pattern=rf"^(\*|{_HOST}(,{_HOST})*)$",
        description="names that the server answers to, besides loopback's and its own address, and whose "
        "pages may call it: translate.example.org,*.example.com; *: any",
    )
    data_dir: Path = Field(
        Path("data"), description="the shared volume: datasets, jobs and adapters"
    )
    redis_url: str = Field("", description="redis://…, rediss://… or unix://…; empty: embedded")
    base_model: str = Field("", description="local path or hub name; empty: the embedded one")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where models run")
    compute_dtype: Literal["auto", "float32", "float16", "bfloat16"] = Field(
        "auto",
        description="dtype of activations; auto: float32 on a CPU, bfloat16 (else float16) on a GPU",
    )
    base_weights: Literal["auto", "packed", "unpacked"] = Field(
        "auto",
        description="packed: multiply with 4-bit weights; unpacked: keep a copy of the same weights "
        "in compute_dtype, faster; auto: unpacked where memory allows",
    )
    num_threads: int = Field(
        0,
        ge=0,
        description="most threads of the engine on a CPU; 0: one for each core. Fewer while other processes need these",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="how much server and worker log"
    )

    # Serving
    max_running: int = Field(128, ge=1, le=1024, description="sequences in one step")
    max_waiting: int = Field(1024, ge=1, description="sequences in the queue before 503")
    max_prefill_tokens: int = Field(512, ge=16, description="prompt tokens in one step")
    kv_cache_tokens: int = Field(
        0, ge=0, description="tokens in the key/value store; 0: chosen from free memory"
    )
    lora_width: int = Field(
        0,
        ge=0,
        le=4096,
        description="columns of the LoRA bank = sum of resident ranks; 0: 512 on a CPU, 128 on a GPU",
    )
    max_adapters: int = Field(64, ge=1, le=4096, description="resident adapter versions")
    adapter_memory_mb: int = Field(
        0,
        ge=0,
        description="host memory for adapters that were read once, MiB; 0: a quarter of what is free at the start",
    )
    adapter_wait_s: float = Field(
        30.0,
        gt=0,
        description="seconds from its arrival after which a request that finds no place in the LoRA bank gets 503",
    )

    # Limits on requests
    max_text_chars: int = Field(20_000, ge=1, description="characters in one text to translate")
    max_batch: int = Field(256, ge=1, description="texts in one request")
    max_alternatives: int = Field(8, ge=0, le=32, description="alternatives to one translation")
    max_new_tokens: int = Field(1024, ge=1, description="most tokens a request may ask for")
    max_body_mb: int = Field(2, ge=1, description="size of a JSON or form body, MiB")
    max_upload_mb: int = Field(512, ge=1, description="size of an uploaded file, MiB")

    # Jobs
    max_queued_jobs: int = Field(100, ge=1, description="jobs waiting before 503")
    max_attempts: int = Field(3, ge=1, description="times a job is started before it fails")
    job_lease_s: float = Field(
        30.0, ge=1, description="a worker silent for so long has lost its job"
    )
    checkpoint_minutes: float = Field(
        5.0, gt=0, description="between two checkpoints of a run whose config has no save_steps"
    )
    device_policy: Literal["share", "wait"] = Field(
        "share",
        description="share: a job's steps run beside requests; wait: none begins while requests run",
    )
    training_memory_mb: int = Field(
        0, ge=0, description="memory that a job may take of its device, MiB; 0: what is free"
    )
    stop_grace_s: float = Field(10.0, ge=0, description="time that running requests get at exit")
