"""A tokenizer's vocabulary, checked before any row is read."""

import functools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e5spark.errors import ModelError, OptionError
from e5spark.model.architecture import ARCHITECTURES, ModelConfig
from e5spark.model.digest import Identity, identity
from e5spark.model.json_file import read_json
from e5spark.model.registry import Checkpoint, Recipe

# The model that these classes of transformers build from any tokenizer.json.
_MODELS = {"BertTokenizer": "WordPiece", "XLMRobertaTokenizer": "Unigram"}
_REMEDY = "Fetch the tokenizer of this checkpoint again, or name its directory with tokenizer=."


def check_tokenizer(directory: Path, config: ModelConfig, published: Checkpoint | None) -> None:
    """Raises unless tokenizer.json belongs to this model, as far as the files can tell.

    A directory without tokenizer.json, but with another vocabulary, is left to transformers.

    Args:
        directory: The directory of the tokenizer's files.
        config: The model's config.json.
        published: The model's entry in the registry; None for the user's own checkpoint.

    Raises:
        ModelError: If the file is damaged, or belongs to another model.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        return
    vocabulary = _vocabulary(identity(path))
    rows = int(config.values["vocab_size"])
    if vocabulary.highest_id >= rows:
        raise ModelError(
            f"{path} has token ids up to {vocabulary.highest_id}, but the model has embeddings of "
            f"{rows} tokens: it belongs to another model. {_REMEDY}"
        )
    if published is not None:
        name, expected = published.name, str(published.tokenizer_model)
    else:
        name = _class(directory) or ""
        expected = _MODELS.get(name, vocabulary.kind)
    if vocabulary.kind != expected:
        raise ModelError(
            f"{path} holds a {vocabulary.kind} vocabulary, but {name} needs {expected}: it "
            f"belongs to another model. {_REMEDY}"
        )
    if vocabulary.missing:
        raise ModelError(
            f"{path} has a vocabulary of {vocabulary.tokens} tokens without its special token "
            f"{vocabulary.missing[0]!r}. {_REMEDY}"
        )


@contextmanager
def readable_tokenizer(directory: Path) -> Iterator[None]:
    """Says which tokenizer cannot be read, where its libraries raise any error.

    Args:
        directory: The directory of the tokenizer's files.

    Raises:
        ModelError: In place of the error. The tokenizers library raises plain ``Exception`` for a
            damaged file, and for some a panic, which is no ``Exception``.
    """
    try:
        yield
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ModelError(
            f"{directory} has no tokenizer that can be read: {error}. Fetch its files again."
        ) from error


def check_prompts_fit(directory: Path, config: ModelConfig, recipe: Recipe) -> None:
    """Raises if ``max_tokens`` is too small for the prompts: no text would have a vector.

    Args:
        directory: The directory of the tokenizer's files.
        config: The model's config.json.
        recipe: The prompts and the limit.

    Raises:
        OptionError: If a prompt and the special tokens leave no room for a text.
    """
    path = directory / "tokenizer.json"
    room = recipe.max_tokens - 2 * recipe.overlap
    prompts = {role: text.replace("{task}", "") for role, text in recipe.prompts.items()}
    # A prompt has no more tokens than bytes, so a usual limit needs no tokenizer; a multilingual
    # one takes 400 MB of memory.
    if not path.is_file() or room > max(len(text.encode()) for text in prompts.values()) + 16:
        return
    import tokenizers

    with readable_tokenizer(directory):
        tokenizer = tokenizers.Tokenizer.from_file(str(path))
    special = tokenizer.num_special_tokens_to_add(is_pair=False) + config.architecture.appends_eos
    for role, text in prompts.items():
        tokens = special + len(tokenizer.encode(text, add_special_tokens=False).ids)
        if tokens >= room:
            overlap = f" and twice the overlap {2 * recipe.overlap}" if recipe.overlap else ""
            raise OptionError(
                f"max_tokens is {recipe.max_tokens}, but the prompt of role {role!r} and the "
                f"special tokens take {tokens}{overlap}; no room is left for a text. Raise "
                "max_tokens."
            )


@dataclass(frozen=True, kw_only=True)
class _Vocabulary:
    """The parts of a tokenizer.json that are checked.

    Attributes:
        kind: The model in it, such as ``WordPiece``.
        tokens: Tokens, added ones included.
        highest_id: The highest id of a token.
        missing: Special tokens that the tokenizer uses and the vocabulary lacks.
    """

    kind: str
    tokens: int
    highest_id: int
    missing: tuple[str, ...]


# A multilingual tokenizer.json takes 17 MB, and a driver may call embed for each batch of a stream.
@functools.lru_cache(maxsize=16)
def _vocabulary(identity: Identity) -> _Vocabulary:
    path = Path(identity[0])
    try:
        content = json.loads(path.read_text("utf-8"))
        ids = _ids(content)
        special = [
            *_unknown_token(content["model"]),
            *_special_tokens(content.get("post_processor") or {}),
        ]
        return _Vocabulary(
            kind=_kind(content["model"]),
            tokens=len(ids),
            highest_id=max(ids.values()),
            missing=tuple(token for token in special if token not in ids),
        )
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        RecursionError,
        OverflowError,
    ) as error:
        raise ModelError(
            f"{path} is not a tokenizer ({type(error).__name__}: {str(error)[:80]}). {_REMEDY}"
        ) from error


def _kind(model: dict[str, Any]) -> str:
    """Older tokenizer.json files do not name their model."""
    if "type" in model:
        return str(model["type"])
    if isinstance(model["vocab"], list):
        return "Unigram"
    return "BPE" if "merges" in model else "WordPiece"


def _ids(content: dict[str, Any]) -> dict[str, int]:
    """Token to id, of the vocabulary and of the tokens that were added to it."""
    vocabulary = content["model"]["vocab"]
    if isinstance(vocabulary, list):
        ids = {str(piece): number for number, (piece, _) in enumerate(vocabulary)}
    else:
        ids = {str(piece): int(number) for piece, number in vocabulary.items()}
    for token in content.get("added_tokens") or []:
        ids[str(token["content"])] = int(token["id"])
    return ids


def _unknown_token(model: dict[str, Any]) -> list[str]:
    """The token that replaces unknown words; empty if the model has none."""
    if isinstance(model["vocab"], list):
        number = model.get("unk_id")
        return [] if number is None else [str(model["vocab"][number][0])]
    token = model.get("unk_token")
    return [] if token is None else [str(token)]


def _special_tokens(processor: dict[str, Any]) -> Iterator[str]:
    """The tokens that the tokenizer adds before and after a text."""
    for part in processor.get("processors") or []:
        yield from _special_tokens(part)
    for token in (processor.get("special_tokens") or {}).values():
        yield from map(str, token["tokens"])
    for name in ("cls", "sep"):
        if name in processor:
            yield str(processor[name][0])


def _class(directory: Path) -> str | None:
    """The class that transformers builds the tokenizer with, as far as the files name it."""
    config = read_json(directory / "config.json", {})
    architecture = ARCHITECTURES.get(str(config.get("model_type")))
    name = (
        read_json(directory / "tokenizer_config.json", {}).get("tokenizer_class")
        or config.get("tokenizer_class")
        or (architecture.tokenizer if architecture is not None else None)
    )
    return None if name is None else str(name).removesuffix("Fast")
