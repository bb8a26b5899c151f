"""What the server answers. Fields that a newer server adds are kept as they come, and break nothing."""

from collections.abc import Callable
from datetime import datetime
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr

ENDED = frozenset({"succeeded", "failed", "cancelled"})


class Answer(BaseModel):
    model_config = ConfigDict(extra="allow", populate_by_name=True, protected_namespaces=())


# Translations


class Usage(Answer):
    prompt_tokens: int
    completion_tokens: int


class DetectedLanguage(Answer):
    """`confidence`: 0 to 100."""

    language: str
    confidence: float


class Translation(Answer):
    """The translation of one text. `adapter` is the version that answered; `finish_reason` "length": it was cut."""

    text: str = Field(alias="translatedText")
    adapter: str
    usage: Usage
    finish_reason: str
    alternatives: list[str] = []
    detected_language: DetectedLanguage | None = Field(None, alias="detectedLanguage")


class Translations(Answer):
    """The translations of a list, in its order. `usage` is of all together."""

    texts: list[str] = Field(alias="translatedText")
    adapter: str
    usage: Usage
    finish_reasons: list[str] = Field(alias="finish_reason")
    alternatives: list[list[str]] = []
    detected_languages: list[DetectedLanguage] = Field([], alias="detectedLanguage")


class Token(Answer):
    """A piece of translation number `index`, as it comes."""

    index: int
    text: str


class Language(Answer):
    code: str
    name: str
    targets: list[str]


# Datasets


class RowError(Answer):
    """Why a line cannot be used. Lines count from 1."""

    line: int
    column: str | None = None
    code: str
    message: str


class DatasetWarning(Answer):
    """`lines`: the first of the `count` that it is about."""

    code: str
    message: str
    count: int = 0
    lines: list[int] = []


class TokenStatistics(Answer):
    """Tokens of source plus target text."""

    min: int
    median: int
    p95: int
    max: int
    total: int


class DatasetReport(Answer):
    errors: list[RowError] = []
    warnings: list[DatasetWarning] = []
    unusable: int = 0
    duplicates: int = 0
    empty: int = 0
    too_long: int = 0
    tokens: TokenStatistics | None = None


class Dataset(Answer):
    id: str
    name: str
    format: str
    rows: int
    columns: list[str]
    mapping: dict[str, str]
    sha256: str
    created_at: datetime
    report: DatasetReport
    preview: list[dict[str, Any]] = []


class Segment(Answer):
    """A piece of a row as the model sees it; `trained`: whether its loss counts."""

    text: str
    trained: bool
    tokens: int


class PreviewRow(Answer):
    """A row as the model will see it. `held_out`: kept for the evaluation, not trained on."""

    segments: list[Segment]
    tokens: int
    too_long: bool = False
    held_out: bool = False


# Jobs


class Progress(Answer):
    step: int = 0
    total_steps: int | None = None
    epoch: float = 0.0
    percent: float = 0.0
    tokens_per_second: float | None = None
    eta_seconds: float | None = None


class TrainPoint(Answer):
    step: int
    epoch: float
    loss: float
    learning_rate: float | None = None
    grad_norm: float | None = None


class EvalPoint(Answer):
    step: int
    loss: float


class LossCurve(Answer):
    train: list[TrainPoint] = []
    eval: list[EvalPoint] = []


class Scores(Answer):
    """sacreBLEU's corpus scores, 0 to 100."""

    bleu: float
    chrf: float


class Sample(Answer):
    """One held-out row as each translator answers it."""

    source: str
    reference: str
    base: str
    current: str | None = None
    candidate: str


class Evaluation(Answer):
    """The judgement on a job's version; `gain` is in points of `metric` over `against`."""

    metric: str
    rows: int | None = None
    against: str | None = None
    base: Scores
    current: Scores | None = None
    candidate: Scores
    gain: float | None = None
    p_value: float | None = None
    promoted: bool
    reason: str | None = None
    samples: list[Sample] = []


class JobError(Answer):
    code: str
    message: str


class JobCheckpoint(Answer):
    """What a job that has not ended had learnt by `step`; translate calls it by `adapter`."""

    step: int
    created_at: datetime
    adapter: str


class Job(Answer):
    """A fine-tuning job as it stood when it was asked for; `config` is the one it runs with.

    `queue_position` counts from 1, the next to start; `expected_start` is a guess.
    """

    id: str
    adapter: str
    adapter_version: int | None = None
    dataset_id: str
    status: str
    priority: str = "normal"
    queue_position: int | None = None
    expected_start: datetime | None = None
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    progress: Progress = Progress()
    loss_curve: LossCurve = LossCurve()
    evaluation: Evaluation | None = None
    error: JobError | None = None
    warnings: list[str] = []
    config: dict[str, Any] = {}
    attempt: int = 0
    checkpoints: list[JobCheckpoint] = []

    _wait: Callable[..., Any] | None = PrivateAttr(None)

    @property
    def ended(self) -> bool:
        return self.status in ENDED

    def wait(self, *, progress: bool = False, timeout_s: float | None = None) -> Self:
        """Returns the job once it has ended; `client.jobs.wait(job)`, which see.

        Only on jobs that came from a Client. From an AsyncClient: `await client.jobs.wait(job)`.
        """
        if self._wait is None:
            raise TypeError("this job is bound to no Client; use `await client.jobs.wait(job)`")
        job: Self = self._wait(self.id, progress=progress, timeout_s=timeout_s)
        return job


# Adapters


class Adapter(Answer):
    """`traffic`: shares of requests by version, where they are split."""

    name: str
    source: str
    target: str
    current: int | None
    versions: list[int]
    resident: bool = False
    description: str = ""
    traffic: dict[int, float] = {}

    @property
    def previous(self) -> int | None:
        """The newest version before the current one."""
        older = [v for v in self.versions if self.current is not None and v < self.current]
        return max(older, default=None)


class AdapterVersion(Answer):
    """`seal` is its dragoman.json: what it was trained on and how it is served."""

    ref: str
    name: str
    version: int
    current: bool
    size_bytes: int
    seal: dict[str, Any]


# System


class Check(Answer):
    ok: bool
    reason: str | None = None


class Readiness(Answer):
    """`checks`: base_model, redis, volume."""

    status: str
    checks: dict[str, Check]

    @property
    def ok(self) -> bool:
        return self.status == "ok"

    def describe(self) -> str:
        """What is not ready, and why."""
        return "; ".join(f"{n}: {c.reason}" for n, c in self.checks.items() if not c.ok)
