"""HTTP shapes: what requests may hold and what answers do."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.checkpoints import JobCheckpoint
from core.adapter_version import Seal
from core.jobs import (
    Evaluation,
    Job,
    JobError,
    JobStatus,
    LossCurve,
    Place,
    Priority,
    Progress,
)
from core.plain_text import PlainText
from core.prompt import Prompt
from core.training_config import JobConfig, LanguageCode

Text = PlainText
# Each is looked for after every token.
StopString = Annotated[Text, Field(max_length=256)]


class RequestBody(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class TranslateRequest(RequestBody):
    """LibreTranslate's request, plus how to decode. Name an `adapter`, or a language pair that chooses one."""

    q: Text | Annotated[list[Text], Field(fail_fast=True)] = Field(
        description="one text, or a list of them", examples=["The Force is strong in you!"]
    )
    adapter: Text | None = Field(
        None,
        max_length=80,
        description="`yoda` (its current version), `yoda@2`, `base` for the untouched base model, or "
        "`job:{id}` for what a job that has not ended has learnt so far: its newest checkpoint",
        examples=["yoda"],
    )
    source: Text | None = Field(None, max_length=35, description="language code, or `auto`")
    target: Text | None = Field(None, max_length=35, description="language code")
    format: Literal["text", "html"] = Field("text", description="`html` translates the text nodes")
    alternatives: int = Field(0, ge=0, description="how many further translations to offer")
    api_key: Text | None = Field(None, max_length=256)
    max_new_tokens: int | None = Field(None, ge=1, description="tokens that a translation may have")
    temperature: float | None = Field(None, ge=0, le=10, description="0 = greedy, the default")
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0, le=256, description="0 = no limit of its own")
    seed: int | None = Field(None, ge=0, lt=2**63, description="makes sampling repeatable")
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] = Field(
        [], description="strings that end a translation, not part of it"
    )
    stream: bool = Field(False, description="answer with server-sent events")

    @property
    def texts(self) -> list[str]:
        return [self.q] if isinstance(self.q, str) else self.q

    @property
    def stop_strings(self) -> tuple[str, ...]:
        return tuple(s for s in ([self.stop] if isinstance(self.stop, str) else self.stop) if s)


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int


class DetectedLanguage(BaseModel):
    confidence: float = Field(description="0 to 100")
    language: str


class TranslateResponse(BaseModel):
    """Each of `translatedText`, `finish_reason`, `alternatives` is a list where `q` is one."""

    translatedText: str | list[str]  # noqa: N815  LibreTranslate's name
    adapter: str = Field(
        description="the version that answered, such as `yoda@2`, or the checkpoint: `job:{id}@{step}`"
    )
    usage: Usage
    finish_reason: str | list[str]
    alternatives: list[str] | list[list[str]] | None = None
    detectedLanguage: DetectedLanguage | list[DetectedLanguage] | None = None  # noqa: N815


class Problem(BaseModel):
    """An error (RFC 9457). `code` is stable; `detail` names the value and what would be accepted."""

    type: str = "about:blank"
    title: str
    status: int
    detail: str
    code: str
    errors: list[dict[str, Any]] | None = Field(None, description="for validation: `loc` and `msg`")
    error: str | None = Field(None, description="`detail` again, for LibreTranslate's clients")


class AdapterOut(BaseModel):
    name: str
    source: str
    target: str
    current: int | None
    traffic: dict[int, float] = Field(
        description="while a canary runs: version -> share of the requests that name no version"
    )
    versions: list[int]
    resident: bool = Field(description="whether a version of it is in the model's memory now")
    description: str


class VersionOut(BaseModel):
    """One version; `seal` is its dragoman.json."""

    ref: str
    name: str
    version: int
    current: bool
    size_bytes: int
    seal: Seal


class AdapterImport(RequestBody):
    """The text parts of an import. Without `prompt`, that of the archive's own seal is kept, if it has one."""

    name: Text = Field(max_length=80)
    prompt: Prompt | None = None
    source: LanguageCode | None = None
    target: LanguageCode | None = None
    description: Text | None = Field(None, max_length=2000)
    make_current: bool = Field(False, description="so is the first version of a name in any case")


class CurrentVersion(RequestBody):
    version: Annotated[int, Field(strict=True, ge=1)] | None = Field(
        description="null: no version answers to the adapter's bare name any more"
    )


class LanguageOut(BaseModel):
    code: str
    name: str
    targets: list[str]


class JobRequest(RequestBody):
    dataset_id: Text = Field(max_length=80)
    adapter: Text = Field(max_length=80, description="the adapter to make a new version of")
    priority: Priority = Field(
        Priority.NORMAL, description="who starts first; of one priority, the oldest does"
    )
    config: JobConfig = JobConfig()


class Cancellation(RequestBody):
    publish: bool = Field(
        False, description="judge and publish what was learnt so far, as a whole run would be"
    )


class JobOut(BaseModel):
    """A job as its owner sees it."""

    id: str
    adapter: str
    adapter_version: int | None
    dataset_id: str
    status: JobStatus
    priority: Priority
    queue_position: int | None = Field(description="1 is the next to start; null: not queued")
    expected_start: datetime | None = Field(
        description="from the running jobs' time left and how long past jobs took; null: unknown"
    )
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    progress: Progress
    loss_curve: LossCurve
    evaluation: Evaluation | None
    error: JobError | None
    warnings: list[str]
    config: JobConfig
    attempt: int
    checkpoints: list[JobCheckpoint] = Field(
        description="what can be translated with before the job has ended, the newest first"
    )

    @classmethod
    def of(
        cls,
        job: Job,
        curve: LossCurve,
        checkpoints: list[JobCheckpoint],
        place: Place | None = None,
    ) -> "JobOut":
        shown = dict(job) | {"config": job.resolved or job.config}
        return cls(
            loss_curve=curve,
            checkpoints=checkpoints,
            queue_position=place.position if place else None,
            expected_start=place.expected_start if place else None,
            **shown,
        )
