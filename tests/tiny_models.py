"""Tiny random causal LMs of real architectures, with a working tokenizer and chat template, made in the test."""

import json
import shutil
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
)

from core.base_model import EMBEDDED, NF4_CONFIG

Architecture = Literal["phi3", "llama"]

# Behaves as Llama 3.2's: begins with bos, writes a date, trims what people wrote, ends a turn with <|eot_id|>.
LLAMA_CHAT_TEMPLATE = (
    "{{- bos_token }}"
    "{%- if date_string is not defined %}"
    "{%- set date_string = strftime_now('%d %b %Y') %}"
    "{%- endif %}"
    "{%- if messages[0]['role'] == 'system' %}"
    "{%- set system = messages[0]['content'] | trim %}{%- set turns = messages[1:] %}"
    "{%- else %}{%- set system = '' %}{%- set turns = messages %}{%- endif %}"
    "{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + date_string + '\\n\\n' }}"
    "{{- system + '<|eot_id|>' }}"
    "{%- for turn in turns %}"
    "{{- '<|start_header_id|>' + turn['role'] + '<|end_header_id|>\\n\\n' }}"
    "{{- turn['content'] | trim + '<|eot_id|>' }}"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}"
    "{%- endif %}"
)
_LLAMA_TOKENS = [
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
]
_SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": True,
    # Wide enough that a greedy answer depends on the question.
    "initializer_range": 0.1,
}


def make_tiny_model(
    folder: Path,
    architecture: Architecture = "phi3",
    seed: int = 0,
    *,
    num_layers: int = 2,
    quantized: bool = False,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Writes a model of `architecture` into `folder`, as a hub snapshot has it; returns `folder`.

    `quantized`: the checkpoint is nf4 already, as the embedded base is; else the loader has to quantise it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    vocab_size, eos_token_ids = _write_tokenizer(folder, architecture)
    torch.manual_seed(seed)
    model = _build(architecture, vocab_size, eos_token_ids, num_layers).to(dtype)
    model.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id, eos_token_id=eos_token_ids
    )
    model.save_pretrained(folder)
    if quantized:
        nf4 = AutoModelForCausalLM.from_pretrained(
            folder,
            quantization_config=BitsAndBytesConfig(**NF4_CONFIG, bnb_4bit_compute_dtype=dtype),
            dtype=dtype,
            device_map={"": "cpu"},
        )
        (folder / "model.safetensors").unlink()
        nf4.save_pretrained(folder)
    return folder


def _build(
    architecture: Architecture, vocab_size: int, eos_token_ids: list[int], num_layers: int
) -> PreTrainedModel:
    shape = _SHAPE | {"vocab_size": vocab_size, "num_hidden_layers": num_layers}
    if architecture == "phi3":
        return Phi3ForCausalLM(
            Phi3Config(
                **shape,
                num_key_value_heads=4,
                original_max_position_embeddings=512,
                bos_token_id=1,
                eos_token_id=3,
                pad_token_id=3,
            )
        )
    return LlamaForCausalLM(
        LlamaConfig(
            **shape,
            num_key_value_heads=2,
            bos_token_id=vocab_size - len(_LLAMA_TOKENS),
            eos_token_id=eos_token_ids,
        )
    )


def _write_tokenizer(folder: Path, architecture: Architecture) -> tuple[int, list[int]]:
    """Returns the vocabulary's size and the ids that end an answer."""
    if architecture == "phi3":
        for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
            shutil.copyfile(EMBEDDED / name, folder / name)
        config = json.loads((EMBEDDED / "config.json").read_text())
        return int(config["vocab_size"]), [3]
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED)
    tokenizer.add_special_tokens({"additional_special_tokens": _LLAMA_TOKENS})
    tokenizer.bos_token = "<|begin_of_text|>"
    tokenizer.eos_token = "<|eot_id|>"
    tokenizer.pad_token = "<|end_of_text|>"
    tokenizer.chat_template = LLAMA_CHAT_TEMPLATE
    tokenizer.save_pretrained(folder)
    ends = tokenizer.convert_tokens_to_ids(["<|end_of_text|>", "<|eot_id|>"])
    return len(tokenizer), ends
