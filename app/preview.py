"""Rows of a dataset as a job would hand them to the model: rendered, with the trained part marked and tokens counted."""

from collections.abc import Iterable, Iterator

from pydantic import BaseModel, Field

from core.datasets import Row
from core.holdout import HoldOut
from core.prompt import PromptRenderer, Tokenizer, seal_prompt
from core.training_config import JobConfig


class RenderedSegment(BaseModel):
    """A question with what the chat template puts around it, or an answer with its end of turn."""

    text: str
    trained: bool = Field(description="whether the model learns to write it; else it is given")
    tokens: int


class RenderedRow(BaseModel):
    """`text` is all segments' texts. `prompt_tokens` are those of questions, `completion_tokens` those of answers."""

    segments: list[RenderedSegment]
    text: str
    prompt_tokens: int
    completion_tokens: int
    tokens: int
    too_long: bool = Field(description="has more tokens than training.max_length or the context")
    held_out: bool = Field(description="is kept for the evaluation, not trained on")


def render_rows(
    rows: Iterable[Row],
    config: JobConfig,
    *,
    tokenizer: Tokenizer,
    hold_out: HoldOut,
    max_tokens: int,
) -> Iterator[RenderedRow]:
    """Raises InvalidError `chat_template_unusable`."""
    renderer = PromptRenderer(tokenizer, seal_prompt(config.prompt, tokenizer))
    longest = min(config.training.max_length, max_tokens)
    for row in rows:
        segments = renderer.segments([(e.prompt, e.completion) for e in row.exchanges])
        num_prompt = sum(len(s.ids) for s in segments if not s.is_answer)
        num_completion = sum(len(s.ids) for s in segments if s.is_answer)
        yield RenderedRow(
            segments=[
                RenderedSegment(
                    text=segment.text,
                    trained=config.training.is_trained(i, len(segments)),
                    tokens=len(segment.ids),
                )
                for i, segment in enumerate(segments)
            ],
            text="".join(segment.text for segment in segments),
            prompt_tokens=num_prompt,
            completion_tokens=num_completion,
            tokens=num_prompt + num_completion,
            too_long=num_prompt + num_completion > longest,
            held_out=hold_out.holds(row.prompt),
        )
