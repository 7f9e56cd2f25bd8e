"""The vocabulary of the bundled model: whole words, pieces of words, and single letters as a last resort."""

import string
from collections import Counter
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

PAD, UNKNOWN, START = "[PAD]", "[UNK]", "[START]"
LONGEST_PIECE = 6
"""Characters of a piece that is no whole word."""

_CHARACTERS = string.ascii_lowercase + string.digits + string.punctuation


def build_tokenizer(texts: Iterable[str], vocabulary: int) -> Tokenizer:
    """A lower-casing WordPiece tokenizer with at most `vocabulary` entries, the same for the same texts.

    It holds every printable ASCII character alone and as a continuation, then the words of the texts from the
    most common on, then the most common beginnings and endings of words. Every prompt starts with one token
    of its own, so that an empty prompt has one. Other scripts are one unknown token per word.
    """
    splitter = Tokenizer(models.WordPiece({UNKNOWN: 0}, unk_token=UNKNOWN))
    _split_like_bert(splitter)
    words: Counter[str] = Counter()
    for text in texts:
        normal = splitter.normalizer.normalize_str(text)
        words.update(word for word, _ in splitter.pre_tokenizer.pre_tokenize_str(normal))
    entries = dict.fromkeys([PAD, UNKNOWN, START, *_CHARACTERS, *(f"##{each}" for each in _CHARACTERS)])
    for ranked in (words, _pieces(words)):
        for entry, _ in sorted(ranked.items(), key=lambda item: (-item[1], item[0])):
            if len(entries) < vocabulary:
                entries.setdefault(entry)
    numbered = {entry: number for number, entry in enumerate(entries)}
    tokenizer = Tokenizer(models.WordPiece(numbered, unk_token=UNKNOWN, max_input_chars_per_word=64))
    _split_like_bert(tokenizer)
    tokenizer.decoder = decoders.WordPiece(prefix="##")
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A", special_tokens=[(START, numbered[START])]
    )
    return tokenizer


def _split_like_bert(tokenizer: Tokenizer) -> None:
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(r"\s+"), " "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()


def _pieces(words: Counter[str]) -> Counter[str]:
    """Beginnings and endings of the words, each word counted once: it is unknown words that they are for."""
    pieces: Counter[str] = Counter()
    for word in words:
        for length in range(2, min(LONGEST_PIECE, len(word) - 1) + 1):
            pieces[word[:length]] += 1
            pieces[f"##{word[-length:]}"] += 1
    return pieces
