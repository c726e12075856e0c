"""What is raised when something that must always hold did not."""

from __future__ import annotations


class ViolationError(AssertionError):
    """Something that must always hold did not."""
