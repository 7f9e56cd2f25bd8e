"""The text encoders of published models, through the optional package transformers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from threading import get_ident
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from lineardit.errors import CheckpointError, MissingExtraError
from lineardit.text.embedding import TextEmbedding
from lineardit.text.prompt import sana_instruction, warn_of_cut

Encoder = TypeVar("Encoder", bound="PublishedEncoder")

# Without the second one transformers asks at the terminal whether to run the code that a folder brings along.
_LOCAL: Mapping[str, Any] = {"local_files_only": True, "trust_remote_code": False}


class PublishedEncoder:
    """Last hidden states of a model of transformers, with padding on the right up to the longest prompt.

    Prompts are stripped and lower-cased, as the published models were trained. Models that were trained with
    padding up to a fixed length never looked at it, so shorter padding gives them the same tokens.
    """

    model_class: ClassVar[str]
    default_tokens: ClassVar[int]

    def __init__(
        self, model: nn.Module, tokenizer: Callable[..., Any], *, max_tokens: int | None = None
    ) -> None:
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.max_tokens = self.default_tokens if max_tokens is None else max_tokens
        self.device: torch.device | None = None
        """Where it computes, if that is not where its weights are."""

    @classmethod
    def from_folder(
        cls: type[Encoder],
        folder: Path,
        tokenizer_folder: Path | None = None,
        *,
        dtype: torch.dtype | Literal["auto"] = torch.float32,
        variant: str | None = None,
    ) -> Encoder:
        """Read model and tokenizer from local folders; nothing is fetched and no code of theirs is run.

        A dtype of "auto" is the one the weights are stored in; `variant` (fp16 ...) is a part of their name.

        Raises:
            MissingExtraError: transformers is not installed.
            CheckpointError: a folder does not hold what it should, or not all of it.
        """
        with _reading(cls.model_class, folder) as transformers:
            tokenizer = _tokenizer(transformers, tokenizer_folder or folder)
            model, report = getattr(transformers, cls.model_class).from_pretrained(
                folder,
                **_LOCAL,
                use_safetensors=True,
                dtype=dtype,
                variant=variant,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are in what it tells, and refused below
            )
        # transformers draws at random what it does not find.
        lacking = [*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])]
        if lacking:
            raise CheckpointError(
                f"{folder} does not fit {cls.model_class}: missing or of another shape are "
                f"{len(lacking)} tensors, such as {sorted(lacking)[0]}."
            )
        return cls(model, tokenizer)

    @classmethod
    def without_weights(
        cls: type[Encoder], folder: Path, tokenizer_folder: Path, *, stored: torch.dtype
    ) -> Encoder:
        """The same with parameters that are shapes, on the meta device, in the dtype that its folder says.

        Where it says none, in that which weights are `stored` in. Raises as `from_folder`.
        """
        with _reading(cls.model_class, folder) as transformers:
            tokenizer = _tokenizer(transformers, tokenizer_folder)
            config = transformers.AutoConfig.from_pretrained(folder, **_LOCAL)
            with _parameters_on_meta(config.dtype or stored):
                model = getattr(transformers, cls.model_class)(config)
        return cls(model, tokenizer)

    @property
    def width(self) -> int:
        """Channels of a token's vector."""
        return int(self.model.config.hidden_size)  # type: ignore[union-attr, arg-type]

    def encode(self, prompts: Sequence[str]) -> TextEmbedding:
        """The prompts' last hidden states; what is beyond `max_tokens` is named in a warning."""
        return self._encode(prompts, instruction="")

    def encode_negative(self, prompts: Sequence[str]) -> TextEmbedding:
        """The same, never with an instruction."""
        return self._encode(prompts, instruction="")

    @torch.no_grad()
    def _encode(self, prompts: Sequence[str], instruction: str) -> TextEmbedding:
        """Of the instruction only the first token is kept, and what its last token becomes."""
        texts = [instruction + prompt.lower().strip() for prompt in prompts]
        # Two tokens of the instruction are among those kept, so that many less are dropped.
        dropped = len(self.tokenizer(instruction).input_ids) - 2 if instruction else 0
        batch = self.tokenizer(
            texts,
            padding="longest",
            padding_side="right",
            truncation=True,
            max_length=dropped + self.max_tokens,
            return_tensors="pt",
            return_offsets_mapping=True,
        )
        for text, end in zip(texts, batch.offset_mapping[..., 1].amax(-1).tolist(), strict=True):
            if end < len(text):
                warn_of_cut(text[len(instruction) :], end - len(instruction), self.max_tokens)
        device = self.device or next(self.model.parameters()).device
        hidden = self.model(
            input_ids=batch.input_ids.to(device), attention_mask=batch.attention_mask.to(device)
        ).last_hidden_state
        kept = [0, *range(dropped + 1, hidden.shape[1])]
        return TextEmbedding(hidden[:, kept], batch.attention_mask[:, kept].bool().to(device))


class GemmaEncoder(PublishedEncoder):
    """Gemma-2 as SANA uses it: 300 tokens, the instruction before every prompt but not before a negative one.

    Tokens 0 and the last 299 of instruction and prompt are kept (SANA, arXiv:2410.10629, section 2.3).
    """

    model_class = "Gemma2Model"
    default_tokens = 300

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Callable[..., Any],
        *,
        max_tokens: int | None = None,
        instruction: str | None = None,
    ) -> None:
        super().__init__(model, tokenizer, max_tokens=max_tokens)
        self.instruction = sana_instruction() if instruction is None else instruction

    def encode(self, prompts: Sequence[str]) -> TextEmbedding:
        """The prompts as the instruction makes Gemma read them."""
        return self._encode(prompts, self.instruction)


class T5Encoder(PublishedEncoder):
    """The encoder half of T5, as PixArt uses it: 300 tokens, no instruction."""

    model_class = "T5EncoderModel"
    default_tokens = 300


@contextmanager
def _reading(model_class: str, folder: Path) -> Iterator[Any]:
    """The package transformers, quiet, and its complaints about a folder as ours."""
    if find_spec("transformers") is None:
        raise MissingExtraError("transformers", "hub", f"the text encoder {model_class}")
    transformers = import_module("transformers")
    log = transformers.utils.logging
    shown, level = log.is_progress_bar_enabled(), log.get_verbosity()
    # What is printed while a model loads is up to who loads it, and what does not fit is an error of ours.
    log.disable_progress_bar()
    log.set_verbosity_error()
    try:
        yield transformers
    except Exception as error:  # strangers' files make these libraries raise anything
        if isinstance(error, MemoryError) or type(error) is RuntimeError:  # torch's, where memory is short
            raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise CheckpointError(f"{folder} holds no {model_class} with its tokenizer: {reason}") from None
    finally:
        log.set_verbosity(level)
        if shown:
            log.enable_progress_bar()


def _tokenizer(transformers: Any, folder: Path) -> Callable[..., Any]:
    read: Callable[..., Any] = transformers.AutoTokenizer.from_pretrained(folder, **_LOCAL)
    return read


@contextmanager
def _parameters_on_meta(dtype: torch.dtype) -> Iterator[None]:
    """Inside, what modules register as parameters are shapes; buffers, which files may lack, have numbers."""

    here = get_ident()

    def shape_only(_: nn.Module, __: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        if get_ident() != here:
            return parameter
        return None if parameter is None else nn.Parameter(parameter.to("meta", dtype), requires_grad=False)

    # Its annotation says nothing of what it may return; its documentation does.
    handle = register_module_parameter_registration_hook(shape_only)  # type: ignore[arg-type]
    try:
        yield
    finally:
        handle.remove()
