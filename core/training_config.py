"""What a job may ask for: TRL's and PEFT's own names, bounded; unknown keys are refused.

Defaults are for people who do not want to choose, with some hundred sentence pairs and the embedded base model:
docs/decisions.md has the measurements. Each name is documented in TRL's SFTConfig or PEFT's LoraConfig.
"""

from typing import Annotated, Literal

from langcodes import tag_is_valid
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from core.prompt import PlainText, Prompt


def _valid_language(code: str) -> str:
    if not tag_is_valid(code):
        raise ValueError(
            f"{code!r} is not a BCP 47 language tag such as 'en', 'lzh' or 'en-x-yoda'"
        )
    return code


LanguageCode = Annotated[str, Field(max_length=35), AfterValidator(_valid_language)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class LoraSection(_Section):
    """peft.LoraConfig (Hu et al. 2021, arXiv:2106.09685)."""

    r: int = Field(16, ge=1, le=256)
    lora_alpha: float = Field(32, gt=0, le=4096)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: Literal["all-linear"] | list[Annotated[str, Field(min_length=1)]] = Field(
        "all-linear", min_length=1, max_length=32
    )
    use_rslora: bool = False


class TrainingSection(_Section):
    """trl.SFTConfig."""

    num_train_epochs: float = Field(3.0, gt=0, le=1000)
    max_steps: Literal[-1] | Annotated[int, Field(ge=1, le=10_000_000)] = -1
    learning_rate: float = Field(1e-3, gt=0, le=1)
    per_device_train_batch_size: int = Field(8, ge=1, le=1024)
    gradient_accumulation_steps: int = Field(1, ge=1, le=1024)
    max_length: int = Field(512, ge=8, le=131_072)
    packing: bool = False
    completion_only_loss: bool = True
    optim: Literal["adamw_torch", "adafactor", "sgd"] = "adamw_torch"
    lr_scheduler_type: Literal[
        "linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt"
    ] = "linear"
    warmup_steps: int = Field(0, ge=0, le=1_000_000)
    weight_decay: float = Field(0.0, ge=0, le=1)
    max_grad_norm: float = Field(1.0, gt=0, le=1000)
    logging_steps: int = Field(1, ge=1, le=100_000)
    seed: int = Field(42, ge=0, lt=2**31)
    gradient_checkpointing: bool = False


class JobConfig(_Section):
    """The `config` of POST /jobs, resolved: what a job did not name holds its default."""

    source: LanguageCode = "und"
    target: LanguageCode = "und"
    description: PlainText = Field("", max_length=2000)
    prompt: Prompt = Prompt(system=None, template="{text}")
    lora: LoraSection = LoraSection()
    training: TrainingSection = TrainingSection()
