"""TOML with lines: `Source` holds what a config says, and at which line it says it, so that errors can name it."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from relume.errors import missing_extra
from relume.lab.study.errors import ConfigError

_AT = re.compile(r"\s*\(at (?:line (\d+), column (\d+)|end of document)\)")


class Source:
    """A config and where it was written.

    Attributes:
        data: what it says.
        text: as it was written; None for a dict.
    """

    def __init__(self, data: Mapping[str, Any], text: str | None = None, name: str = "the config") -> None:
        self.data, self.text, self.name = data, text, name

    @classmethod
    def of(cls, config: str | Path | Mapping[str, Any]) -> Source:
        """From a dict or a TOML file.

        Raises:
            ConfigError: the file can't be read, or is no TOML.
        """
        if isinstance(config, Mapping):
            return cls(config)
        path = Path(config)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no UTF-8 text"
            raise ConfigError(f"can't read {path}: {reason}") from error
        return cls.written(text, str(path))

    @classmethod
    def written(cls, text: str, name: str = "the config") -> Source:
        """From TOML.

        Raises:
            ConfigError: it is none; the message names the line.
        """
        try:
            return cls(_parsed(text), text, name)
        except ValueError as error:
            found = _AT.search(str(error))
            line = int(found[1]) if found and found[1] else len(text.splitlines())
            column = f", column {found[2]}" if found and found[2] else ""
            said = _AT.sub("", str(error))
            raise ConfigError(f"{name}, line {line}{column}: this is no TOML: {said}") from error

    def error(self, path: tuple[str, ...], said: str, value: Any = None) -> ConfigError:
        """An error about what is said at a path of keys, or about one value in the list there."""
        line = self.line(path, value)
        at = f", line {line}" if line else ""
        return ConfigError(f"{self.name}{at}: {said}")

    def line(self, path: tuple[str, ...], value: Any = None) -> int | None:
        """The line (from 1) at which a path of keys is first given a value, or at which that value of it stands."""
        if self.text is None or not path:
            return None
        lines = self.text.splitlines()
        begun = 0
        # A statement ends where the text up to there is whole, and has begun after the one before.
        for end in range(1, len(lines) + 1):
            try:
                said = _parsed("\n".join(lines[:end]) + "\n")
            except ValueError:
                continue
            if _holds(said, path):
                return begun + 1 + _line_of_value(lines[begun:end], value)
            begun = end
        return None


def _holds(data: Any, path: tuple[str, ...]) -> bool:
    for key in path:
        if not isinstance(data, Mapping) or key not in data:
            return False
        data = data[key]
    return True


def _line_of_value(lines: list[str], value: Any) -> int:
    """In a statement of several lines, the one in which a value stands; 0, its first, where that can't be told."""
    if value is None or isinstance(value, (list, dict)):
        return 0
    written = str(value).lower() if isinstance(value, bool) else str(value)
    pattern = re.compile(rf"(?<![\w.+-]){re.escape(written)}(?![\w.])")
    return next((i for i, line in enumerate(lines) if pattern.search(line)), 0)


def _parsed(text: str) -> dict[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        try:
            import tomli as tomllib
        except ImportError as error:
            raise missing_extra("tomli", "lab", "a study's TOML file, on Python 3.10,") from error
    return tomllib.loads(text)
