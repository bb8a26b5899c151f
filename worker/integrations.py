"""Where a run is reported besides the job itself: the integrations of transformers, writing into the attempt's folder."""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

from core.errors import ServiceError


def check_installed(names: Sequence[str]) -> None:
    """Raises ServiceError `integration_missing`."""
    for name in names:
        if find_spec(name) is None:
            raise ServiceError(
                f"training.report_to has {name!r}, which is not installed where this worker runs; "
                f"pip install 'dragoman[{name}]' installs it",
                code="integration_missing",
            )


def reporting_callbacks(
    names: Sequence[str], folder: Path
) -> tuple[list[TrainerCallback], list[str]]:
    """-> callbacks to add, and the names that Trainer has its own callback for.

    What writes to the disk writes into `folder`, unless the integration's own environment variables say otherwise.
    """
    check_installed(names)
    callbacks = []
    if "tensorboard" in names:
        from torch.utils.tensorboard import SummaryWriter

        callbacks.append(TensorBoardCallback(SummaryWriter(str(folder / "tensorboard"))))
    if "mlflow" in names:
        os.environ.setdefault("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
    if "wandb" in names:
        os.environ.setdefault("WANDB_DIR", str(folder))
        if "WANDB_API_KEY" not in os.environ and not (Path.home() / ".netrc").exists():
            os.environ.setdefault("WANDB_MODE", "offline")  # it would ask at a terminal
    return callbacks, [name for name in names if name != "tensorboard"]
