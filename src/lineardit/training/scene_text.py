"""Training a text encoder without pictures: it learns what a caption says of a scene.

A reading head asks for every object class how many there are, where and how large, and for the background,
by one cross-attention over the caption's tokens, as the diffusion transformer will. So what is said of an
object must be found at the object's token. The head is thrown away.

A pre-trained encoder knows the objects already, yet not which of two is on the left: its last blocks learn
that, held near the vectors they gave before.
"""

import copy
import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from lineardit.config.runs import TextRun
from lineardit.data.backgrounds import BACKGROUND_NAMES, BACKGROUNDS
from lineardit.data.draws import Draws
from lineardit.data.emoji_captions import Phrasing
from lineardit.data.emoji_layout import SIZES
from lineardit.data.emoji_objects import emoji_objects
from lineardit.data.emoji_scenes import EmojiScenes, Split
from lineardit.data.scene import Scene
from lineardit.errors import ConfigError
from lineardit.interop.text import load_text_encoder, save_text_encoder
from lineardit.nn.attention import CrossAttention
from lineardit.text.offline import OfflineEncoder
from lineardit.text.scene_encoder import SceneTextEncoder
from lineardit.text.word_pieces import build_tokenizer
from lineardit.training.loop import step_generator, train
from lineardit.training.prefetch import Prefetch

_log = logging.getLogger(__name__)

QUERIES = 8
"""Object classes asked for per caption: those of the scene, and others that are not in it."""
CELLS = 8
"""Columns, and rows, between which a place is told apart."""
COUNTS = 5
"""Counts that are told apart: 0 to 4."""
VOCABULARY_CAPTIONS = 20_000
"""Captions whose words make the vocabulary."""
MEASURED_SCENES = 1000
CHUNKS = 4
"""Parts of a batch, of captions of about the same length, that are read one after the other."""

PHRASINGS: Mapping[str, tuple[Split, Phrasing]] = {
    "train-like": ("train", "train"),
    "held-out pairs": ("held_out", "train"),
    "unseen templates": ("held_out", "unseen_templates"),
    "unseen words": ("held_out", "unseen_words"),
    "unseen phrasings": ("held_out", "unseen"),
}
"""What is measured: which scenes, and in which sentences."""

_ARTICLES = re.compile(r"\b(an?|the) ")
_SAYS_SIDE = re.compile(r"\b(left|right)\b")
_SAYS_HEIGHT = re.compile(r"\b(above|over|below|under|beneath|underneath|top|bottom)\b")


class Truth(NamedTuple):
    """What is asked about a batch of captions, and the answers."""

    queries: Int[Tensor, "b q"]
    """Numbers of object classes."""
    counts: Int[Tensor, "b q"]
    columns: Float[Tensor, "b q cells"]
    """Share of the class's objects in each column; zero everywhere if there are none."""
    rows: Float[Tensor, "b q cells"]
    sizes: Float[Tensor, "b q sizes"]
    background: Int[Tensor, " b"]
    """Number of the background, or the number after the last if the caption does not say."""


class Answers(NamedTuple):
    """What the head reads: logits of everything in `Truth`."""

    counts: Float[Tensor, "b q counts"]
    columns: Float[Tensor, "b q cells"]
    rows: Float[Tensor, "b q cells"]
    sizes: Float[Tensor, "b q sizes"]
    background: Float[Tensor, "b backgrounds"]


Read = Callable[[Sequence[str], Tensor], Answers]
"""Answers about captions, given the numbers of the object classes asked for."""


