"""What may be loaded: plain LoRA that fits; everything else is refused with all its faults."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from app.lora.bank import LoraBank
from app.lora.reader import read_lora
from core.adapter_version import CONFIG_FILE, WEIGHTS_FILE
from core.errors import InvalidError
from tests.app.harness import load_nf4, make_adapter
from tests.app.tiny import Tiny


@pytest.fixture(scope="module")
def bank(tiny: Tiny) -> LoraBank:
    return load_nf4(tiny.folder).create_bank(width=16, num_slots=4)


@pytest.fixture
def folder(tiny: Tiny, tmp_path: Path) -> Iterator[Path]:
    """A sound adapter, for each test to spoil."""
    return make_adapter(tmp_path, tiny.reference, "a", r=2, target_modules=["o_proj"]).path


def change_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(config | changes))


def refusal(folder: Path, bank: LoraBank) -> str:
    with pytest.raises(InvalidError) as raised:
        read_lora(folder, bank)
    assert raised.value.code == "adapter_unusable"
    return raised.value.message


def test_scaling_is_folded_into_b(folder: Path, bank: LoraBank) -> None:
    raw = load_file(folder / WEIGHTS_FILE)
    key = "base_model.model.model.layers.0.self_attn.o_proj.lora_{}.weight"
    read = read_lora(folder, bank)
    assert read.rank == 2
    a, b = read.sites["model.layers.0.self_attn.o_proj"]
    assert torch.equal(a, raw[key.format("A")])
    torch.testing.assert_close(b, raw[key.format("B")].T * (8 / 2))
    change_config(folder, use_rslora=True)
    _, b = read_lora(folder, bank).sites["model.layers.0.self_attn.o_proj"]
    torch.testing.assert_close(b, raw[key.format("B")].T * (8 / 2**0.5))


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"peft_type": "IA3"}, "'IA3'"),
        ({"use_dora": True}, "DoRA"),
        ({"alpha_pattern": {"(?i)o_proj": 4}}, "not a regular expression"),
        ({"lora_bias": True}, "biases"),
        ({"bias": "all"}, "'all'"),
        ({"modules_to_save": ["lm_head"]}, "fully trained"),
        ({"trainable_token_indices": [1]}, "trained tokens"),
        ({"layer_replication": [[0, 1]]}, "replicated"),
        ({"init_lora_weights": "pissa"}, "'pissa'"),
        ({"init_lora_weights": "loftq"}, "'loftq'"),
        ({"use_bdlora": True}, "use_bdlora"),
        ({"kasa_config": {"x": 1}}, "kasa_config"),
        ({"lora_alpha": None}, "lora_alpha"),
        ({"lora_alpha": "many"}, "lora_alpha"),
        ({"alpha_pattern": {"(": 3}}, "regular expression"),
    ],
)
def test_more_than_plain_lora_is_refused(
    folder: Path, bank: LoraBank, changes: dict[str, Any], word: str
) -> None:
    change_config(folder, **changes)
    assert word in refusal(folder, bank)


def test_one_error_lists_everything_that_does_not_fit(folder: Path, bank: LoraBank) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    names = sorted(tensors)
    tensors[names[0]] = torch.zeros(2, 7)
    tensors["base_model.model.lm_head.lora_A.weight"] = torch.zeros(2, 64)
    tensors["stray"] = torch.zeros(1)
    tensors[names[-1]][0, 0] = float("inf")
    save_file(tensors, folder / WEIGHTS_FILE)
    message = refusal(folder, bank)
    for part in ("(2, 7)", "lm_head", "stray", "not finite"):
        assert part in message


def test_a_rank_over_the_banks_width_is_refused(tiny: Tiny, tmp_path: Path, bank: LoraBank) -> None:
    wide = make_adapter(tmp_path, tiny.reference, "wide", r=17, target_modules=["o_proj"])
    assert "rank 17 is over the bank's 16 columns" in refusal(wide.path, bank)


def test_finite_in_float32_is_not_enough_for_a_float16_bank(
    folder: Path, bank: LoraBank, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = load_file(folder / WEIGHTS_FILE)
    for key in tensors:
        tensors[key].fill_(6e4)
    save_file(tensors, folder / WEIGHTS_FILE)
    read_lora(folder, bank)
    monkeypatch.setattr(bank, "dtype", torch.float16)
    assert "not finite in torch.float16" in refusal(folder, bank)


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
@pytest.mark.parametrize("content", [None, b"", b"[]", b"\xff\x00garbage"])
def test_unreadable_files_are_refused(
    folder: Path, bank: LoraBank, name: str, content: bytes | None
) -> None:
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    assert "cannot be read" in refusal(folder, bank)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        (CONFIG_FILE, {"alpha_pattern": {f"layer{i}": "many" for i in range(1000)}}),
        (CONFIG_FILE, {"peft_type": "x" * 10_000, "lora_alpha": 1}),
        (WEIGHTS_FILE, {f"tensor {i}": {"dtype": "x", "shape": [-1]} for i in range(1000)}),
        (WEIGHTS_FILE, {"x" * 10_000: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}}),
    ],
)
def test_a_fault_is_told_in_few_words(
    folder: Path, bank: LoraBank, name: str, content: dict[str, Any]
) -> None:
    text = json.dumps(content).encode()
    length = len(text).to_bytes(8, "little") if name == WEIGHTS_FILE else b""
    (folder / name).write_bytes(length + text)
    assert len(refusal(folder, bank)) < 1200
