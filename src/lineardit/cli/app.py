"""`lineardit`: finds the verb, imports nothing else, and turns errors into one line and an exit code."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from lineardit.errors import InputError, LineardiTError

VERBS = {
    "generate": "draw pictures from sentences",
    "bulk": "draw a file of sentences, on many processes, and go on after a stop",
    "train": "run a recipe",
    "prepare": "check and encode pictures to learn from",
    "evaluate": "measure a model",
    "bench": "measure speed and memory on this machine",
    "convert": "change between file formats",
    "serve": "answer requests over HTTP",
    "info": "what would be used here, and what a picture or a model says of itself",
}
"""Each is the function of this name in the module of this name beside this one, with its line of help."""

INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code.

    `--debug`, anywhere, shows where an error comes from.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = given[: given.index("--")] if "--" in given else given
    debug = "--debug" in options
    if debug:
        given.remove("--debug")
    try:
        return _dispatch(given)
    except LineardiTError as error:
        if debug:
            raise
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except (MemoryError, RuntimeError) as error:
        if debug or not _is_full_memory(error):
            raise
        sys.stderr.write(
            "error: the memory is full. Use smaller pictures, fewer at once, or --memory where it is taken.\n"
        )
        return LineardiTError.exit_code
    except KeyboardInterrupt:
        if debug:
            raise
        sys.stderr.write("stopped\n")
        return INTERRUPTED


def _is_full_memory(error: Exception) -> bool:
    """Of a GPU, or of the machine, as torch and Python say it."""
    kinds = {kind.__name__ for kind in type(error).mro()}
    return bool(kinds & {"MemoryError", "OutOfMemoryError"}) or "can't allocate memory" in str(error)


def existing_verbs() -> dict[str, str]:
    """Those of the verbs that this version has."""
    return {verb: line for verb, line in VERBS.items() if Path(__file__).with_name(f"{verb}.py").exists()}


def _dispatch(given: list[str]) -> int:
    if not given or given[0] in {"-h", "--help", "help"}:
        sys.stdout.write(_help())
        return 0 if given else 2
    if given[0] in {"-V", "--version"}:
        from importlib.metadata import version

        sys.stdout.write(f"lineardit {version('lineardit')}\n")
        return 0
    verb, verbs = given[0], existing_verbs()
    if verb not in verbs:
        from difflib import get_close_matches

        close = get_close_matches(verb, verbs, n=1)
        suggestion = f"; did you mean {close[0]}?" if close else "."
        raise InputError(f"unknown verb {verb}{suggestion} Known are {', '.join(verbs)}.")
    return _call(verb, given[1:])


def _call(verb: str, arguments: list[str]) -> int:
    """Let typer read the arguments of the verb's function and call it."""
    import importlib

    import typer
    from typer.exceptions import TyperException

    function: Callable[..., None] = getattr(importlib.import_module(f"lineardit.cli.{verb}"), verb)
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(name=verb)(function)
    try:
        with _warnings_on_stderr():
            code = app(arguments, prog_name=f"lineardit {verb}", standalone_mode=False)
    except TyperException as wrong:
        raise InputError(f"{wrong.format_message()} See lineardit {verb} --help.") from None
    return code if isinstance(code, int) else 0


@contextmanager
def _warnings_on_stderr() -> Iterator[None]:
    """Show what the package logs as lines such as `warning: ...`, for as long as a verb runs."""
    import logging

    class Line(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            return f"{record.levelname.lower()}: {record.getMessage()}"

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Line())
    package = logging.getLogger("lineardit")
    package.addHandler(handler)
    try:
        yield
    finally:
        package.removeHandler(handler)


def _help() -> str:
    lines = [f"  {verb:10} {line}" for verb, line in existing_verbs().items()]
    return "\n".join(
        [
            "usage: lineardit VERB ...",
            "",
            "Train, fine-tune, run and serve linear-attention diffusion transformers.",
            "",
            *lines,
            "",
            "lineardit VERB --help explains a verb. --debug shows where an error comes from.",
            "",
        ]
    )
