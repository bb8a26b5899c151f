"""The message queue on a real Redis."""

import base64
import json

import pytest
from kombu.exceptions import OperationalError
from redis import Redis

from core.queue import TRAIN_TASK, TRAINING_QUEUE, create_queue, send_training
from core.settings import Settings


def test_only_the_id_is_sent(settings: Settings, redis_url: str) -> None:
    queue = create_queue(settings)
    send_training(queue, "job-1")
    queue.close()
    with Redis.from_url(redis_url, decode_responses=True) as redis:
        (message,) = redis.lrange(TRAINING_QUEUE, 0, -1)
    envelope = json.loads(message)
    assert envelope["headers"]["task"] == TRAIN_TASK
    args, kwargs, _ = json.loads(base64.b64decode(envelope["body"]))
    assert (args, kwargs) == (["job-1"], {})


@pytest.mark.parametrize(
    ("url", "broker"),
    [
        ("redis://host:6379/2", "redis://host:6379/2"),
        ("rediss://host:6379/0", "rediss://host:6379/0"),
        ("unix:///run/redis.sock", "redis+socket:///run/redis.sock"),
    ],
)
def test_kinds_of_urls(settings: Settings, url: str, broker: str) -> None:
    queue = create_queue(settings.model_copy(update={"redis_url": url}))
    assert queue.conf.broker_url == broker


def test_no_redis_is_an_error_soon(settings: Settings) -> None:
    queue = create_queue(settings.model_copy(update={"redis_url": "redis://127.0.0.1:1"}))
    with pytest.raises(OperationalError):
        send_training(queue, "job-1")
