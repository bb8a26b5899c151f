"""What a job may ask for: TRL's and PEFT's own names, bounded; unknown keys are refused.

Defaults are for people who do not want to choose: docs/decisions.md has the measurements. Each name is documented in
TRL's SFTConfig, PEFT's LoraConfig or transformers' BitsAndBytesConfig. A preset (see core.presets) lies between the
defaults and what the job names itself.
"""

from typing import Annotated, Any, Literal, Self

from langcodes import tag_is_valid
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from core.plain_text import PlainText
from core.presets import PRESETS, PresetName, with_preset
from core.prompt import Prompt

# Rows that are held out where a job does not say: a tenth, and no more than tell a difference of some BLEU points.
_HELD_OUT_SHARE = 0.1
_MAX_HELD_OUT = 200
# Of the embedded base, 384 wide, 1e-3 was the best rate (docs/decisions.md). Wider models want smaller steps: the
# exponent is that of "LoRA Without Regret" (Schulman et al. 2025).
_BEST_RATE = 1e-3
_BEST_RATE_WIDTH = 384
_WIDTH_EXPONENT = 0.781
_MAX_BATCHES_IN_STEP = 1024


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
    """peft.LoraConfig (Hu et al. 2021, arXiv:2106.09685).

    `bias`: only "none", because trained biases would change the base that all adapters share.
    `init_lora_weights`: "loftq" (Li et al. 2023, arXiv:2310.08659) needs a base that is not 4-bit on disk;
    "orthogonal" needs an even `r`.
    """

    r: int = Field(16, ge=1, le=256)
    lora_alpha: float = Field(32, gt=0, le=4096)
    lora_dropout: float = Field(0.0, ge=0, lt=1)
    target_modules: Literal["all-linear"] | list[Annotated[str, Field(min_length=1)]] = Field(
        "all-linear", min_length=1, max_length=32
    )
    bias: Literal["none"] = "none"
    use_rslora: bool = False
    init_lora_weights: bool | Literal["gaussian", "orthogonal", "loftq"] = True

    @model_validator(mode="after")
    def _has_even_rank_if_orthogonal(self) -> Self:
        if self.init_lora_weights == "orthogonal" and self.r % 2:
            raise ValueError(f"init_lora_weights='orthogonal' needs an even r, not {self.r}")
        return self


class QuantizationSection(_Section):
    """transformers.BitsAndBytesConfig. Only "nf4": an adapter fits the 4-bit base that it is served on.

    `prepare_model_for_kbit_training`: peft's function, which makes embeddings, norms and head float32 (445 MB more
    with Phi-3-mini); without it they are in the dtype that they are served in.
    """

    bnb_4bit_quant_type: Literal["nf4"] = "nf4"
    bnb_4bit_use_double_quant: bool = True
    bnb_4bit_compute_dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    prepare_model_for_kbit_training: bool = False


