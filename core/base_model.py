"""Which base model is meant, where its files are, and the fingerprint that ties adapters to it."""

import hashlib
import json
import os
from pathlib import Path

from core.errors import ServiceError

_MODELS = Path(__file__).resolve().parent.parent / "models"
EMBEDDED = _MODELS / "base"
BOXED_ADAPTERS = _MODELS / "adapters"  # trained on the embedded base; copied to a new volume

# QLoRA's storage format (Dettmers et al. 2023, arXiv:2305.14314), in bitsandbytes' names.
NF4_CONFIG: dict[str, object] = {
    "load_in_4bit": True,
    "bnb_4bit_quant_type": "nf4",
    "bnb_4bit_use_double_quant": True,
}
_SAMPLE_BYTES = 4096
_NUM_SAMPLES = 64
# What decides whether an adapter fits; the rest of config.json may differ between copies of one model.
_CONFIG_KEYS = (
    "model_type",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
)


def locate_base_model(name: str) -> Path:
    """The folder that holds the base model's files; a hub name is downloaded on first use.

    Raises ServiceError `base_model_not_found` if there is no such folder and the hub has none either.
    """
    if not name:
        return EMBEDDED
    path = Path(name).expanduser()
    if (path / "config.json").is_file():
        return path.resolve()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        folder = snapshot_download(
            name, allow_patterns=["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]
        )
    except (HFValidationError, HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise ServiceError(
            f"base model {name!r} is neither a folder with a config.json nor a model that the "
            f"hub gave: {error}",
            code="base_model_not_found",
        ) from error
    return Path(folder)


def fingerprint(folder: Path) -> str:
    """Identifies the base model in `folder`: equal for equal files, wherever they lie.

    A hash of the shape-giving configuration, each weight file's size and header, and 64 evenly spaced samples
    of 4 KiB: a 7 GB model takes milliseconds, and fine-tuned siblings of one shape still differ.
    """
    config = json.loads((folder / "config.json").read_text())
    digest = hashlib.sha256(json.dumps({k: config.get(k) for k in _CONFIG_KEYS}).encode())
    for file in sorted(folder.glob("*.safetensors")):
        size = file.stat().st_size
        digest.update(f"{file.name}:{size}".encode())
        with file.open("rb") as handle:
            for i in range(_NUM_SAMPLES):
                handle.seek(i * max(size - _SAMPLE_BYTES, 0) // (_NUM_SAMPLES - 1), os.SEEK_SET)
                digest.update(handle.read(_SAMPLE_BYTES))
    return digest.hexdigest()[:32]
