"""Every error and warning that relume raises, in one tree, so that a caller can catch `RelumeError` and be done."""

from __future__ import annotations


class RelumeError(Exception):
    """Base of all errors of relume."""


class NoSitesError(RelumeError):
    """The forward pass applied no activation that relume knows."""


class EmptyCensusError(RelumeError):
    """There is nothing to count: no batch was given, or no window has been recorded."""


class CensusMismatchError(RelumeError):
    """A census (or a site name) does not belong to the model it is used with."""


class BatchError(RelumeError):
    """A batch can't be passed to the model."""


class AxisError(RelumeError):
    """An axis given by the user does not exist at a site."""


class RunFileError(RelumeError):
    """A run file can't be written, opened or understood."""


class UnknownActivationError(RelumeError):
    """No activation has the name that was asked for."""


class UnsupportedOperationError(RelumeError):
    """A certificate was asked of a model with an operation for which no sound bound is known."""


class MissingExtraError(RelumeError, ImportError):
    """An optional dependency is needed; the message names the extra to install."""


class RelumeWarning(UserWarning):
    """Something that relume could not see or keep; training goes on."""


def missing_extra(package: str, extra: str, what: str) -> MissingExtraError:
    """The one way in which relume says that an optional package is absent."""
    return MissingExtraError(f"{what} needs {package}, which is not installed: pip install 'relume[{extra}]'")
