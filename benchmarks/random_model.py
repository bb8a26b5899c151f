"""A model of a real shape with random weights: speed and memory do not care what the weights say."""

import shutil
from pathlib import Path

import torch
from transformers import GenerationConfig, Phi3Config, Phi3ForCausalLM

from core.base_model import EMBEDDED


def make_phi3_mini(folder: Path) -> Path:
    """Writes microsoft/Phi-3-mini-4k-instruct's shape, 3.8 B parameters in bfloat16 (7.6 GB), into `folder`.

    The tokenizer is the embedded base's: its vocabulary is a part of the shape's 32,064.
    """
    config = Phi3Config(
        vocab_size=32_064,
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=32,
        num_attention_heads=32,
        num_key_value_heads=32,
        max_position_embeddings=4096,
        original_max_position_embeddings=4096,
        sliding_window=2047,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=3,
        pad_token_id=3,
    )
    with torch.device("meta"):
        model = Phi3ForCausalLM(config)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.to(torch.bfloat16).to_empty(device=device)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.fill_(1.0)
        else:
            parameter.data.uniform_(-0.03, 0.03)
    model.lm_head.weight.data[-1] = 0  # never the likeliest: a stop token that stops nobody
    model.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=3, pad_token_id=3)
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(EMBEDDED / name, folder / name)
    return folder
