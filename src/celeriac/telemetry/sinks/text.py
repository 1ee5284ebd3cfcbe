"""Texts of users, such as names of queues, for the libraries of the sinks."""

from __future__ import annotations


def encodable(text: str) -> str:
    """Return a text that can be encoded: each lone surrogate is shown as its number."""
    return text.encode("utf-8", "backslashreplace").decode()
