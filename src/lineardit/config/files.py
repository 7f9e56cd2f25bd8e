"""Recipes on disk: read a TOML file, override single keys, explain every field."""

import ast
import difflib
import inspect
import json
import re
import textwrap
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from lineardit.config.article import ARTICLE_AUTOENCODERS, ARTICLES
from lineardit.config.classes import ClassNetwork, ClassRun
from lineardit.config.detector import DetectorRun
from lineardit.config.finetune import FinetuneRun
from lineardit.config.models import Config
from lineardit.config.presets import AUTOENCODERS, TRANSFORMERS, named
from lineardit.config.runs import (
    ArticleAutoencoderRun,
    ArticleTransformerRun,
    AutoencoderRun,
    Run,
    TextRun,
    TransformerRun,
)
from lineardit.errors import ConfigError

Recipe = Run | ClassRun | DetectorRun | FinetuneRun
"""What a recipe can describe."""

KINDS: Mapping[str, type[Recipe]] = {
    "autoencoder": AutoencoderRun,
    "article-autoencoder": ArticleAutoencoderRun,
    "transformer": TransformerRun,
    "article-transformer": ArticleTransformerRun,
    "class-conditional": ClassRun,
    "text": TextRun,
    "detector": DetectorRun,
    "finetune": FinetuneRun,
}


