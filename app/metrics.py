"""Prometheus metrics: HTTP requests as they happen, the engine's counters and the jobs' states when asked."""

import contextlib
import time
from collections.abc import Iterator
from dataclasses import asdict

import redis
from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.services import Services

_COUNTERS = {
    "num_steps": "steps of the model",
    "num_prompt_tokens": "prompt tokens read",
    "num_generated_tokens": "tokens generated",
    "num_finished": "sequences finished",
    "num_failed": "sequences that failed",
    "num_cancelled": "running sequences cancelled",
    "num_adapter_loads": "adapter versions loaded",
    "num_adapter_evictions": "adapter versions evicted",
    "num_adapter_hits": "requests that found their adapter in the LoRA bank",
    "num_adapter_host_hits": "loads from host memory, without a read from the volume",
    "adapter_load_seconds": "the engine's time in loading adapters",
    "adapter_read_seconds": "time in reading adapters from the volume",
}


class _ServiceCollector(Collector):
    def __init__(self, services: Services) -> None:
        self._services = services

    def collect(self) -> Iterator[Metric]:
        serving = self._services.serving
        yield GaugeMetricFamily(
            "dragoman_ready",
            "1 once the base model is loaded, as long as it answers",
            value=int(serving is not None and serving.engine.fault is None),
        )
        if serving is not None:
            stats = asdict(serving.engine.stats())
            for name, value in stats.items():
                metric = f"dragoman_engine_{name.removeprefix('num_')}"
                if name in _COUNTERS:
                    yield CounterMetricFamily(metric, _COUNTERS[name], value=value)
                else:
                    yield GaugeMetricFamily(metric, name.removeprefix("num_"), value=value)
            yield GaugeMetricFamily(
                "dragoman_adapters_resident",
                "adapter versions in the LoRA bank",
                value=len(serving.engine.resident_adapters),
            )
            for name, value in serving.model.device_usage().items():
                yield GaugeMetricFamily(f"dragoman_gpu_{name}", name, value=value)
        with contextlib.suppress(redis.RedisError):
            jobs = GaugeMetricFamily("dragoman_jobs", "jobs that have not ended", labels=["status"])
            for status, count in self._services.jobs.count_open().items():
                jobs.add_metric([status], count)
            yield jobs


class Metrics:
    """One registry for one app; no global state, so that tests can make several."""

    def __init__(self, services: Services) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_ServiceCollector(services))
        self._requests = Counter(
            "dragoman_http_requests",
            "HTTP requests answered",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self._duration = Histogram(
            "dragoman_http_request_duration_seconds",
            "time from a request to the end of its answer",
            ["method", "route"],
            registry=self.registry,
            buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60),
        )

    def observe(self, method: str, route: str, status: int, duration_s: float) -> None:
        self._requests.labels(method, route, str(status)).inc()
        self._duration.labels(method, route).observe(duration_s)


class MetricsMiddleware:
    """Counts and times requests by their route's template, never by what a client wrote in the path."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        status = 500

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note_status)
        finally:
            route = getattr(scope.get("route"), "path", "unmatched")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            self._metrics.observe(method, route, status, time.perf_counter() - started)


_METHODS = {"GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"}