class TrainingSection(_Section):
    """trl.SFTConfig.

    None: `learning_rate` is chosen for the base's width, `eval_steps` is a tenth of the run, checkpoints come by minutes
    and not by `save_steps`, `early_stopping_patience` is off, `assistant_only_loss` is as `completion_only_loss`; `bf16`
    and `fp16` are as the device can; `gradient_checkpointing` is on where memory asks for it.

    `auto_find_batch_size`: after an out-of-memory the run goes on from its newest checkpoint, or begins anew, with batches
    of half as many rows (fewer, where half does not divide a step's) and gradients of more batches accumulated, so that a
    step learns from the rows it was to learn from.

    What is trained on: every answer with `assistant_only_loss`, each row's last answer with `completion_only_loss`
    alone, everything with neither.
    """

    num_train_epochs: float = Field(3.0, gt=0, le=1000)
    max_steps: Literal[-1] | Annotated[int, Field(ge=1, le=10_000_000)] = -1
    learning_rate: float | None = Field(None, gt=0, le=1)
    per_device_train_batch_size: int = Field(8, ge=1, le=1024)
    gradient_accumulation_steps: int = Field(1, ge=1, le=_MAX_BATCHES_IN_STEP)
    auto_find_batch_size: bool = False
    max_length: int = Field(512, ge=8, le=131_072)
    packing: bool = False
    packing_strategy: Literal["bfd", "bfd_split", "wrapped"] = "bfd"
    completion_only_loss: bool = True
    assistant_only_loss: bool | None = None
    optim: Literal[
        "adamw_torch",
        "adamw_torch_fused",
        "adamw_8bit",
        "paged_adamw_8bit",
        "paged_adamw_32bit",
        "adafactor",
        "sgd",
    ] = "adamw_torch"
    lr_scheduler_type: Literal[
        "linear", "cosine", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt"
    ] = "linear"
    warmup_steps: int = Field(0, ge=0, le=1_000_000)
    weight_decay: float = Field(0.0, ge=0, le=1)
    max_grad_norm: float = Field(1.0, gt=0, le=1000)
    logging_steps: int = Field(1, ge=1, le=100_000)
    eval_steps: int | None = Field(None, ge=1, le=10_000_000)
    save_steps: int | None = Field(None, ge=1, le=10_000_000)
    early_stopping_patience: int | None = Field(None, ge=1, le=1000)
    seed: int = Field(42, ge=0, lt=2**31)
    bf16: bool | None = None
    fp16: bool | None = None
    gradient_checkpointing: bool | None = None
    activation_offloading: bool = False
    dataset_num_proc: int = Field(1, ge=1, le=64)
    report_to: list[Literal["tensorboard", "wandb", "mlflow"]] = Field([], max_length=3)

    @model_validator(mode="after")
    def _has_one_precision(self) -> Self:
        if self.bf16 and self.fp16:
            raise ValueError("bf16 and fp16 cannot both be true; name one, or neither")
        return self

    @property
    def trains_all_answers(self) -> bool:
        wanted = self.assistant_only_loss
        return self.completion_only_loss if wanted is None else wanted

    @property
    def rows_in_step(self) -> int:
        return self.per_device_train_batch_size * self.gradient_accumulation_steps

    def in_batches_of(self, num_rows: int) -> Self:
        """With as many rows in a step as now, or as nearly as can be, in batches of `num_rows`."""
        num_batches = min(max(1, round(self.rows_in_step / num_rows)), _MAX_BATCHES_IN_STEP)
        update = {
            "per_device_train_batch_size": num_rows,
            "gradient_accumulation_steps": num_batches,
        }
        return self.model_copy(update=update)

    def is_trained(self, index: int, num_segments: int) -> bool:
        """Whether segment `index` of a conversation is learnt; even ones are questions, odd ones answers."""
        if self.trains_all_answers:
            return index % 2 == 1
        return index == num_segments - 1 or not self.completion_only_loss


def default_learning_rate(hidden_size: int) -> float:
    """For a base of `hidden_size` features."""
    rate = _BEST_RATE * (_BEST_RATE_WIDTH / hidden_size) ** _WIDTH_EXPONENT
    return float(f"{rate:.2g}")


class EvaluationSection(_Section):
    """How the version is judged. `holdout`: a share (0.1) or a number of rows (62; 0: no evaluation).

    `min_gain` is in points of `metric` over the current version, or over the bare base if there is none.
    """

    holdout: (
        Annotated[int, Field(ge=0, le=100_000)] | Annotated[float, Field(gt=0, lt=1)] | None
    ) = None
    metric: Literal["bleu", "chrf"] = "bleu"
    min_gain: float = Field(0.0, ge=-100, le=100)
    promote: Literal["if_better", "always", "never"] = "if_better"


class JobConfig(_Section):
    """The `config` of POST /jobs, resolved: what a job did not name holds its preset's value, or the default."""

    # The schema says what each preset stands for, so that a form made from it can show it.
    preset: PresetName | None = Field(
        None, json_schema_extra={"x-presets": dict[str, Any](PRESETS)}
    )
    source: LanguageCode = "und"
    target: LanguageCode = "und"
    description: PlainText = Field("", max_length=2000)
    device: Literal["auto", "cpu", "cuda"] = "auto"  # of the worker; auto: any
    prompt: Prompt = Prompt(system=None, template="{text}")
    lora: LoraSection = LoraSection()
    quantization: QuantizationSection = QuantizationSection()
    training: TrainingSection = TrainingSection()
    evaluation: EvaluationSection = EvaluationSection()

    @model_validator(mode="before")
    @classmethod
    def _fill_from_preset(cls, given: Any) -> Any:
        preset = given.get("preset") if isinstance(given, dict) else None
        return with_preset(given) if isinstance(preset, str) and preset in PRESETS else given

    def settled(self, *, num_rows: int, hidden_size: int) -> Self:
        """With the values that depend on the dataset and the base model; settling twice changes nothing.

        `num_rows` is the dataset's; `hidden_size` the base model's, in features.
        """
        settled = self.model_copy(deep=True)
        if settled.training.learning_rate is None:
            settled.training.learning_rate = default_learning_rate(hidden_size)
        if settled.evaluation.holdout is None:
            share = round(num_rows * _HELD_OUT_SHARE)
            settled.evaluation.holdout = min(share, _MAX_HELD_OUT)
        return settled