class ReadingHead(nn.Module):
    """One cross-attention from what is asked to the tokens, and a small network that names the answer."""

    def __init__(self, objects: int, width: int, head_dim: int) -> None:
        super().__init__()
        self.questions = nn.Embedding(objects + 1, width)
        self.attention = CrossAttention(width, head_dim)
        self.norm = nn.LayerNorm(width)
        self.expand = nn.Linear(2 * width, 2 * width)
        self.answer = nn.Linear(2 * width, COUNTS + 2 * CELLS + len(SIZES))
        self.background = nn.Linear(2 * width, len(BACKGROUNDS) + 1)

    def forward(
        self, embeddings: Float[Tensor, "b m c"], mask: Bool[Tensor, "b m"], queries: Int[Tensor, "b q"]
    ) -> Answers:
        """Answer for each object class asked for, and for the background."""
        background = queries.new_full((len(queries), 1), self.questions.num_embeddings - 1)
        asked = self.questions(torch.cat([queries, background], dim=1))
        found = self.attention(asked, embeddings, mask)
        # The product is large where what was found is what was asked for.
        hidden = functional.gelu(self.expand(torch.cat([self.norm(asked + found), asked * found], dim=-1)))
        counts, columns, rows, sizes = (
            self.answer(hidden[:, :-1]).float().split([COUNTS, CELLS, CELLS, len(SIZES)], dim=-1)
        )
        return Answers(counts, columns, rows, sizes, self.background(hidden[:, -1]).float())

    @torch.no_grad()
    def look_for(self, words: Float[Tensor, "objects c"]) -> None:
        """Start with each question attending to its object's own word, not having to find it by chance."""
        width = words.shape[1]
        self.questions.weight[: len(words)] = functional.layer_norm(words, (width,))
        for weight in (
            self.attention.to_q.weight,
            *self.attention.to_kv.weight.chunk(2),
            self.attention.to_out.weight,
        ):
            nn.init.eye_(weight)


class Reader(nn.Module):
    """The encoder that is kept and the head that is not."""

    def __init__(self, encoder: OfflineEncoder, words: Float[Tensor, "objects c"]) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = ReadingHead(len(words), encoder.width, encoder.config.head_dim)
        self.head.look_for(words)

    def forward(
        self, tokens: Int[Tensor, "b m"], mask: Bool[Tensor, "b m"], queries: Int[Tensor, "b q"]
    ) -> tuple[Answers, Float[Tensor, "b m c"]]:
        """What is read of a batch of captions, and the vectors it was read from."""
        vectors = self.encoder(tokens, mask)
        return self.head(vectors, mask, queries), vectors

    def read(self, captions: Sequence[str], queries: Int[Tensor, "b q"]) -> Answers:
        """The answers alone, from the captions' text."""
        answers, _ = self(*padded(self.encoder.tokens(captions)), queries)
        return answers


