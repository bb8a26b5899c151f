"""Who is there: a server whose requests are running, workers by their device. Told anew before its time is over."""

from typing import Any

from redis import Redis

_SERVING = "dragoman:serving"
_WORKER = "dragoman:worker:"
_DEVICES = ("cpu", "cuda")


class Presence:
    """Keys in Redis that expire. Thread-safe."""

    def __init__(self, redis: "Redis") -> None:
        self._redis = redis

    def tell_serving(self, for_s: float) -> None:
        """Requests are running now, and may be for `for_s` seconds."""
        self._redis.set(_SERVING, 1, px=int(for_s * 1000))

    def is_serving(self) -> bool:
        """Whether a server has told within its time that requests are running."""
        return bool(self._redis.exists(_SERVING))

    def tell_working(self, device: str, for_s: float) -> None:
        """A worker for "cpu" or "cuda" is there, and tells so again within `for_s` seconds while it lives."""
        self._redis.set(_WORKER + device, 1, px=int(for_s * 1000))

    def working_devices(self) -> list[str]:
        """For which a worker has told within its time that it is there."""
        told: Any = self._redis.mget([_WORKER + device for device in _DEVICES])
        return [device for device, value in zip(_DEVICES, told, strict=True) if value]
