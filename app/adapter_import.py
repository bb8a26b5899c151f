"""An adapter from elsewhere: archive -> checked PEFT folder -> sealed version on the volume."""

import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open

from app.adapter_archive import unpack
from app.engine.engine import Engine
from app.lora.reader import unusable
from app.lora.safetensors_file import MAX_HEADER_BYTES
from app.schemas import AdapterImport
from app.services import Serving
from core.adapter_version import (
    CONFIG_FILE,
    SEAL_FILE,
    WEIGHTS_FILE,
    AdapterVersion,
    Seal,
    content_sha256,
)
from core.adapters import AdapterRegistry, check_adapter_name
from core.errors import InvalidError
from core.prompt import PLAIN_CHAT_TEMPLATE, Prompt, PromptRenderer, seal_prompt
from core.training_config import LanguageCode
from core.volume import Volume

_DTYPES = ("F16", "BF16", "F32")
_KEY = re.compile(r"base_model\.model\.(?P<site>.+)\.lora_(?P<side>[AB])\.weight")
_LAYER_NAME = r"^\^?[A-Za-z0-9_.]+$"


class _LoraConfig(BaseModel):
    """What of adapter_config.json must agree with the weights, or PEFT could not load them. The engine sees to the rest.

    Patterns, and names that do not stand in a list, are regular expressions to PEFT; anything but a layer's name may take
    for ever to match.
    """

    model_config = ConfigDict(extra="ignore")

    r: int = Field(ge=1)
    target_modules: str | list[str] = Field(max_length=10_000)
    exclude_modules: str | list[str] | None = None
    layers_pattern: str | list[str] | None = None
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    base_model_name_or_path: str | None = None

    def faults(self, sites: list[str]) -> list[str]:
        faults = [
            f"{key} has {pattern[:80]!r}, which is no name of a layer"
            for key, pattern in self._patterns()
            if not re.match(_LAYER_NAME, pattern)
        ]
        if isinstance(self.target_modules, list):
            faults += [
                f"target_modules has {target[:80]!r}, which is no linear layer of this base model"
                for target in self.target_modules
                if not any(site == target or site.endswith(f".{target}") for site in sites)
            ]
        return faults

    def _patterns(self) -> Iterator[tuple[str, str]]:
        for key in ("rank_pattern", "alpha_pattern", "layers_pattern"):
            value: str | Iterable[str] | None = getattr(self, key)
            yield from ((key, p) for p in ([value] if isinstance(value, str) else value or ()))
        for key in ("target_modules", "exclude_modules"):
            value = getattr(self, key)
            if isinstance(value, str) and value != "all-linear":
                yield key, value

    def rank(self, site: str) -> int:
        """As peft chooses it."""
        for pattern, rank in (self.rank_pattern or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", site):
                return rank
        return self.r


def import_adapter(
    file: BinaryIO,
    wanted: AdapterImport,
    *,
    serving: Serving,
    registry: AdapterRegistry,
    volume: Volume,
    max_bytes: int,
) -> AdapterVersion:
    """An archive with a PEFT folder -> the next version of the adapter `wanted.name`; all of it, or nothing.

    It is made current if `wanted.make_current`, or if the adapter has no other version. Raises InvalidError
    `archive_invalid`, `adapter_unusable`, `adapter_for_other_base` or `seal_invalid`, and TooLargeError.
    """
    check_adapter_name(wanted.name)
    with volume.staged_folder() as staged:
        unpack(file, staged, max_bytes=max_bytes)
        config = _check_lora(staged, serving.engine)
        seal = _seal(staged, config, wanted, serving)
        (staged / SEAL_FILE).write_text(seal.model_dump_json(indent=1), encoding="utf-8")
        version = registry.publish(wanted.name, staged)
    if wanted.make_current or registry.get(wanted.name).versions == [version.version]:
        registry.promote(version.name, version.version)
    return version


def _check_lora(folder: Path, engine: Engine) -> _LoraConfig:
    """From the outside in: the config, the names and shapes in the header, and only then the weights."""
    try:
        config = _LoraConfig.model_validate_json((folder / CONFIG_FILE).read_bytes())
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise unusable([f"{CONFIG_FILE}, {fault}" for fault in faults]) from error
    faults = config.faults(list(engine.adapter_sites))
    if not faults:
        faults = _header_faults(folder / WEIGHTS_FILE, config, engine)
    if faults:
        raise unusable(faults)
    engine.check_adapter(folder)
    return config


def _header_faults(path: Path, config: _LoraConfig, engine: Engine) -> list[str]:
    try:
        with path.open("rb") as weights:
            num_bytes = int.from_bytes(weights.read(8), "little")
        if num_bytes > MAX_HEADER_BYTES:  # before safetensors parses it
            return [
                f"{WEIGHTS_FILE} has a header of {num_bytes} bytes, or is not safetensors; up to "
                f"{MAX_HEADER_BYTES} are accepted"
            ]
        with safe_open(path, framework="np") as file:
            slices = {key: file.get_slice(key) for key in file.keys()}  # noqa: SIM118  no dict
            header = {key: (s.get_dtype(), tuple(s.get_shape())) for key, s in slices.items()}
    except (SafetensorError, OSError) as error:
        return [f"{WEIGHTS_FILE} is not safetensors: {error}"]
    faults = []
    sites = engine.adapter_sites
    for key, (dtype, shape) in header.items():
        parts = _KEY.fullmatch(key)
        if parts is None or parts["site"] not in sites:
            faults.append(f"{key[:200]}: not a LoRA weight of a linear layer of this base model")
            continue
        num_in, num_out = sites[parts["site"]]
        rank = config.rank(parts["site"])
        expected = (rank, num_in) if parts["side"] == "A" else (num_out, rank)
        if shape != expected:
            faults.append(f"{key}: shape {shape}, expected {expected}")
        elif dtype not in _DTYPES:
            faults.append(f"{key}: dtype {dtype}, expected one of {', '.join(_DTYPES)}")
    return faults


def _seal(folder: Path, config: _LoraConfig, wanted: AdapterImport, serving: Serving) -> Seal:
    tokenizer = serving.model.tokenizer
    seal = None
    if (folder / SEAL_FILE).exists():
        seal = _read_seal(folder, serving, keeps_prompt=wanted.prompt is None)
    given: dict[str, Any] = wanted.model_dump(
        include={"source", "target", "description"}, exclude_none=True
    )
    if seal is None or wanted.prompt is not None:
        prompt = seal_prompt(wanted.prompt or Prompt(), tokenizer)
        stops = PromptRenderer(tokenizer, prompt).stop_token_ids(serving.model.eos_token_ids)
        given |= {"prompt": prompt, "stop_token_ids": stops}
    if seal is not None:
        return seal.model_copy(update=given)
    name = config.base_model_name_or_path or Path(serving.base_name).name
    unknown = {"source": "und", "target": "und", "dataset_id": "", "dataset_sha256": ""}
    return Seal.model_validate(
        unknown
        | {
            "base_fingerprint": serving.translator.base_fingerprint,
            "base_model": name[:200],
            "dataset_rows": 0,
            "job_id": "",
            "created_at": datetime.now(UTC),
            "config": {},
            "content_sha256": content_sha256(folder),
        }
        | given
    )


def _read_seal(folder: Path, serving: Serving, *, keeps_prompt: bool) -> Seal:
    """The seal that came along. Raises InvalidError unless it is of this base model and of these weights."""
    try:
        seal = Seal.model_validate_json((folder / SEAL_FILE).read_bytes())
        for code in (seal.source, seal.target):
            TypeAdapter(LanguageCode).validate_python(code)
    except ValidationError as error:
        raise _seal_invalid(str(error)[:500]) from error
    serving.translator.check_base(seal, "the archive")
    if seal.content_sha256 != content_sha256(folder):
        raise _seal_invalid("its hash is not that of the files beside it; they were changed since")
    tokenizer = serving.model.tokenizer
    # A template is a program. Those that this server runs anyway are the only ones it takes from strangers.
    known = (tokenizer.chat_template, PLAIN_CHAT_TEMPLATE)
    if keeps_prompt and seal.prompt.chat_template not in known:
        raise _seal_invalid(
            "its chat template is not this base model's; send `prompt`, and that is sealed with this base "
            "model's template"
        )
    if not all(0 <= i < serving.model.vocab_size for i in seal.stop_token_ids):
        raise _seal_invalid("its stop tokens are not in the vocabulary")
    if not 0 <= seal.decoding.temperature <= 10:
        raise _seal_invalid(f"its temperature is {seal.decoding.temperature}; 0 to 10 is accepted")
    return seal


def _seal_invalid(reason: str) -> InvalidError:
    return InvalidError(f"the archive's {SEAL_FILE} is not accepted: {reason}", code="seal_invalid")
