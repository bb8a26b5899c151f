"""The forward pass over a decoder's own weights, for the layers that most causal LMs have: RMSNorm, rotary attention, SwiGLU.

It knows layers by what they are made of, never by a model's name, and is used only where its answer equals that of the
model's own code (see base.py). It spares what that code costs around its products: on a CPU Python and small
operations, on a GPU launches, since it has a fixed shape that CUDA graphs can replay.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from app.lora.bank import BankedLinear
from app.model.base import free_bytes
from app.model.kv_cache import KVCache
from app.model.operations import Attention, Batch, Operations
from app.model.projection import Projection

_ATTENTION_INPUTS = (["qkv_proj"], ["q_proj", "k_proj", "v_proj"])
_MLP_INPUTS = (["gate_up_proj"], ["gate_proj", "up_proj"])


class UnknownLayersError(Exception):
    """The model is made of something else; its own code must run."""


@dataclass(frozen=True, slots=True)
class _Layer:
    norm: nn.Module
    qkv: Projection
    out: Projection
    mlp_norm: nn.Module
    gate_up: Projection
    down: Projection
    attention: Attention


class Decoder:
    """A model's layers, ready to run. Its linear layers are sites of the bank already."""

    def __init__(
        self,
        model: Any,
        attention: dict[int, Attention],
        projection: type[Projection] = Projection,
    ) -> None:
        """`attention`: what each layer asked for when the model's own code ran. Raises UnknownLayersError."""
        config = model.config.get_text_config()
        if getattr(config, "hidden_act", None) != "silu":
            raise UnknownLayersError(f"activation {getattr(config, 'hidden_act', None)!r}")
        try:
            body = model.get_decoder()
            self._embedding: nn.Module = model.get_input_embeddings()
            self._head = _fastest(model.get_output_embeddings())
            self._norm = _checked_norm(body.norm)
            self._rotary = body.rotary_emb
            self._layers = [
                _read_layer(layer, attention[i], projection) for i, layer in enumerate(body.layers)
            ]
        except (AttributeError, KeyError) as error:
            raise UnknownLayersError(str(error)) from error
        self._angles = self._read_angles(config)

    def forward(self, batch: Batch, cache: KVCache, ops: Operations) -> Tensor:
        """-> logits [batch.last_rows, vocabulary]"""
        x: Tensor = self._embedding(batch.token_ids)
        rotary = self._rotary_of(batch.positions, x.dtype)
        for number, layer in enumerate(self._layers):
            z = ops.project(layer.qkv, _normalised(ops, x, layer.norm), batch)
            store = cache.layer(number)
            query = ops.rotate_and_store(z, layer.qkv, batch, rotary, store)
            attended = ops.attend(query, store, batch, layer.attention)
            z = ops.project(layer.out, attended.flatten(1), batch)
            x = ops.add(x, z, layer.out, batch)
            z = ops.project(layer.gate_up, _normalised(ops, x, layer.mlp_norm), batch)
            z = ops.project(layer.down, ops.gate(z, layer.gate_up, batch, x.dtype), batch)
            x = ops.add(x, z, layer.down, batch)
        logits: Tensor = self._head(_normalised(ops, x[batch.last_rows], self._norm))
        return logits

    def _rotary_of(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """cos and sin, [tokens, head_dim / 2]"""
        frequencies, scaling = self._angles
        angles = positions[:, None].float() * frequencies
        return (angles.cos() * scaling).to(dtype), (angles.sin() * scaling).to(dtype)

    def _read_angles(self, config: Any) -> tuple[Tensor, float]:
        """Frequencies [head_dim / 2] and the factor of cos and sin, below the original context length."""
        head_dim = (
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        )
        frequencies = self._rotary.inv_freq.float()
        if 2 * frequencies.numel() != head_dim:
            raise UnknownLayersError(
                f"{2 * frequencies.numel()} of {head_dim} features are rotated"
            )
        return frequencies, float(self._rotary.attention_scaling)


def _fastest(head: nn.Module) -> Callable[[Tensor], Tensor]:
    """The projection onto the vocabulary; in float32 on a CPU with weights laid out for oneDNN.

    MKL's product of 64 rows with a [12288, 384] matrix takes 13.7 ms on one core of an AMD EPYC, this one 6.7. It takes
    a copy: 1 GB at Llama-3.2-1B's 128,256 tokens, so only where that is small beside what is free.
    """
    weight, bias = head.weight, head.bias
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        return head
    if weight.nbytes > 0.25 * free_bytes(weight.device):
        return head
    try:
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        product = torch.ops.mkldnn._linear_pointwise
    except (AttributeError, RuntimeError):  # built without oneDNN
        return head
    return lambda x: product(x, packed, bias, "none", [], "")


def _normalised(operations: Operations, x: Tensor, norm: Any) -> Tensor:
    return operations.normalise(x, norm.weight, norm.variance_epsilon)


def _read_layer(layer: Any, asked: Attention, projection: type[Projection]) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    _check_children(layer, ["self_attn", "mlp", "input_layernorm", "post_attention_layernorm"])
    return _Layer(
        norm=_checked_norm(layer.input_layernorm),
        qkv=projection(_read_inputs(attention, _ATTENTION_INPUTS, ["o_proj"])),
        out=projection([attention.o_proj]),
        mlp_norm=_checked_norm(layer.post_attention_layernorm),
        gate_up=projection(_read_inputs(mlp, _MLP_INPUTS, ["down_proj"])),
        down=projection([mlp.down_proj]),
        attention=asked,
    )


def _read_inputs(
    block: nn.Module, choices: tuple[list[str], ...], others: list[str]
) -> list[BankedLinear]:
    for names in choices:
        if all(isinstance(getattr(block, name, None), BankedLinear) for name in names):
            _check_children(block, names + others)
            return [getattr(block, name) for name in names]
    raise UnknownLayersError(f"linear layers {[name for name, _ in block.named_children()]}")


def _check_children(module: nn.Module, known: list[str]) -> None:
    """What has no weights, such as dropout and activations, does not count."""
    strange = [
        name
        for name, child in module.named_children()
        if name not in known and any(True for _ in child.parameters())
    ]
    if strange:
        raise UnknownLayersError(f"{type(module).__name__} has {', '.join(strange)}")


def _checked_norm(norm: Any) -> nn.Module:
    if not hasattr(norm, "variance_epsilon") or getattr(norm, "bias", None) is not None:
        raise UnknownLayersError(f"{type(norm).__name__} instead of RMSNorm")
    return cast("nn.Module", norm)
