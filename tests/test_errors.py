"""One line for a mistake, nothing otherwise."""

import pytest

from ddpm_jax.errors import check


def test_only_what_does_not_hold_is_an_error():
    check(True, "never seen")
    with pytest.raises(ValueError, match=r"^steps must be at least 1$"):
        check(False, "steps must be at least 1")
