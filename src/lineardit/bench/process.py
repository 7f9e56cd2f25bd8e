"""Work in a process of its own: nothing is warm, and what it takes is its own."""

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from lineardit.errors import InputError, LineardiTError

_WRAPPED = """
import json, sys
from lineardit.errors import LineardiTError
arguments = json.loads(sys.argv[1])
try:
{code}
except LineardiTError as error:
    print(json.dumps(str(error)))
    sys.stderr.write(str(error))
    sys.exit(error.exit_code)
"""


def answer_of(code: str, arguments: Any) -> Any:
    """What Python `code` prints, as JSON, in a fresh process where `arguments` are bound to that name.

    Raises:
        InputError: the process met an error of the package that the caller can mend.
        LineardiTError: it failed otherwise.
    """
    indented = "\n".join(f"    {line}" for line in code.strip().splitlines())
    command = [sys.executable, "-c", _WRAPPED.format(code=indented), json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    last_line = done.stdout.strip().rpartition("\n")[2]
    if done.returncode == InputError.exit_code:
        raise InputError(json.loads(last_line))
    if done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2] or f"exit code {done.returncode}"
        raise LineardiTError(f"the measured process failed: {reason}")
    return json.loads(last_line)


def command_peak(words: Sequence[str]) -> tuple[str, int]:
    """What a command of ours prints, and the most bytes that its process held.

    The process asks for that itself: what the system tells its parent counts the parent's own memory, too.

    Raises:
        LineardiTError: the command failed; it has said why.
    """
    done = subprocess.run(
        [sys.executable, "-c", _COMMAND, *words], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        raise LineardiTError(f"lineardit {' '.join(words)} ended with {done.returncode}.")
    printed, _, peak = done.stdout.rpartition("\n")
    return printed, int(peak)


_COMMAND = """
import sys
from lineardit.cli.app import main
from lineardit.kernels.allocator import resident_bytes
status = main(sys.argv[1:])
sys.stdout.write(f"\\n{resident_bytes('VmHWM')}")
sys.exit(status)
"""
