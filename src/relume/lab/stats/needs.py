"""scipy when it is first needed: `import relume.lab.stats` works without it, a call says which extra to install."""

from __future__ import annotations

from types import ModuleType

from relume.errors import missing_extra


def stats() -> ModuleType:
    """`scipy.stats`.

    Raises:
        MissingExtraError: scipy is not installed.
    """
    try:
        import scipy.stats
    except ImportError as error:
        raise missing_extra("scipy", "lab", "relume.lab.stats") from error
    module: ModuleType = scipy.stats
    return module
