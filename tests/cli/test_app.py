"""The command line finds its verb, answers mistakes in one line, and shows no traceback unless asked."""

import importlib
import logging
import sys
import types

import pytest
import torch

from lineardit.cli.app import VERBS, existing_verbs, main
from lineardit.errors import CheckpointError, LineardiTError, NotFiniteError


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module that stands in for `lineardit.cli.info`, so that its function can be anything."""
    module = types.ModuleType("lineardit.cli.info")
    monkeypatch.setitem(sys.modules, "lineardit.cli.info", module)
    return module


def test_help_lists_each_verb_that_exists(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.startswith("  ")] == list(existing_verbs())
    assert "info" in existing_verbs()


def test_each_verb_is_a_function_of_its_name_with_a_docstring() -> None:
    assert existing_verbs().keys() <= VERBS.keys()
    for name in existing_verbs():
        assert getattr(importlib.import_module(f"lineardit.cli.{name}"), name).__doc__


def test_no_verb_at_all_shows_the_help_and_fails(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "usage: lineardit VERB" in capsys.readouterr().out


def test_a_mistyped_verb_is_answered_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inof"]) == 2
    assert capsys.readouterr().err.startswith("error: unknown verb inof; did you mean info? Known are ")


def test_a_mistyped_option_is_answered_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--jsn"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: No such option: --jsn") and error.endswith("See lineardit info --help.\n")
    assert error.count("\n") == 1


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    from importlib.metadata import version

    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lineardit {version('lineardit')}\n"


def test_the_help_of_a_verb_explains_its_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", "--help"]) == 0
    assert "--json" in capsys.readouterr().out


@pytest.mark.parametrize(("error", "code"), [(CheckpointError, 2), (NotFiniteError, 3), (LineardiTError, 1)])
def test_an_error_becomes_one_line_and_its_exit_code(
    verb: types.ModuleType, error: type[LineardiTError], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def info() -> None:
        raise error("the cat is missing")

    verb.info = info  # type: ignore[attr-defined]
    assert main(["info"]) == code
    assert capsys.readouterr() == ("", "error: the cat is missing\n")


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."),
    ],
)
def test_a_memory_that_is_full_is_one_line(
    verb: types.ModuleType, error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    def info() -> None:
        raise error

    verb.info = info  # type: ignore[attr-defined]
    assert main(["info"]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith("error: the memory is full.") and printed.err.count("\n") == 1
    with pytest.raises(type(error)):
        main(["info", "--debug"])


@pytest.mark.parametrize("arguments", [["--debug", "info"], ["info", "--debug"]])
def test_debug_shows_where_an_error_comes_from(verb: types.ModuleType, arguments: list[str]) -> None:
    def info() -> None:
        raise CheckpointError("the cat is missing")

    verb.info = info  # type: ignore[attr-defined]
    with pytest.raises(CheckpointError):
        main(arguments)


def test_after_two_dashes_nothing_is_an_option(verb: types.ModuleType) -> None:
    seen = []

    def info(word: str) -> None:
        seen.append(word)

    verb.info = info  # type: ignore[attr-defined]
    assert main(["info", "--", "--debug"]) == 0
    assert seen == ["--debug"]


def test_ctrl_c_ends_with_130(verb: types.ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    def info() -> None:
        raise KeyboardInterrupt

    verb.info = info  # type: ignore[attr-defined]
    assert main(["info"]) == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("error", [ZeroDivisionError, RuntimeError])
def test_a_bug_is_not_disguised_as_a_mistake_of_the_user(
    verb: types.ModuleType, error: type[Exception]
) -> None:
    def info() -> None:
        raise error

    verb.info = info  # type: ignore[attr-defined]
    with pytest.raises(error):
        main(["info"])


def test_an_exit_code_of_a_verb_is_kept(verb: types.ModuleType) -> None:
    import typer

    def info() -> None:
        raise typer.Exit(7)

    verb.info = info  # type: ignore[attr-defined]
    assert main(["info"]) == 7


def test_what_the_package_logs_is_shown_once_per_warning(
    verb: types.ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    def info() -> None:
        logging.getLogger("lineardit.training.checkpoint").warning("stepping back over %s", "step-7")

    verb.info = info  # type: ignore[attr-defined]
    main(["info"])
    main(["info"])
    assert capsys.readouterr().err == "warning: stepping back over step-7\n" * 2
    assert not logging.getLogger("lineardit").handlers
