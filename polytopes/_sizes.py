"""What the declarations share."""

__all__ = ["at_least_one"]


def at_least_one(**sizes: int) -> None:
    """Refuse sizes below 1, by name."""
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, but got {value}")
