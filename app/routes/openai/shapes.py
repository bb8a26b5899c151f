"""OpenAI's shapes, as far as they are used here. Times are Unix seconds."""

from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from app.schemas import StopString, Text
from core.training_config import JobConfig

_Item = TypeVar("_Item", bound=BaseModel)


class Call(BaseModel):
    """A request; fields that are not known here are ignored."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)


class Page(BaseModel, Generic[_Item]):
    object: Literal["list"] = "list"
    data: list[_Item]
    has_more: bool = False
    first_id: str | None = None
    last_id: str | None = None


class Model(BaseModel):
    id: str = Field(examples=["yoda"])
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "dragoman"


class Deleted(BaseModel):
    id: str
    object: str
    deleted: Literal[True] = True


# Chat


class TextContent(Call):
    type: Literal["text"]
    text: Text


class Message(Call):
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextContent], Field(fail_fast=True)] | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class StreamOptions(Call):
    include_usage: bool | None = None


class ChatRequest(Call):
    """To an adapter the last user message is the text to translate; its own sealed prompt goes around it.

    To `base` the whole conversation goes, through the model's chat template.
    """

    model: Text = Field(
        max_length=200,
        description="an adapter, a version of one, `base`, or `job:{id}`: a job's newest checkpoint",
        examples=["yoda"],
    )
    messages: list[Message] = Field(
        min_length=1,
        max_length=256,
        examples=[[{"role": "user", "content": "The Force is strong in you!"}]],
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1)] | None = Field(None, description="answers to the one prompt")
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(
        None, ge=1, description="a ceiling; this server's own limits hold as well"
    )
    temperature: float | None = Field(None, ge=0, le=10)
    top_p: float | None = Field(None, ge=0, le=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: StopString | Annotated[list[StopString], Field(max_length=16)] | None = None

    @property
    def stop_strings(self) -> tuple[str, ...]:
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(s for s in stop if s)


class ChatMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str
    refusal: None = None


class Choice(BaseModel):
    index: int
    message: ChatMessage
    finish_reason: str
    logprobs: None = None


class ChatUsage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ChatCompletion(BaseModel):
    """`model` is the version that answered."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[Choice]
    usage: ChatUsage
    system_fingerprint: str = Field(description="the base model's fingerprint")


class Delta(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None


class ChunkChoice(BaseModel):
    index: int
    delta: Delta
    finish_reason: str | None = None
    logprobs: None = None


class ChatCompletionChunk(BaseModel):
    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: list[ChunkChoice]
    usage: ChatUsage | None = None
    system_fingerprint: str


# Files


class FileObject(BaseModel):
    """A dataset, under the id that it has at /datasets too. `bytes` is what its rows take on the volume."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: Literal["fine-tune"] = "fine-tune"
    status: Literal["processed"] = "processed"
    status_details: None = None
    expires_at: None = None


# Fine-tuning

_Auto = Literal["auto"]


class Hyperparameters(Call):
    """`learning_rate_multiplier` is of the rate that this server would choose."""

    n_epochs: _Auto | Annotated[int, Field(ge=1)] | None = "auto"
    batch_size: _Auto | Annotated[int, Field(ge=1)] | None = "auto"
    learning_rate_multiplier: _Auto | Annotated[float, Field(gt=0)] | None = "auto"


class Supervised(Call):
    hyperparameters: Hyperparameters | None = None


class Method(Call):
    type: str
    supervised: Supervised | None = None


class FineTuningRequest(Call):
    """`config` is not OpenAI's: the job config of POST /jobs, for languages, prompt, LoRA and the rest."""

    model: Text = Field(max_length=200, examples=["base"])
    training_file: Text = Field(max_length=80, examples=["ds-08c6acf916b05723"])
    validation_file: Text | None = None
    suffix: Text | None = Field(
        None, max_length=64, description="the adapter's name; empty: a new one", examples=["yoda"]
    )
    seed: int | None = Field(None, ge=0, lt=2**31)
    hyperparameters: Hyperparameters | None = None
    method: Method | None = None
    metadata: (
        Annotated[
            dict[Annotated[Text, Field(max_length=64)], Annotated[Text, Field(max_length=512)]],
            Field(max_length=16),
        ]
        | None
    ) = None
    integrations: list[dict[str, Any]] | None = None
    config: JobConfig = JobConfig()

    @property
    def wanted_hyperparameters(self) -> Hyperparameters:
        given = self.method.supervised if self.method else None
        return (given and given.hyperparameters) or self.hyperparameters or Hyperparameters()


class ChosenHyperparameters(BaseModel):
    n_epochs: int | Literal["auto"]
    batch_size: int
    learning_rate_multiplier: float


class ChosenSupervised(BaseModel):
    hyperparameters: ChosenHyperparameters


class ChosenMethod(BaseModel):
    type: Literal["supervised"] = "supervised"
    supervised: ChosenSupervised


class FineTuningError(BaseModel):
    code: str
    message: str
    param: str | None = None


class FineTuningJob(BaseModel):
    """`fine_tuned_model` is the version that the job made, such as `yoda@2`."""

    id: str
    object: Literal["fine_tuning.job"] = "fine_tuning.job"
    model: str
    created_at: int
    finished_at: int | None
    estimated_finish: int | None
    fine_tuned_model: str | None
    organization_id: str = "dragoman"
    result_files: list[str] = []
    status: str
    training_file: str
    validation_file: None = None
    trained_tokens: int | None
    seed: int
    error: FineTuningError | None
    hyperparameters: ChosenHyperparameters
    method: ChosenMethod
    integrations: list[dict[str, Any]] = []
    metadata: dict[str, str]
    user_provided_suffix: str


class FineTuningEvent(BaseModel):
    id: str
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"
    created_at: int
    level: Literal["info", "warn", "error"] = "info"
    message: str
    type: Literal["message", "metrics"] = "message"
    data: dict[str, Any] | None = None


class CheckpointMetrics(BaseModel):
    step: int
    train_loss: float | None
    full_valid_loss: float | None


class Checkpoint(BaseModel):
    id: str
    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    step_number: int
    metrics: CheckpointMetrics
