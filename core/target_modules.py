"""The linear layers that a job wants a LoRA on, in the names of the base model at hand."""

from collections.abc import Iterable, Sequence

from core.errors import InvalidError

# Some architectures keep in one matrix what others keep in several.
_FUSED = {
    "qkv_proj": ("q_proj", "k_proj", "v_proj"),
    "gate_up_proj": ("gate_proj", "up_proj"),
}


def match_target_modules(
    asked: Sequence[str], available: Iterable[str]
) -> tuple[list[str], list[str]]:
    """-> names that the base has, and a warning for each that had to be translated.

    `available`: names, or the last parts of names, of the base's linear layers. A name matches as in PEFT: in full or
    by its end. Raises InvalidError `target_modules_invalid`.
    """
    names = list(dict.fromkeys(available))
    found: list[str] = []
    warnings: list[str] = []
    for target in asked:
        if _matches(target, names):
            found.append(target)
            continue
        replacement = _equivalent(target, names)
        if not replacement:
            endings = sorted({name.rsplit(".", 1)[-1] for name in names})
            raise InvalidError(
                f"target_modules has {target!r}, which is no linear layer of this base model; "
                f"there are: {', '.join(endings)}, or the word 'all-linear'",
                code="target_modules_invalid",
            )
        warnings.append(
            f"lora.target_modules: this base model has {' and '.join(replacement)} for {target}"
        )
        found += replacement
    return list(dict.fromkeys(found)), warnings


def _matches(target: str, names: list[str]) -> bool:
    return any(name == target or name.endswith(f".{target}") for name in names)


def _equivalent(target: str, names: list[str]) -> list[str]:
    if target in _FUSED and all(_matches(part, names) for part in _FUSED[target]):
        return list(_FUSED[target])
    for fused, parts in _FUSED.items():
        if target in parts and _matches(fused, names):
            return [fused]
    return []
