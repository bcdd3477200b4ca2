"""Errors that a user can correct: one line with cause and remedy."""


def check(condition: bool, message: str) -> None:
    """Raise ValueError(message) unless the condition holds."""
    if not condition:
        raise ValueError(message)
