"""Who is there, on a real Redis."""

import time

from core.job_store import JobStore


def test_who_is_there(store: JobStore) -> None:
    assert store.presence.working_devices() == []
    store.presence.tell_working("cuda", for_s=60)
    assert store.presence.working_devices() == ["cuda"]
    store.presence.tell_working("cpu", for_s=60)
    assert store.presence.working_devices() == ["cpu", "cuda"]


def test_who_tells_nothing_more_is_gone(store: JobStore) -> None:
    store.presence.tell_working("cpu", for_s=60)
    store.presence.tell_working("cpu", for_s=0.01)
    while store.presence.working_devices():
        time.sleep(0.001)
