"""Prompts before they are encoded: what is refused, what is cut, and SANA's instruction."""

import logging
from collections.abc import Sequence
from functools import cache
from importlib.resources import files

from lineardit.errors import PromptError

_log = logging.getLogger(__name__)

_SHOWN_WORDS = 12


def check_prompts(prompts: Sequence[str]) -> None:
    """Let only prompts through that say something.

    Raises:
        PromptError: there is no prompt, or one is empty or only blanks.
    """
    if not prompts:
        raise PromptError('no prompt was given. Say what to draw, as in "a red apple left of a cat".')
    for number, prompt in enumerate(prompts, start=1):
        if not prompt.strip():
            which = "the prompt" if len(prompts) == 1 else f"prompt {number} of {len(prompts)}"
            raise PromptError(f'{which} is empty. Say what to draw, as in "a red apple left of a cat".')


def warn_of_cut(prompt: str, end: int, budget: int) -> None:
    """Log the words of `prompt` from character `end` on: they are beyond the encoder's `budget` of tokens."""
    start = end
    # A word that is cut in the middle is not understood, so it is named whole.
    while 0 < start < len(prompt) and not prompt[start].isspace() and not prompt[start - 1].isspace():
        start -= 1
    words = prompt[start:].split()
    if not words:
        return
    more = f" and {len(words) - _SHOWN_WORDS} more words" if len(words) > _SHOWN_WORDS else ""
    _log.warning(
        "the prompt is longer than %d tokens; cut off, and not in the picture: %s%s",
        budget,
        " ".join(words[:_SHOWN_WORDS]),
        more,
    )


@cache
def sana_instruction() -> str:
    """The "complex human instruction" that SANA puts before every prompt, but not before a negative one.

    Eight lines, byte for byte as published (SANA, arXiv:2410.10629, section 2.3; the default argument
    `complex_human_instruction` of diffusers' SanaPipeline): the weights were trained with it. It ends in
    `User Prompt: ` without a line break.
    """
    return (files("lineardit.text") / "sana_instruction.txt").read_text("utf-8")
