"""Processes that measure: what they answer, and how their errors come back."""

import pytest

from lineardit.bench.process import answer_of, command_peak
from lineardit.errors import InputError, LineardiTError


def test_a_process_answers_with_the_last_line_that_it_prints() -> None:
    code = "print('loading')\nprint(json.dumps([len(arguments), arguments]))"
    assert answer_of(code, ["a", {"b": 1.5}]) == [2, ["a", {"b": 1.5}]]


def test_an_error_that_the_caller_can_mend_comes_back_whole() -> None:
    code = "from lineardit.errors import CheckpointError\nraise CheckpointError('two\\nlines')"
    with pytest.raises(InputError, match="^two\nlines$"):
        answer_of(code, None)


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise KeyError('here')", "KeyError: 'here'"),
        ("raise LineardiTError('not yours')", "not yours"),
        ("import os\nos.kill(os.getpid(), 9)", "exit code -9"),
    ],
)
def test_a_process_that_fails_otherwise_says_why(code: str, reason: str) -> None:
    with pytest.raises(LineardiTError, match=f"^the measured process failed: {reason}$") as caught:
        answer_of(code, None)
    assert caught.value.exit_code == 1


def test_a_command_tells_what_it_printed_and_held() -> None:
    printed, peak = command_peak(["--version"])
    assert printed.startswith("lineardit ") and peak > 10**6
    with pytest.raises(LineardiTError, match="^lineardit info nowhere ended with 2.$"):
        command_peak(["info", "nowhere"])
