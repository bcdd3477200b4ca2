"""Read the settings of a LoRA file: its kind, ranks and alphas, as peft names them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ddpm_jax.errors import check
from ddpm_jax.pretrained.untrusted_files import brief, parse_json, read_json
from ddpm_jax.pretrained.weight_files import read_metadata
from ddpm_jax.pretrained.weight_names import CLIP_PREFIX

METADATA = "lora_adapter_metadata"
"""The settings in the metadata of a file, as JSON, with the part of the pipeline before each."""
PEFT_CONFIG = "adapter_config.json"
"""The settings beside a file that peft itself saved."""
CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""The ways of peft to start a LoRA that also change the weights under it."""


class Settings(NamedTuple):
    """The settings of the LoRA of one part, as peft names them."""

    source: str
    """The name of their place, for messages."""
    values: dict[str, Any]
    ranks: dict[str, Any]
    """{module: rank} of the modules that a pattern names."""
    alphas: dict[str, Any]
    """{module: alpha} of the modules that a pattern names."""


def read_settings(
    path: Path, is_peft: bool, modules: Mapping[str, Sequence[str]]
) -> dict[str, Settings]:
    """The settings in a file, or for `is_peft` beside it, of the modules of each part.

    Without metadata they are empty. Raise FileNotFoundError if those of peft are not there, because
    its files do not hold alpha, and ValueError for another kind of LoRA.
    """
    text = read_metadata(path).get(METADATA)
    if text is not None:
        source = METADATA
        values = parse_json(text, f"The {METADATA} of {path}")
    else:
        source = PEFT_CONFIG
        values = read_json(path.with_name(PEFT_CONFIG)) if is_peft else {}
    return {
        part: _part_settings(path, source, _of_part(values, part), names)
        for part, names in modules.items()
    }


def _of_part(values: Mapping[str, Any], part: str) -> dict[str, Any]:
    """The settings with the name of a part as prefix. If there are none, those without prefix."""
    prefix = f"{part}."
    own = {key.removeprefix(prefix): x for key, x in values.items() if key.startswith(prefix)}
    return own or {key: x for key, x in values.items() if "." not in key}


def _part_settings(
    path: Path, source: str, values: dict[str, Any], modules: Sequence[str]
) -> Settings:
    says = f"says its {source}: use a plain LoRA."
    kind = values.get("peft_type", "LORA")
    start = values.get("init_lora_weights")
    check(kind == "LORA", f"{path} is a {brief(kind)}, {says}")
    check(not values.get("use_dora"), f"{path} is a DoRA, {says}")
    check(not values.get("lora_bias"), f"{path} is a LoRA with biases, {says}")
    check(
        not str(start).startswith(CHANGE_THE_BASE),
        f"{path} is for a network whose weights {brief(start)} changed, {says}",
    )
    ranks, alphas = (
        _matches(f"The {name} in the {source} of {path}", values.get(name), modules)
        for name in ("rank_pattern", "alpha_pattern")
    )
    return Settings(source, values, ranks, alphas)


def _matches(source: str, patterns: Any, modules: Sequence[str]) -> dict[str, Any]:
    """{module: value} of {pattern: value}. As in peft, the first match of a name's end counts.

    Patterns are regular expressions from an untrusted file, so RE2 matches them, in linear time.
    """
    if not patterns or not modules:
        return {}
    import pyarrow as pa
    import pyarrow.compute as pc

    check(isinstance(patterns, dict), f"{source} must be an object, not {brief(patterns)}.")
    # transformers 5.6 dropped the prefix, so a pattern may be for either name.
    names = pa.array([*modules, *(module.removeprefix(CLIP_PREFIX) for module in modules)])
    found: dict[str, Any] = {}
    for pattern, value in reversed(patterns.items()):
        try:
            matches = pc.match_substring_regex(names, rf"^(.*\.)?({pattern})$").to_numpy(False)
        except pa.ArrowInvalid as error:
            raise ValueError(
                f"{source} has {brief(pattern)!r}, which cannot be read: use the name of a layer."
            ) from error
        is_named = np.any(matches.reshape(2, -1), 0)
        found |= {modules[i]: value for i in np.flatnonzero(is_named).tolist()}
    return found
