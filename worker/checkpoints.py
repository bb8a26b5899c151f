"""What a run needs to go on after its process is gone: whole checkpoints, and what was trained, on the volume.

transformers writes a checkpoint into the attempt's scratch folder; it appears in jobs/{id}/checkpoints by one rename, so
nobody ever finds half of one. Each is sealed as a version is, so that the server can translate with it.
"""

import errno
import logging
import shutil
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from peft import PeftModel
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from trl import SFTTrainer

from core.adapter_version import WEIGHTS_FILE
from core.checkpoints import RECORD_FILE, TRAINED, CheckpointRecord, step_folder, step_folders
from core.volume import CHECKPOINTS, Volume, flush_entries, flush_to_disk
from worker.lease import LeaseKeeper
from worker.sealer import Sealer, save_lora
from worker.training import TrainingResult

logger = logging.getLogger(__name__)

_NUM_KEPT = 2


class Checkpoint(CheckpointRecord):
    """What transformers does not keep: where the checkpoint comes from, and the losses since the last logged step.

    `curve_of`: the attempt whose metrics reach up to `step`. `result`: of a run that is through, with its weights and
    nothing else.
    """

    curve_of: int
    base_fingerprint: str
    seconds: float = 0.0
    unlogged_loss: float = 0.0
    logged_loss: float = 0.0
    last_logged_step: int = 0
    result: dict[str, Any] | None = None


class CheckpointFolder:
    """The checkpoints of one job that can be gone on from on one base model."""

    def __init__(self, volume: Volume, job_id: str, base_fingerprint: str) -> None:
        self._volume = volume
        self._base_fingerprint = base_fingerprint
        self.path = volume.jobs / job_id / CHECKPOINTS

    def newest(self) -> tuple[Path, Checkpoint] | None:
        """The furthest whole checkpoint; None if there is none."""
        for path in [self.path / TRAINED, *step_folders(self.path)]:
            record = self._read(path)
            if record is not None:
                return path, record
        return None

    def add(self, written: Path, record: Checkpoint) -> Path:
        """Makes the folder `written` the checkpoint of its step; one that is there already stays."""
        return self._publish(written, record, step_folder(self.path, record.step))

    def add_trained(
        self, model: PeftModel, result: TrainingResult, curve_of: int, sealer: Sealer
    ) -> None:
        """Keeps the weights of a run that is through, as they are, until they are judged and published."""
        record = Checkpoint(
            step=result.num_steps,
            curve_of=curve_of,
            base_fingerprint=self._base_fingerprint,
            result=asdict(result),
        )
        with self._volume.staged_folder() as staged:
            save_lora(model, staged, sealer.base_name)
            sealer.seal(staged, result.metrics())
            self._publish(staged, record, self.path / TRAINED)

    def prune(self, kept_steps: Iterable[int]) -> None:
        """Removes all but the newest two that can be gone on from, and those of `kept_steps`."""
        kept = {*self._usable()[:_NUM_KEPT], *(step_folder(self.path, step) for step in kept_steps)}
        for path in step_folders(self.path):
            if path not in kept:
                self._volume.remove_folder(path)

    def link_into(self, folder: Path) -> None:
        """Shows transformers these checkpoints, and no others, where it looks for the best one and writes the next."""
        for left in folder.glob("checkpoint-*"):
            left.unlink() if left.is_symlink() else shutil.rmtree(left)
        for path in self._usable():
            (folder / path.name.replace("step", "checkpoint")).symlink_to(path)

    def _publish(self, written: Path, record: Checkpoint, target: Path) -> Path:
        record.files = {p.name: p.stat().st_size for p in written.iterdir() if p.is_file()}
        (written / RECORD_FILE).write_text(record.model_dump_json(), encoding="utf-8")
        flush_to_disk(written)
        self.path.mkdir(exist_ok=True)
        try:
            written.rename(target)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
            if self._read(target) is None:  # of another base model, or damaged
                shutil.rmtree(target)
                written.rename(target)
        flush_entries(self.path)
        return target

    def _usable(self) -> list[Path]:
        """Newest first."""
        return [path for path in step_folders(self.path) if self._read(path)]

    def _read(self, path: Path) -> Checkpoint | None:
        try:
            record = Checkpoint.model_validate_json((path / RECORD_FILE).read_bytes())
            is_whole = record.is_whole(path)
        except FileNotFoundError:
            return None
        except (OSError, ValidationError) as error:
            logger.warning("%s is unreadable: %s", path.name, error)
            return None
        if not is_whole or record.base_fingerprint != self._base_fingerprint:
            logger.warning("%s is damaged, or of another base model: it is not used", path.name)
            return None
        return record