class SceneTextTask:
    """loss = cross-entropies of count, column, row, size and background over endless captions."""

    def __init__(self, run: TextRun, scenes: EmojiScenes, model: Reader) -> None:
        self.run, self.scenes = run, scenes
        self.model: nn.Module = model
        self._reader = model
        there = run.start is not None and run.anchor > 0
        self._prefetch: Prefetch[None, tuple[list[str], list[Scene]]] = Prefetch(
            lambda step, _: self.batch(step)
        )
        self._anchor = copy.deepcopy(model.encoder).requires_grad_(False) if there else None

    def losses(self, step: int) -> Mapping[str, Tensor]:
        """The loss of one batch, its parts, and the share of counts that are right."""
        captions, scenes = self._prefetch(step, None)
        truth = ask(captions, scenes, self.scenes.names, Draws("absent", self.run.train.seed, step))
        tokens = self._reader.encoder.tokens(captions)
        by_length = torch.tensor([len(row) for row in tokens]).argsort()
        truth = Truth(*(answers[by_length] for answers in truth))
        read, moved = [], []
        # Half of the tokens would be padding if all were read together.
        for rows, queries in zip(by_length.chunk(CHUNKS), truth.queries.chunk(CHUNKS), strict=True):
            captions_of_one_length = padded([tokens[row] for row in rows.tolist()])
            answers, vectors = self.model(*captions_of_one_length, queries)
            read.append(answers)
            if self._anchor is not None:
                moved.append(self._moved(vectors, *captions_of_one_length))
        parts = reading_losses(Answers(*map(torch.cat, zip(*read, strict=True))), truth)
        if moved:
            parts["anchor"] = self.run.anchor * torch.stack(moved).mean()
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}

    def _moved(self, vectors: Tensor, tokens: Tensor, mask: Tensor) -> Tensor:
        """Squared distance from the vectors that the encoder began with, over their mean square."""
        assert self._anchor is not None
        with torch.no_grad():
            before = self._anchor(tokens, mask)[mask].float()
        return (vectors[mask].float() - before).square().mean() / before.square().mean()

    def batch(self, step: int) -> tuple[list[str], list[Scene]]:
        """The captions of step `step`, some of them roughened, and the scenes they describe."""
        each = self.run.captions_per_scene
        count = max(1, self.run.train.batch_size // each)
        captions: list[str] = []
        scenes: list[Scene] = []
        for index in range(step * count, (step + 1) * count):
            scene = self.scenes.scene(index)
            captions += self.scenes.captions(scene, index, each)
            scenes += [scene] * each
        draws = Draws("rough", self.run.train.seed, step)
        return [roughened(caption, draws) for caption in captions], scenes

    def position(self, step: int) -> Mapping[str, object]:
        """Where in the endless captions a step begins, and in which captions."""
        return {
            "step": step,
            "batch_size": self.run.train.batch_size,
            "captions_per_scene": self.run.captions_per_scene,
            "data": self.scenes.digest,
        }

    def sample(self, model: nn.Module, step: int) -> None:
        """There is nothing to see; what the averaged weights understand is logged."""
        assert isinstance(model, Reader)
        for name, scores in measure(model, self.run, MEASURED_SCENES // 4).items():
            _log.warning("step %d, %s: %s", step + 1, name, scores)


def train_scene_text(run: TextRun, folder: Path, *, resume: bool) -> Path:
    """Train in `folder`, measure, and return the folder of the finished encoder, `folder`/model."""
    scenes = EmojiScenes(run.scenes, run.train.seed)
    torch.manual_seed(int(torch.randint(2**31, (), generator=step_generator(run.train.seed, 0, "weights"))))
    model = build_reader(run, scenes)
    outcome = train(SceneTextTask(run, scenes, model), run.train, folder, resume=resume)
    assert isinstance(outcome.average, Reader)
    scores = measure(outcome.average, run)
    for name, score in scores.items():
        _log.warning("%s: %s", name, score)
    about = {"recipe": run.model_dump(mode="json"), "steps": outcome.step, "accuracy": scores}
    save_text_encoder(folder / "model", outcome.average.encoder, about=about)
    return folder / "model"


def build_reader(run: TextRun, scenes: EmojiScenes) -> Reader:
    """The encoder that `run` names, with a reading head that looks for the scenes' objects.

    A fresh one has the words of the scenes' captions and objects; of one that is there the last blocks learn.

    Raises:
        ConfigError: more blocks are to learn than the encoder has.
        CheckpointError: there is no encoder to start from.
    """
    if run.model is not None:
        texts = list(scenes.captions_only(0, VOCABULARY_CAPTIONS))
        for each in emoji_objects():
            texts += [word for noun in each.nouns for word in (noun.singular, noun.plural)]
        fresh = SceneTextEncoder(run.model, build_tokenizer(texts, run.model.vocabulary))
        pieces = [torch.tensor(tokens[1:]) for tokens in fresh.tokens(scenes.names)]
        return Reader(fresh, torch.stack([fresh.pieces(each).mean(0) for each in pieces]))
    assert run.start is not None
    encoder = load_text_encoder(run.start)
    blocks = encoder.get_submodule("blocks")
    assert isinstance(blocks, nn.ModuleList)
    if run.trained_blocks > len(blocks):
        raise ConfigError(
            f"trained_blocks={run.trained_blocks}, but {run.start} has {len(blocks)}. "
            f"Use trained_blocks={len(blocks)} or less."
        )
    blocks[-run.trained_blocks :].requires_grad_(True)
    return Reader(encoder.train(), torch.stack([_of_words(encoder, name) for name in scenes.names]))


def _of_words(encoder: OfflineEncoder, name: str) -> Float[Tensor, " c"]:
    """The mean vector of a name's own tokens, without those that every prompt has."""
    inside = [not special for special in encoder.tokenizer.encode(name).special_tokens_mask]
    return encoder.encode([name]).embeddings[0, : len(inside)][inside].mean(0)


def ask(captions: Sequence[str], scenes: Sequence[Scene], names: Sequence[str], draws: Draws) -> Truth:
    """Questions about each scene's objects and about some that are not there, with the answers."""
    number = {name: position for position, name in enumerate(names)}
    shape = (len(scenes), QUERIES)
    queries, counts = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    columns, rows = torch.zeros(*shape, CELLS), torch.zeros(*shape, CELLS)
    sizes = torch.zeros(*shape, len(SIZES))
    background = torch.tensor(
        [
            BACKGROUND_NAMES.index(scene.background)
            if says_background(caption, scene.background)
            else len(BACKGROUNDS)
            for caption, scene in zip(captions, scenes, strict=True)
        ]
    )
    for row, scene in enumerate(scenes):
        there = Counter(each.name for each in scene.objects)
        asked = list(there)
        while len(asked) < QUERIES:
            other = draws.one_of(names)
            if other not in asked:
                asked.append(other)
        queries[row] = torch.tensor([number[name] for name in asked])
        counts[row] = torch.tensor([there[name] for name in asked])
        for each in scene.objects:
            place, share = asked.index(each.name), 1 / there[each.name]
            columns[row, place, cell(each.x)] += share
            rows[row, place, cell(each.y)] += share
            sizes[row, place, SIZES.index(each.size)] += share
    return Truth(queries, counts, columns, rows, sizes, background)


def cell(position: float) -> int:
    """The column or row of a position in [0, 1]."""
    return min(int(position * CELLS), CELLS - 1)


def says_background(caption: str, background: str) -> bool:
    """Whether a caption of a scene on this background names it, and does not merely mention the colour."""
    known = BACKGROUNDS[BACKGROUND_NAMES.index(background)]
    words = sorted((*known.words, *known.reserved, *known.places), key=len, reverse=True)
    if known.plain:
        colours = "|".join(map(re.escape, words))
        # A colour before the word background, or at the end after a word that leads to it.
        before = rf"\b({colours}) (background|backdrop)\b"
        after = rf"\bbackground( is|:) ({colours})\b|\b(on|against) ({colours})$"
        return re.search(f"{before}|{after}", caption) is not None
    bare = "|".join(re.escape(re.sub(r"^(an?|the) ", "", word)) for word in words)
    return re.search(rf"\b({bare})\b", caption) is not None


def padded(tokens: Sequence[Sequence[int]]) -> tuple[Int[Tensor, "b m"], Bool[Tensor, "b m"]]:
    """Tokens of several captions in one tensor, and which of them are there."""
    rows = [torch.tensor(row) for row in tokens]
    lengths = torch.tensor([len(row) for row in rows])
    joined = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return joined, torch.arange(joined.shape[1]) < lengths[:, None]


def reading_losses(answers: Answers, truth: Truth) -> dict[str, Tensor]:
    """Cross-entropies; places and sizes only of what is there.

    Where a caption leaves a place open, the drawn one is the target: the answer is then the share of each.
    """
    there = truth.counts > 0

    def soft(logits: Tensor, target: Tensor) -> Tensor:
        return functional.cross_entropy(logits[there], target[there])

    return {
        "count": functional.cross_entropy(answers.counts.flatten(0, 1), truth.counts.flatten()),
        "column": soft(answers.columns, truth.columns),
        "row": soft(answers.rows, truth.rows),
        "size": soft(answers.sizes, truth.sizes),
        "background": functional.cross_entropy(answers.background, truth.background),
    }


def roughened(caption: str, draws: Draws) -> str:
    """Now and then as people type: articles left out, a letter wrong, a word in it that says nothing."""
    if draws.chance(0.1):
        caption = _ARTICLES.sub("", caption)
    words = caption.split(" ")
    if draws.chance(0.08):
        place = int(draws.unit() * len(words))
        words[place] = _mistyped(words[place], draws)
    if draws.chance(0.08):
        made_up = "".join(
            draws.one_of("bcdfglmnprst") + draws.one_of("aeiou") for _ in range(draws.one_of((1, 2, 3)))
        )
        words.insert(int(draws.unit() * (len(words) + 1)), made_up)
    return " ".join(words)


def _mistyped(word: str, draws: Draws) -> str:
    """A letter left out, doubled, or swapped with the next. Short words stay: another would come of them."""
    if len(word) < 4:
        return word
    place = 1 + int(draws.unit() * (len(word) - 2))
    manner = draws.unit()
    if manner < 1 / 3:
        return word[:place] + word[place + 1 :]
    if manner < 2 / 3:
        return word[:place] + word[place] + word[place:]
    return word[:place] + word[place + 1] + word[place] + word[place + 2 :]


def measure(model: Reader, run: TextRun, count: int = MEASURED_SCENES) -> dict[str, dict[str, float]]:
    """What the encoder understands of unseen scenes, by each of `PHRASINGS`."""
    found = {}
    for name, (split, phrasing) in PHRASINGS.items():
        scenes = EmojiScenes(run.scenes, run.train.seed + 1, split=split, phrasing=phrasing)
        found[name] = accuracy(model.read, scenes, count)
    return found


@torch.no_grad()
def accuracy(read: Read, scenes: EmojiScenes, count: int, *, batch_size: int = 250) -> dict[str, float]:
    """Shares of right answers over `count` captions.

    presence: of objects asked for, those there and those not weighing the same. count: of several of a kind.
    relation: left of, right of, above or below, of pairs whose caption says it. background: also "not said".
    """
    right: dict[str, list[Tensor]] = {}
    for start in range(0, count, batch_size):
        pairs = [scenes[index] for index in range(start, min(count, start + batch_size))]
        drawn, captions = [scene for scene, _ in pairs], [caption for _, caption in pairs]
        truth = ask(captions, drawn, scenes.names, Draws("measure", scenes.seed, start))
        answers = read(captions, truth.queries)
        for name, values in _right(answers, truth, drawn, captions).items():
            right.setdefault(name, []).append(values.float())
    shares = {name: float(torch.cat(values).mean()) for name, values in right.items()}
    presence = (shares.pop("there") + shares.pop("absent")) / 2
    return {name: round(share, 4) for name, share in {"presence": presence, **shares}.items()}


def _right(
    answers: Answers, truth: Truth, scenes: Sequence[Scene], captions: Sequence[str]
) -> dict[str, Bool[Tensor, " some"]]:
    guessed = answers.counts.argmax(-1)
    there = truth.counts > 0
    several = torch.tensor([scene.kind == "count" for scene in scenes])
    side = torch.tensor(
        [
            scene.relation in ("left of", "right of") and _SAYS_SIDE.search(text) is not None
            for scene, text in zip(scenes, captions, strict=True)
        ]
    )
    height = torch.tensor(
        [
            scene.relation in ("above", "below") and _SAYS_HEIGHT.search(text) is not None
            for scene, text in zip(scenes, captions, strict=True)
        ]
    )
    return {
        "there": (guessed > 0)[there],
        "absent": (guessed == 0)[~there],
        "count": (guessed == truth.counts)[several, 0],
        "relation": torch.cat(
            [
                _order(answers.columns.softmax(-1))[side] == _order(truth.columns)[side],
                _order(answers.rows.softmax(-1))[height] == _order(truth.rows)[height],
            ]
        ),
        "background": answers.background.argmax(-1) == truth.background,
    }


def _order(cells: Float[Tensor, "b q cells"]) -> Bool[Tensor, " b"]:
    """Whether the first object asked for comes before the second."""
    middle = cells @ torch.arange(CELLS, dtype=cells.dtype)
    return middle[:, 0] < middle[:, 1]
