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
        PromptError: there is no prompt, one is empty or only blanks, or as `check_text`.
    """
    if not prompts:
        raise PromptError('no prompt was given. Say what to draw, as in "a red apple left of a cat".')
    for number, prompt in enumerate(prompts, start=1):
        which = "the prompt" if len(prompts) == 1 else f"prompt {number} of {len(prompts)}"
        check_text(prompt, which)
        if not prompt.strip():
            raise PromptError(f'{which} is empty. Say what to draw, as in "a red apple left of a cat".')


def check_text(text: str, which: str = "the prompt") -> None:
    """Let only text through that is whole characters, for prompts and negative prompts; empty ones are.

    Half of a character is what JSON makes of a lone "\\ud83d", and Python of an argument that is no UTF-8.

    Raises:
        PromptError: it has half of a character; `which` is what the error calls it.
    """
    at = next((number for number, letter in enumerate(text) if "\ud800" <= letter <= "\udfff"), None)
    if at is not None:
        raise PromptError(
            f"{which} has half of a character, {ascii(text[at])} at place {at + 1}. "
            "Give the whole character as UTF-8, or leave it out."
        )


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
