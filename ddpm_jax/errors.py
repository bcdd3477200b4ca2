"""A user's mistake: one line that names the cause and the remedy."""


def check(condition: bool, message: str) -> None:
    """Raises ValueError(message) unless the condition holds."""
    if not condition:
        raise ValueError(message)
