"""Find the convolutions of a compiled program that XLA's CPU compiler runs in its naive loop."""

import re

FAST_LABELS = "b01f_01io->b01f"
"""The only layout on the fast paths, without reversal (XLA's ir_emission_utils.cc)."""


def convolutions(hlo: str) -> list[str]:
    """The lines with a convolution in the text of a compiled program."""
    return re.findall(r"^.* convolution\(.*$", hlo, re.MULTILINE)


def naive_convolutions(hlo: str) -> list[str]:
    """The lines with a convolution that runs in the naive loop."""
    fast = re.compile(rf"dim_labels={re.escape(FAST_LABELS)}(?![\w>-])")
    return [line for line in convolutions(hlo) if not fast.search(line) or "rhs_reversal" in line]
