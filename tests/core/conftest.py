"""Stores of jobs on a real Redis."""

import pytest
from redis import Redis

from core.job_store import JobStore
from tests.core.job_states import LEASE_S


@pytest.fixture
def redis(redis_url: str) -> Redis:
    return Redis.from_url(redis_url, decode_responses=True)


@pytest.fixture
def store(redis: Redis) -> JobStore:
    return JobStore(redis, lease_s=LEASE_S, max_attempts=2)
