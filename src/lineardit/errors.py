"""Every error the package raises on purpose, with the exit code and HTTP status it becomes at the edge.

    LineardiTError                  1, 500   anything below
    ├── InputError (ValueError)     2, 400   a value that breaks a rule
    │   ├── ConfigError                      an unknown key or a field that does not fit
    │   ├── ShapeError                       a tensor or picture of the wrong size
    │   ├── PromptError                      a prompt that says nothing
    │   └── MemoryLimitError        2, 507   more memory than a bound that was given
    ├── CheckpointError             2, 422   a file or folder that is not the model it should be
    ├── MissingExtraError           2, 501   an optional dependency that is not installed
    ├── MissingFontError            2, 501   the emoji font, needed to draw scenes
    ├── OutputError                 2, 507   a place that cannot be written
    ├── NotFiniteError              3, 500   a number that is NaN or infinite, with the layer it came from
    └── ProcessLostError            4, 500   another process of a job that died or does not answer

A message says what was given, which rule it broke and what would pass. Only the command line and the
server translate the tree; library code raises and never exits.
"""

from typing import ClassVar


class LineardiTError(Exception):
    """Parent of every error below."""

    exit_code: ClassVar[int] = 1
    http_status: ClassVar[int] = 500


class InputError(LineardiTError, ValueError):
    """A value given by the caller breaks a rule."""

    exit_code = 2
    http_status = 400


class ConfigError(InputError):
    """A configuration has an unknown key or a field that does not fit the others."""


class ShapeError(InputError):
    """A tensor or picture has a size the operation does not take."""


class PromptError(InputError):
    """A prompt says nothing."""


class MemoryLimitError(InputError):
    """What is asked for takes more memory than the bound that was given; the message says the least."""

    http_status = 507


class CheckpointError(LineardiTError):
    """A file or folder is not the checkpoint that was asked for, or is damaged."""

    exit_code = 2
    http_status = 422


class MissingExtraError(LineardiTError, ImportError):
    """An optional dependency is not installed; the message carries the line that installs it."""

    exit_code = 2
    http_status = 501

    def __init__(self, package: str, extra: str | None, purpose: str) -> None:
        line = package if extra is None else f"'lineardit[{extra}]'"
        super().__init__(f"{purpose} needs the package {package}: pip install {line}")


class MissingFontError(LineardiTError):
    """The emoji font is not on this machine."""

    exit_code = 2
    http_status = 501


class OutputError(LineardiTError, OSError):
    """A file or folder cannot be written, or would be overwritten."""

    exit_code = 2
    http_status = 507


class NotFiniteError(LineardiTError, ArithmeticError):
    """A value is NaN or infinite."""

    exit_code = 3


class ProcessLostError(LineardiTError):
    """Another process of the same job has died, hangs or cannot be reached."""

    exit_code = 4


def check_multiple(name: str, side: int, unit: int, rule: str) -> None:
    """Let a side through that is a positive multiple of `unit`; `rule` says what the unit is.

    Raises:
        ShapeError: it is not; names the nearest sides that are.
    """
    if side < unit or side % unit:
        below = side - side % unit
        choices = f"{below} or {below + unit}" if below > 0 else f"{unit}"
        raise ShapeError(f"{name}={side} is not a multiple of {rule}. Use {choices}.")