def read_run(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe. Its key `kind` decides the class; `overrides` such as "train.steps=100" come last.

    Raises:
        ConfigError: the file is missing or no TOML, a key is unknown, or a value does not fit.
    """
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        others = ", ".join(str(other) for other in sorted(path.parent.glob("*.toml")))
        remedy = f"Recipes there: {others}." if others else "Give the path of a .toml file."
        raise ConfigError(f"{path} cannot be read ({error.strerror}). {remedy}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is no recipe: it is not a UTF-8 text.") from None
    return parse_run(text, overrides, source=str(path))


def parse_run(text: str, overrides: Sequence[str] = (), source: str = "the recipe") -> Recipe:
    """As `read_run`, from the text of a recipe. `source` names it in errors."""
    try:
        recipe = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{source} is no valid TOML: {error}") from None
    # A preset is first replaced by what it stands for, so that other overrides find all of its keys.
    presets = [override for override in overrides if override.startswith("model.preset")]
    for override in presets:
        _apply(recipe, override)
    _expand_preset(recipe)
    for override in overrides:
        if override not in presets:
            _apply(recipe, override)
    kind = recipe.get("kind")
    run_class = KINDS.get(str(kind))
    if run_class is None:
        given = "has no key kind" if kind is None else f"has kind={kind!r}"
        raise ConfigError(f"{source} {given}. Use one of {', '.join(KINDS)}.")
    run = _build(run_class, recipe, path=(), paths=list(_key_paths(run_class)))
    assert isinstance(run, Recipe)
    return run


def explain(run: Config) -> str:
    """Every field with its value and what it means, as a recipe that reads back to the same run."""
    lines: list[str] = []
    for path, config, name in _fields(run):
        value = getattr(config, name)
        lines += (f"# {line}" for line in textwrap.wrap(_docstrings(type(config)).get(name, ""), 100))
        lines.append(f"# {path} is not set" if value is None else f"{path} = {_toml(value)}")
    return "\n".join(lines) + "\n"


def _apply(recipe: dict[str, Any], override: str) -> None:
    """Set one dotted key to a value written as in TOML; what is no TOML is taken as a bare string."""
    key, equals, text = override.partition("=")
    parts = [part.strip() for part in key.split(".")]
    if not equals or not all(parts):
        raise ConfigError(f"{override!r} is no override. Write key=value, as in train.steps=100.")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    place: Any = recipe
    for depth, part in enumerate(parts[:-1], start=1):
        if isinstance(place, list):
            place = place[_index(place, part, parts[: depth - 1])]
        else:
            place = place.setdefault(part, {})
        if not isinstance(place, dict | list):
            inner = ".".join(parts[:depth])
            raise ConfigError(f"unknown key {'.'.join(parts)}: {inner} is a single value, {place!r}.")
    if isinstance(place, list):
        place[_index(place, parts[-1], parts[:-1])] = value
    else:
        place[parts[-1]] = value


def _expand_preset(recipe: dict[str, Any]) -> None:
    """The model section may name a preset and then only its differences from it."""
    model = recipe.get("model")
    if not isinstance(model, dict) or "preset" not in model:
        return
    name = str(model.pop("preset"))
    try:
        preset = _preset(name, str(recipe.get("kind")))
    except ConfigError as error:
        raise ConfigError(f"model.preset: {error}") from None
    recipe["model"] = preset.model_dump(mode="json") | model


def _preset(name: str, kind: str) -> Config:
    """The preset of that name among those of a kind of run."""
    match kind:
        case "autoencoder":
            return named(name, AUTOENCODERS, "autoencoder")
        case "article-autoencoder":
            return named(name, ARTICLE_AUTOENCODERS, "autoencoder")
        case "article-transformer":
            return named(name, ARTICLES, "transformer")
        case "class-conditional":
            return ClassNetwork.preset(name)
    return named(name, TRANSFORMERS, "transformer")


def _index(items: list[Any], part: str, before: list[str]) -> int:
    if not re.fullmatch(r"\d+", part) or int(part) >= len(items):
        raise ConfigError(
            f"unknown key {'.'.join([*before, part])}: {'.'.join(before)} is a list. "
            f"Use a number from 0 to {len(items) - 1}."
        )
    return int(part)


def _build(config: type[Config], given: Mapping[str, Any], path: tuple[str, ...], paths: list[str]) -> Config:
    """Construct from plain values, innermost first, so that every error names the whole dotted key."""
    for key in given:
        if key not in config.model_fields:
            raise ConfigError(_unknown((*path, key), config, paths))
    fields: dict[str, Any] = {}
    for key, value in given.items():
        nested = _nested(config, key)
        if nested and isinstance(value, dict):
            value = _build(nested, value, (*path, key), paths)
        elif nested and isinstance(value, list):
            value = tuple(
                _build(nested, item, (*path, key, str(number)), paths) if isinstance(item, dict) else item
                for number, item in enumerate(value)
            )
        fields[key] = value
    try:
        return config(**fields)
    except ConfigError as error:
        # A rule between fields is reported under the name of the class, a field under its own.
        message = str(error).removeprefix(f"{config.__name__}: ")
        if not path:
            raise ConfigError(message) from None
        names_a_field = re.match(r"\w+", message)
        joint = "." if names_a_field and names_a_field[0] in config.model_fields else ": "
        raise ConfigError(f"{'.'.join(path)}{joint}{message}") from None


def _unknown(key: tuple[str, ...], config: type[Config], paths: list[str]) -> str:
    """The complaint about a key, with the nearest one of its section, else of the whole recipe."""
    *section, name = key
    beside = difflib.get_close_matches(name, config.model_fields, n=1)
    anywhere = [path for path in paths if path.rpartition(".")[2] == name] or [
        path
        for close in difflib.get_close_matches(name, {path.rpartition(".")[2] for path in paths}, n=1)
        for path in paths
        if path.rpartition(".")[2] == close
    ]
    if beside:
        remedy = f"; did you mean {'.'.join((*section, beside[0]))}?"
    elif anywhere:
        remedy = f"; did you mean {min(anywhere, key=lambda path: path.count('.'))}?"
    else:
        remedy = f". Known there: {', '.join(config.model_fields)}."
    return f"unknown key {'.'.join(key)}{remedy}"


def _nested(config: type[Config], key: str) -> type[Config] | None:
    """The class of a section, or of the items of a list of sections."""
    annotation = config.model_fields[key].annotation
    for candidate in (annotation, *get_args(annotation)):
        if inspect.isclass(candidate) and issubclass(candidate, Config):
            return candidate
    return None


def _key_paths(config: type[Config], path: tuple[str, ...] = ()) -> Iterator[str]:
    for key in config.model_fields:
        nested = _nested(config, key)
        if nested:
            yield from _key_paths(nested, (*path, key))
        else:
            yield ".".join((*path, key))


def _fields(config: Config, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Config, str]]:
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, Config):
            yield from _fields(value, (*path, name))
        else:
            yield ".".join((*path, name)), config, name


def _docstrings(config: type[BaseModel]) -> dict[str, str]:
    """The strings that stand under the fields of a class and of its parents."""
    found: dict[str, str] = {}
    for parent in reversed(config.__mro__):
        if not issubclass(parent, Config) or parent is Config:
            continue
        body = ast.parse(textwrap.dedent(inspect.getsource(parent))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, below in pairwise(body.body):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                match below:
                    case ast.Expr(value=ast.Constant(value=str(text))):
                        found[field.target.id] = " ".join(text.split())
    return found


def _toml(value: object) -> str:
    match value:
        case bool():
            return str(value).lower()
        case int() | float():
            return repr(value)
        case tuple():
            return f"[{', '.join(map(_toml, value))}]"
        case Config():
            items = ((name, getattr(value, name)) for name in type(value).model_fields)
            return f"{{{', '.join(f'{name} = {_toml(item)}' for name, item in items if item is not None)}}}"
        case _:
            return json.dumps(str(value), ensure_ascii=False)
