"""`check` raises a ValueError if its condition is false, and nothing otherwise."""

import pytest

from ddpm_jax.errors import check


def test_check_raises_only_if_the_condition_is_false():
    check(True, "Never raised.")
    with pytest.raises(ValueError, match=r"^steps must be at least 1\.$"):
        check(False, "steps must be at least 1.")
