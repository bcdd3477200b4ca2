"""Which convolutions of a compiled program XLA's compiler for CPUs leaves to its naive loop, 12 to 16 times slower."""

import re

FAST_LABELS = "b01f_01io->b01f"
"""The only layout that its fast paths take, and no reversal (XLA's ir_emission_utils.cc)."""


def convolutions(hlo: str) -> list[str]:
    """The convolutions in the text of a compiled program, a line each."""
    return re.findall(r"^.* convolution\(.*$", hlo, re.MULTILINE)


def naive_convolutions(hlo: str) -> list[str]:
    """Those of them that fall to the naive loop."""
    fast = re.compile(rf"dim_labels={re.escape(FAST_LABELS)}(?![\w>-])")
    return [line for line in convolutions(hlo) if not fast.search(line) or "rhs_reversal" in line]
