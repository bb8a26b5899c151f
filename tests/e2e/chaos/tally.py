"""What became of the jobs of one test: the row that it prints, and the claim that nothing is lost or done twice."""

from collections import Counter
from collections.abc import Iterable

from core.adapters import AdapterRegistry
from core.errors import ServiceError
from core.jobs import ENDED, Job, JobStatus
from core.metrics import read_curve
from core.volume import Volume
from tests.worker.conftest import Jobs


class Tally:
    """`lost`: without an end, failed, or whose version is not there. `doubled`: published more than once."""

    def __init__(self, jobs: Jobs, submitted: Iterable[str]) -> None:
        self._volume = jobs.volume
        self.jobs = [jobs.store.get(job_id) for job_id in submitted]
        self._versions = count_versions(jobs.registry)

    @property
    def finished(self) -> int:
        return sum(job.status == JobStatus.SUCCEEDED for job in self.jobs)

    @property
    def lost(self) -> list[str]:
        return [
            f"{job.id}: {job.status}, {job.error}"
            for job in self.jobs
            if job.status not in ENDED
            or job.status == JobStatus.FAILED
            or (job.status == JobStatus.SUCCEEDED and not self._versions[job.id])
        ]

    @property
    def doubled(self) -> list[str]:
        return [job.id for job in self.jobs if self._versions[job.id] > 1]

    def check(self, what: str, num_faults: int) -> None:
        """Prints the row, and fails unless all jobs were done once."""
        attempts = sum(job.attempt for job in self.jobs)
        print(
            f"\nchaos: {what}: {num_faults} faults, {len(self.jobs)} jobs submitted, {self.finished} "
            f"finished in {attempts} attempts, {len(self.lost)} lost, {len(self.doubled)} doubled"
        )
        assert self.lost == []
        assert self.doubled == []
        for job in self.jobs:
            assert_whole_curve(self._volume, job)


def count_versions(registry: AdapterRegistry) -> Counter[str]:
    """Job -> how many versions say that they are its."""
    counts: Counter[str] = Counter()
    for adapter in registry.all():
        for number in adapter.versions:
            counts[registry.version(adapter.name, number).seal.job_id] += 1
    return counts


def losses(volume: Volume, job: Job) -> list[tuple[int, float]]:
    """The job's curve, (step, loss)."""
    points = read_curve(volume.attempt(job.id, job.attempt)).train
    return [(point.step, point.loss) for point in points]


def assert_whole_curve(volume: Volume, job: Job) -> None:
    """A point for each step, once."""
    steps = [step for step, _ in losses(volume, job)]
    assert steps == list(range(1, (job.progress.total_steps or 0) + 1)), f"{job.id}: {steps}"


def is_whole(registry: AdapterRegistry) -> bool:
    """Whether each version that can be seen can be read."""
    try:
        count_versions(registry)
    except ServiceError:
        return False
    return True
