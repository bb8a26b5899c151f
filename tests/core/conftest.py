"""A store of jobs on a real Redis, and a registry of adapters on a real volume."""

import pytest
from redis import Redis

from core.adapters import AdapterRegistry
from core.job_store import JobStore
from core.volume import Volume
from tests.core.job_states import LEASE_S


@pytest.fixture
def redis(redis_url: str) -> Redis:
    return Redis.from_url(redis_url, decode_responses=True)


@pytest.fixture
def store(redis: Redis) -> JobStore:
    return JobStore(redis, lease_s=LEASE_S, max_attempts=2)


@pytest.fixture
def registry(volume: Volume) -> AdapterRegistry:
    return AdapterRegistry(volume)
