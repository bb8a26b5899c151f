"""The volume is full: jobs fail and say so, nothing half appears, and with room there again all is well."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from core.jobs import JobStatus
from core.settings import Settings
from core.volume import Volume
from tests.e2e.chaos.conftest import config, faults
from tests.e2e.chaos.tally import Tally, is_whole
from tests.worker.conftest import Jobs, WorkerProcess

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        sys.platform != "linux" or os.geteuid() != 0, reason="only root may mount a small volume"
    ),
]


@pytest.fixture
def volume(tmp_path: Path) -> Iterator[Volume]:
    root = tmp_path / "small"
    root.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(root)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("this system does not let us mount")
    try:
        volume = Volume(root)
        volume.create()
        yield volume
    finally:
        subprocess.run(["umount", "--lazy", str(root)], check=True)


def test_full(
    settings: Settings, volume: Volume, jobs: Jobs, start_worker: Callable[..., WorkerProcess]
) -> None:
    worker = start_worker()
    ballast = volume.root / "ballast"
    free = os.statvfs(volume.root).f_bavail * os.statvfs(volume.root).f_bsize
    refused = []
    num_fillings = faults(2, 8)
    for number in range(num_fillings):
        job = jobs.create(config(12), adapter="full", is_sent=True)
        # From nothing at all, up to some of the room that a checkpoint takes.
        room = 0 if number == 0 else number * 150_000 // num_fillings
        with ballast.open("wb", buffering=0) as file:
            try:
                for _ in range((free - room) // 4096 + 1):
                    file.write(b"x" * 4096)
            except OSError:
                pass
        if room:
            os.truncate(ballast, max(0, ballast.stat().st_size - room))
        ended = jobs.wait(job.id, timeout_s=300)
        assert ended.status == JobStatus.FAILED, worker.log
        assert ended.error
        assert ended.error.code == "volume_full", ended.error
        refused.append(job.id)
        assert is_whole(jobs.registry)
        assert jobs.registry.all() == []
        ballast.unlink()
        jobs.wait_until_swept(job.id)
    good = jobs.wait(jobs.create(config(12), adapter="full", is_sent=True).id, timeout_s=300)
    assert good.status == JobStatus.SUCCEEDED, worker.log
    assert list((volume.root / "staging").iterdir()) == []
    print(f"\nchaos: volume full: {len(refused)} jobs failed with volume_full")
    Tally(jobs, [good.id]).check("room again", num_fillings)
