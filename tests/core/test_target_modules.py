"""Layer names of one architecture on a base of another."""

import pytest

from core.errors import InvalidError
from core.target_modules import match_target_modules

PHI3 = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
LLAMA = [
    f"model.layers.0.{name}"
    for name in ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
]


def test_names_that_are_there() -> None:
    assert match_target_modules(["o_proj", "qkv_proj"], PHI3) == (["o_proj", "qkv_proj"], [])
    assert match_target_modules(["layers.0.q_proj"], LLAMA) == (["layers.0.q_proj"], [])


def test_parts_become_the_fused_layer() -> None:
    asked = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    found, warnings = match_target_modules(asked, PHI3)
    assert found == ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
    assert "qkv_proj for q_proj" in warnings[0]
    assert len(warnings) == 5


def test_the_fused_layer_becomes_its_parts() -> None:
    found, warnings = match_target_modules(["qkv_proj", "o_proj"], LLAMA)
    assert found == ["q_proj", "k_proj", "v_proj", "o_proj"]
    assert warnings == [
        "lora.target_modules: this base model has q_proj and k_proj and v_proj for qkv_proj"
    ]


@pytest.mark.parametrize("unknown", ["lm_head", "proj", "query"])
def test_unknown_names_are_refused_with_what_there_is(unknown: str) -> None:
    with pytest.raises(InvalidError, match=f"'{unknown}'.*down_proj, gate_up_proj") as caught:
        match_target_modules(["o_proj", unknown], PHI3)
    assert caught.value.code == "target_modules_invalid"
