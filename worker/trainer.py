"""SFTTrainer with a leaner loss on CPUs, an exact held-out loss, and a batch size that is found without changing the steps."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import find_executable_batch_size
from datasets import Dataset
from peft import PeftModel
from torch.utils.data import DataLoader, RandomSampler, Sampler
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_pt_utils import LengthGroupedSampler
from transformers.trainer_utils import EvalLoopOutput, TrainOutput
from trl import SFTTrainer

from core.errors import ServiceError
from core.training_config import TrainingSection
from worker.dataset import IGNORED


class EpochSampler(Sampler[int]):
    """The order of `inner` in each epoch, decided by seed and epoch alone.

    Drawn from the process's generator, as Trainer does, it would be another one after a run was taken up again.
    """

    def __init__(
        self, inner: LengthGroupedSampler | RandomSampler, seed: int, epoch: Callable[[], int]
    ) -> None:
        self._inner = inner
        self._seed = seed
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._inner)

    def __iter__(self) -> Iterator[int]:
        self._inner.generator = torch.Generator().manual_seed(self._seed + self._epoch())
        return iter(self._inner)


class AdapterTrainer(SFTTrainer):  # type: ignore[misc]
    """The same losses and gradients as SFTTrainer's.

    `training` is what its arguments were made from; `find_checkpoint` gives the newest whole checkpoint of this run.
    """

    control: TrainerControl

    def __init__(
        self,
        *,
        training: TrainingSection,
        find_checkpoint: Callable[[], Path | None],
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self._training = training
        self._find_checkpoint = find_checkpoint

    def _inner_training_loop(
        self,
        batch_size: int,
        args: TrainingArguments,
        resume_from_checkpoint: str | None = None,
        **options: Any,
    ) -> TrainOutput:
        """With `auto_find_batch_size`, goes on after an out-of-memory, with batches of half as many rows or fewer.

        From the newest checkpoint, whose step count means the same rows, or else anew. By itself Trainer takes a tenth
        off, and each step then learns from fewer rows at the same rate; here more of the smaller batches are
        accumulated. Raises ServiceError `out_of_memory` if not even one row fits.
        """
        if not args.auto_find_batch_size:
            return super()._inner_training_loop(batch_size, args, resume_from_checkpoint, **options)
        num_rows, checkpoint = batch_size, resume_from_checkpoint

        def lessen() -> int:
            nonlocal num_rows
            rows_in_step = self._training.rows_in_step
            num_rows = next(
                (
                    fewer
                    for fewer in range(num_rows // 2, 0, -1)
                    if self._training.in_batches_of(fewer).rows_in_step == rows_in_step
                ),
                0,
            )
            if not num_rows:
                raise ServiceError(
                    "not even a batch of one row fits into memory: lower config.training.max_length, "
                    "set gradient_checkpointing, or train a LoRA of a smaller config.lora.r",
                    code="out_of_memory",
                )
            return num_rows

        def train(num_rows: int) -> TrainOutput:
            nonlocal checkpoint
            if num_rows < batch_size:  # it has begun before, and ran out of memory
                newest = self._find_checkpoint()
                checkpoint = str(newest) if newest else checkpoint
                if checkpoint:
                    self._load_from_checkpoint(checkpoint)
            self._use_batches_of(num_rows)
            return super(AdapterTrainer, self)._inner_training_loop(
                num_rows, args, checkpoint, **options
            )

        output: TrainOutput = find_executable_batch_size(train, batch_size, lessen)()
        return output

    def _use_batches_of(self, num_rows: int) -> None:
        """In the arguments, so that sampler, steps and evaluation agree; also where a checkpoint names the size."""
        training = self._training.in_batches_of(num_rows)
        self.args.per_device_train_batch_size = self.args.per_device_eval_batch_size = num_rows
        self.args.gradient_accumulation_steps = training.gradient_accumulation_steps

    def compute_loss(
        self,
        model: PeftModel,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """On a CPU projects only trained tokens onto the vocabulary, which TRL itself does on GPUs alone.

        With a small model the head over prompts and padding was half of a step.
        """
        if return_outputs or inputs["input_ids"].device.type != "cpu":
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        targets = inputs["labels"][:, 1:]  # [batch, length - 1]
        is_trained = targets != IGNORED

        def keep_trained(_: torch.nn.Module, args: tuple[torch.Tensor]) -> tuple[torch.Tensor]:
            return (args[0][:, :-1][is_trained],)  # [trained, hidden]

        features = {name: value for name, value in inputs.items() if name != "labels"}
        with model.get_output_embeddings().register_forward_pre_hook(keep_trained):
            logits = model(**features, use_cache=False).logits  # [trained, vocabulary]
        loss = torch.nn.functional.cross_entropy(
            logits.float(), targets[is_trained], reduction="sum"
        )
        num_tokens = is_trained.sum() if num_items_in_batch is None else num_items_in_batch
        return loss / torch.as_tensor(num_tokens).clamp(min=1)

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> EpochSampler:
        inner = super()._get_train_sampler(train_dataset)
        return EpochSampler(inner, self.args.seed, lambda: int(self.state.epoch or 0))

    def _save_checkpoint(self, model: PeftModel, trial: None) -> None:
        """Without the model card that TRL writes into each."""
        Trainer._save_checkpoint(self, model, trial)

    def evaluation_loop(
        self,
        dataloader: DataLoader[Any],
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The mean over all trained tokens, however they are batched. No logits are kept.

        Trainer's own is a mean of the batches' means.
        """
        self.model.eval()
        loss_sum, num_tokens = 0.0, 0
        for inputs in dataloader:
            prepared = self._prepare_inputs(inputs)
            with torch.no_grad(), self.compute_loss_context_manager():
                loss_sum += self.compute_loss(self.model, prepared, num_items_in_batch=1).item()
            num_tokens += int((prepared["labels"][:, 1:] != IGNORED).sum())
            self.control = self.callback_handler.on_prediction_step(
                self.args, self.state, self.control
            )
        return EvalLoopOutput(
            predictions=None,
            label_ids=None,
            metrics={f"{metric_key_prefix}_loss": loss_sum / max(num_tokens, 1)},
            num_samples=self.num_examples(dataloader),
        )


class CleanStart(TrainerCallback):  # type: ignore[misc]
    """For `auto_find_batch_size`, which may begin anew with smaller batches: also from the first weights.

    Accelerate's retry goes on with the weights and the optimiser's state of the run that did not fit. Where it goes on
    from a checkpoint, both are the checkpoint's already.
    """

    def __init__(self) -> None:
        self._first: dict[str, torch.Tensor] = {}

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: PeftModel | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        **_: Any,
    ) -> None:
        assert model is not None
        assert optimizer is not None
        # A checkpoint brings the size that it was made with, which may have been the one that did not fit.
        state.train_batch_size = args.per_device_train_batch_size
        if state.global_step:
            return
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        if not self._first:
            self._first = {name: p.detach().clone() for name, p in trained.items()}
            return
        for name, parameter in trained.items():
            parameter.data.copy_(self._first[name])
        optimizer.state.clear()
