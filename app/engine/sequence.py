"""One request's state in the engine: plain Python."""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

from core.adapter_version import AdapterVersion
from core.errors import ServiceError


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How a sequence's next token is chosen, and when it ends. temperature 0 = greedy; top_k 0 = all."""

    max_new_tokens: int
    stop_token_ids: frozenset[int]
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None


class FinishReason(StrEnum):
    STOP = "stop"  # the model ended its turn
    LENGTH = "length"  # max_new_tokens were generated
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class Update:
    """What a step brought to one sequence. The last one carries `finish_reason`, and `error` if it failed."""

    token_ids: list[int]
    finish_reason: FinishReason | None = None
    error: ServiceError | None = None


@dataclass(slots=True, eq=False)
class Sequence:
    """A prompt on its way to a completion. `sink` is called on the engine's thread and must not block."""

    prompt_ids: list[int]
    params: SamplingParams
    adapter: AdapterVersion | None  # None: the untouched base model
    sink: Callable[[Update], None]
    streaming: bool = False  # an Update for every token, or one at the end

    output_ids: list[int] = field(default_factory=list)
    num_computed: int = 0  # tokens whose keys and values are stored, or will be by steps under way
    row: int | None = None  # of the newest step's result, while its newest token lies there alone
    slot: int = 0  # row of the LoRA bank's table
    region_start: int = 0  # where its keys and values lie
    waiting_since: float = 0.0
    cancelled: bool = False
    is_over: bool = False  # it holds no place any more

    @property
    def max_tokens(self) -> int:
        """The room that it may come to need, in tokens."""
        return len(self.prompt_ids) + self.params.max_new_tokens

    @property
    def num_pending(self) -> int:
        """Known tokens that the model has not seen yet: the rest of the prompt, or the newest token."""
        return len(self.prompt_ids) + self.num_outputs - self.num_computed

    @property
    def num_outputs(self) -> int:
        """Tokens that were chosen, with the one that is not known here yet."""
        return len(self.output_ids) + (self.row is not None)

    def pending_ids(self, count: int) -> list[int]:
        """The next `count` tokens for the model to read; 0 for the one that is not known here yet."""
        if self.row is not None:
            return [0]
        if self.output_ids:
            return self.output_ids[-1:]
        return self.prompt_ids[self.num_computed : self.num_computed + count]

    def append(self, token_id: int) -> FinishReason | None:
        """Takes a new token; says whether it ends the sequence. A stop token is not part of the output."""
        if token_id in self.params.stop_token_ids:
            return FinishReason.STOP
        self.output_ids.append(token_id)
        if len(self.output_ids) >= self.params.max_new_tokens:
            return FinishReason.LENGTH
        return None