def restore_trained(model: PeftModel, path: Path) -> None:
    """Gives `model` the weights that `add_trained` kept in `path`."""
    weights = load_file(path / WEIGHTS_FILE)
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.data.copy_(weights[name.replace(".default.", ".")])  # as PEFT saves it


class Checkpointer(TrainerCallback):  # type: ignore[misc]
    """Saves every `interval_s` seconds, where the config names no steps, and before the run is interrupted.

    `trainer` and `sealer` must be set before the run; `start` is the checkpoint that it goes on from. `find_newest` is
    for the trainer, to go on from another one in the midst of the run.
    """

    trainer: SFTTrainer
    sealer: Sealer

    def __init__(
        self,
        folder: CheckpointFolder,
        lease: LeaseKeeper,
        *,
        attempt: int,
        base_fingerprint: str,
        interval_s: float | None,
        start: Checkpoint | None,
    ) -> None:
        self._folder = folder
        self._lease = lease
        self._attempt = attempt
        self._base_fingerprint = base_fingerprint
        self._interval_s = interval_s
        self._start = start
        self._earlier_s = start.seconds if start else 0.0
        self._has_begun = False
        self._began_at_s = self._saved_at_s = time.monotonic()

    @property
    def seconds(self) -> float:
        """That the run took so far, in all its attempts."""
        return time.monotonic() - self._began_at_s + self._earlier_s

    def find_newest(self) -> Path | None:
        """The newest whole checkpoint; the run is to go on from there."""
        found = self._folder.newest()
        if found is None:
            return None
        path, self._start = found
        return path

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if not self._has_begun:
            self._began_at_s = self._saved_at_s = time.monotonic()
        self._has_begun = True
        self._folder.link_into(Path(args.output_dir))
        if self._start and state.global_step == self._start.step:
            # Trainer begins both sums anew: the next point would be the mean of fewer steps.
            self.trainer._tr_loss += self._start.unlogged_loss
            self.trainer._total_loss_scalar = self._start.logged_loss
            self.trainer._globalstep_last_logged = self._start.last_logged_step
            self.trainer._initial_global_step = 0

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if self._lease.ends_early:
            control.should_training_stop = control.should_log = True
        elif self._lease.interruption is not None or self._is_due():
            control.should_save = True

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.global_step >= state.max_steps or control.should_training_stop:
            return  # there are no steps left to go on with
        self._saved_at_s = time.monotonic()
        if self._lease.confirm():
            self._keep(Path(args.output_dir) / f"checkpoint-{state.global_step}", state)
        else:
            logger.warning("step %d: without Redis, no checkpoint is kept", state.global_step)
        self._lease.check()

    def _is_due(self) -> bool:
        if self._interval_s is None:
            return False
        return time.monotonic() - self._saved_at_s >= self._interval_s

    def _keep(self, written: Path, state: TrainerState) -> None:
        record = Checkpoint(
            step=state.global_step,
            curve_of=self._attempt,
            base_fingerprint=self._base_fingerprint,
            seconds=self.seconds,
            unlogged_loss=float(self.trainer._tr_loss),
            logged_loss=self.trainer._total_loss_scalar,
            last_logged_step=self.trainer._globalstep_last_logged,
        )
        self.sealer.seal(written, {"steps": state.global_step})
        kept = self._folder.add(written, record)
        shutil.rmtree(written, ignore_errors=True)
        written.symlink_to(kept)
        best = state.best_global_step
        self._folder.prune([] if best is None else [best])
        logger.info("step %d: checkpoint", state.global_step)
