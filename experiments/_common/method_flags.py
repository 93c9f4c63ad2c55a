"""Flags for the settings of all methods."""

import dataclasses
from typing import Any

from deid_jax.attacks import METHODS
from experiments._common.cli import Flag

# What --help says of the methods' settings.
MEANINGS = {
    "step_size": "α, how far one step goes.",
    "shrink": "β₀, the share of the change that the first penalty step takes back.",
    "max_step": "The longest step, in L2.",
    "penalty": "What is held small beside the loss.",
    "penalty_weight": "λ, the weight of the 'realism' term; α·λ >= 2 diverges.",
    "num_steps": "Number of gradient steps.",
    "epsilon": "ε, the largest change of a pixel, of a range of 1; in pgd_l2 of a picture.",
    "momentum": "μ, the share of the direction so far that a step keeps.",
    "reach": "How many ε all steps together would go along one line.",
    "init_epsilon": "ε₀, the size in L2 of the first change.",
    "gamma": "γ, the share by which the size allowed grows or shrinks, below 1.",
    "initial_const": "c of the first search: what success weighs against the change.",
    "confidence": "κ, how far beyond the boundary to go, in logits.",
    "binary_search_steps": "Number of searches for c, which share num_steps.",
    "blur_sigma": "Standard deviation of the blur, a fraction of the picture's height.",
    "num_blocks": "Number of blocks across and down the picture.",
    "mask_size": "Height and width of the mask, a fraction of the picture's.",
    "noise_stddev": "Standard deviation of the noise, for pixels of a range of 1.",
}


def method_flags() -> dict[str, Flag]:
    """One flag per setting of any method; where it is not given, the method's default holds."""
    found: dict[str, Flag] = {}
    for name, method in METHODS.items():
        for field in dataclasses.fields(method.config):
            if field.name == "quantize":  # A flag that all methods share.
                continue
            default = f"{name} {number_or_name(field.default)}"
            if field.name in found:
                text = f"{found[field.name].help.removesuffix('.')}, {default}."
            else:
                text = f"{MEANINGS.get(field.name, '')} Default: {default}.".strip()
            choices = field.metadata.get("choices")
            found[field.name] = Flag(type(field.default), None, text, choices)
    return found


def number_or_name(value: Any) -> str:
    """A setting's value as people write it: 0.1, 50, l2, True."""
    return f"{value:g}" if type(value) in (int, float) else str(value)
