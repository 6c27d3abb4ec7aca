"""What can be wrong with a study: how it is described, or the file that keeps its results."""

from __future__ import annotations

from relume.errors import RelumeError


class ConfigError(RelumeError, ValueError):
    """A study is not described as it must be; the message names the file, the line and what is accepted."""


class StoreError(RelumeError):
    """The store of a study can't be read or written; the message says why and what to do."""
