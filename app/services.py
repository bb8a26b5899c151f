"""What one server process owns: clients, stores, the model once it is loaded. The lifespan starts and stops it."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import redis
import redis.asyncio
from celery import Celery
from celery.exceptions import CeleryError
from kombu.exceptions import KombuError

from app.checkpoints import CheckpointFinder
from app.engine.cpu_threads import stay_single_threaded
from app.engine.engine import Engine, EngineLimits
from app.model.base import BaseModel
from app.model.loading import load_base_model
from app.translator import Translator
from core.adapters import AdapterRegistry
from core.base_model import BOXED_ADAPTERS, EMBEDDED, fingerprint, locate_base_model
from core.datasets import DatasetStore
from core.errors import ServiceError, UnavailableError
from core.job_store import JobStore
from core.queue import create_queue, send_training
from core.settings import Settings
from core.volume import Volume

logger = logging.getLogger(__name__)

_SWEEP_INTERVAL_S = 3.0
_WATCH_INTERVAL_S = 1.0
_SERVING_INTERVAL_S = 0.1


@dataclass(frozen=True, slots=True)
class Serving:
    """The model and all that stands on it; there once the base model is loaded."""

    model: BaseModel
    engine: Engine
    translator: Translator
    base_name: str

    def count_tokens(self, texts: list[str]) -> list[int]:
        """Tokens of each text, without special ones."""
        encode = self.model.tokenizer.backend_tokenizer.encode_batch_fast
        return [len(encoding.ids) for encoding in encode(texts, add_special_tokens=False)]


class Services:
    """Everything that requests use. `serving` is None until the base model is loaded."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.volume = Volume(settings.data_dir)
        self.registry = AdapterRegistry(self.volume)
        self.datasets = DatasetStore(self.volume)
        options: dict[str, Any] = {
            "decode_responses": True,
            "socket_connect_timeout": 3,
            "health_check_interval": 30,
        }
        self.redis: redis.Redis = redis.Redis.from_url(
            settings.redis_url, socket_timeout=10, **options
        )
        # For streams of events, which wait on purpose; redis-py would call 5 s a timeout.
        self.async_redis = redis.asyncio.Redis.from_url(
            settings.redis_url, socket_timeout=30, **options
        )
        self.jobs = JobStore(
            self.redis, lease_s=settings.job_lease_s, max_attempts=settings.max_attempts
        )
        self.queue: Celery = create_queue(settings)
        self.serving: Serving | None = None
        self.load_error: str | None = None
        self.stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, on_loaded: Callable[[], None], on_failure: Callable[[], None]) -> None:
        """Starts loading the base model and sweeping for lost jobs; returns at once.

        `on_loaded` is called in a thread when the base model is loaded, before anything is served; `on_failure` if
        nothing can be served, or nothing any more, until the process is restarted.
        """
        self.volume.create()
        self.volume.sweep_staging()
        self._tasks = [
            asyncio.create_task(self._load_and_watch(on_loaded, on_failure)),
            asyncio.create_task(self._sweep()),
        ]
        if self.settings.device_policy == "wait":
            self._tasks.append(asyncio.create_task(self._tell_serving()))

    async def stop(self) -> None:
        self.stopping.set()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self.serving:
            await asyncio.to_thread(self.serving.engine.stop, self.settings.stop_grace_s)
        await self.async_redis.aclose()
        self.redis.close()
        self.queue.close()

    def send(self, job_id: str) -> None:
        """Puts a job's message into the queue. Should that fail, the sweep sends it later."""
        try:
            send_training(self.queue, job_id, self.jobs.device(job_id))
            self.jobs.mark_sent(job_id)
        except (KombuError, CeleryError, redis.RedisError, OSError) as error:
            logger.warning("job %s could not be sent now: %s", job_id, error)

    async def _load_and_watch(
        self, on_loaded: Callable[[], None], on_failure: Callable[[], None]
    ) -> None:
        try:
            self.serving = await asyncio.to_thread(self._load_serving, on_loaded)
        except Exception as error:  # whatever it is, the operator must see it, and the process end
            logger.critical("the base model could not be loaded: %s", error, exc_info=error)
            self.load_error = str(error)
        else:
            engine = self.serving.engine
            while engine.fault is None:
                await asyncio.sleep(_WATCH_INTERVAL_S)
            logger.critical("nothing can be served any more: %s", engine.fault)
        on_failure()

    def _load_serving(self, on_loaded: Callable[[], None]) -> Serving:
        settings = self.settings
        started = time.monotonic()
        stay_single_threaded()
        folder = locate_base_model(settings.base_model)
        name = settings.base_model or "embedded"
        logger.info("loading the base model %s", name)
        model = load_base_model(
            folder,
            device=settings.device,
            compute_dtype=settings.compute_dtype,
            base_weights=settings.base_weights,
        )
        engine = Engine(
            model,
            EngineLimits(**{f: getattr(settings, f) for f in EngineLimits.__slots__}),
        )
        engine.start()
        base_fingerprint = fingerprint(folder)
        if folder == EMBEDDED:
            for seeded in self.registry.seed(BOXED_ADAPTERS):
                logger.info("adapter %s, from the box, is on the volume", seeded)
        translator = Translator(
            engine,
            self.registry,
            model.tokenizer,
            CheckpointFinder(self.volume, self.jobs, settings.checkpoint_minutes),
            base_fingerprint=base_fingerprint,
            eos_token_ids=model.eos_token_ids,
            max_new_tokens=settings.max_new_tokens,
        )
        logger.info(
            "base model %s ready on %s in %.1f s: %.0f MB, context %d, %d adapters on the volume",
            name,
            model.device,
            time.monotonic() - started,
            model.num_bytes / 1e6,
            engine.max_tokens,
            len(self.registry.all()),
        )
        on_loaded()
        return Serving(model, engine, translator, name)

    async def _sweep(self) -> None:
        """Takes jobs from dead workers, and sends what was recorded but never sent."""
        while True:
            await asyncio.sleep(_SWEEP_INTERVAL_S)
            try:
                for job_id in await asyncio.to_thread(self.jobs.sweep):
                    await asyncio.to_thread(self.send, job_id)
            except (redis.ConnectionError, redis.TimeoutError):
                pass  # it will be back; /ready says that it is not
            except Exception:  # one record that cannot be read must not end the watch over all
                logger.exception("the sweep for lost jobs failed; the next one follows")

    async def _tell_serving(self) -> None:
        """Lets training wait while requests run."""
        num_steps = 0
        while True:
            await asyncio.sleep(_SERVING_INTERVAL_S)
            if self.serving is None:
                continue
            stats = self.serving.engine.stats()
            if stats.num_running or stats.num_steps != num_steps:
                with contextlib.suppress(redis.RedisError):
                    await asyncio.to_thread(
                        self.jobs.presence.tell_serving, 4 * _SERVING_INTERVAL_S
                    )
            num_steps = stats.num_steps

    # Readiness

    def checks(self) -> dict[str, str | None]:
        """What must be true before requests can be served -> None, or why it is not."""
        return {
            "base_model": self._check_model(),
            "redis": _reason(self.redis.ping),
            "volume": _reason(self.volume.check_writable),
        }

    def _check_model(self) -> str | None:
        if self.load_error:
            return self.load_error
        if self.serving is None:
            return "the base model is being loaded"
        return self.serving.engine.fault

    def require_serving(self) -> Serving:
        """Raises UnavailableError `not_ready` while the base model is being loaded."""
        if self.serving is None:
            raise UnavailableError(
                self._check_model() or "not ready", code="not_ready", retry_after_s=2
            )
        return self.serving


def _reason(check: Callable[[], object]) -> str | None:
    try:
        check()
    except (redis.RedisError, OSError, ServiceError) as error:
        return f"{type(error).__name__}: {error}"
    return None
