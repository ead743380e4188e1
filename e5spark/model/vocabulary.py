"""A tokenizer's vocabulary, checked before any row is read."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from e5spark.errors import ModelError, OptionError
from e5spark.model.architecture import ARCHITECTURES, ModelConfig
from e5spark.model.json_file import read_json
from e5spark.model.registry import Checkpoint, Recipe

# The model that these classes of transformers build from any tokenizer.json.
_MODELS = {"BertTokenizer": "WordPiece", "XLMRobertaTokenizer": "Unigram"}
_REMEDY = "Fetch the tokenizer of this checkpoint again, or name its directory with tokenizer=."


def check_tokenizer(directory: Path, config: ModelConfig, published: Checkpoint | None) -> None:
    """Raises unless tokenizer.json is a tokenizer of this model, as far as the files can tell.

    A directory without tokenizer.json, but with another vocabulary, is left to transformers.

    Args:
        directory: The directory of the tokenizer's files.
        config: The model's config.json.
        published: The published checkpoint that the model is; None for one of the user's own.

    Raises:
        ModelError: If the file is damaged, or belongs to another model.
    """
    path = directory / "tokenizer.json"
    if not path.is_file():
        return
    try:
        content = json.loads(path.read_text("utf-8"))
        kind = _kind(content["model"])
        ids = _ids(content)
        unknown = _unknown_token(content["model"])
        special = list(_special_tokens(content.get("post_processor") or {}))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ModelError(
            f"{path} is no tokenizer ({type(error).__name__}: {str(error)[:80]}). {_REMEDY}"
        ) from error
    rows = int(config.values["vocab_size"])
    if max(ids.values(), default=0) >= rows:
        raise ModelError(
            f"{path} has token ids up to {max(ids.values())}, but the model has embeddings of "
            f"{rows} tokens: it belongs to another model. {_REMEDY}"
        )
    if published is not None:
        name, needed = published.name, str(published.tokenizer_model)
    else:
        name = _class(directory) or ""
        needed = _MODELS.get(name, kind)
    if kind != needed:
        raise ModelError(
            f"{path} holds a {kind} vocabulary, but {name} needs {needed}: it belongs to another "
            f"model. {_REMEDY}"
        )
    lost = [token for token in (unknown, *special) if token is not None and token not in ids]
    if lost or not ids:
        raise ModelError(
            f"{path} has a vocabulary of {len(ids)} tokens without "
            f"{lost[0] if lost else 'any'!r}. {_REMEDY}"
        )


def check_room(directory: Path, config: ModelConfig, recipe: Recipe) -> None:
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
    # A prompt has no more tokens than bytes, so that a usual limit needs no tokenizer: a
    # multilingual one takes 400 MB of memory.
    if not path.is_file() or room > max(len(text.encode()) for text in prompts.values()) + 16:
        return
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    special = tokenizer.num_special_tokens_to_add(is_pair=False) + config.architecture.appends_eos
    for role, text in prompts.items():
        taken = special + len(tokenizer.encode(text, add_special_tokens=False).ids)
        if taken >= room:
            overlap = f" and twice the overlap {2 * recipe.overlap}" if recipe.overlap else ""
            raise OptionError(
                f"max_tokens is {recipe.max_tokens}, but the prompt of role {role!r} and the "
                f"special tokens take {taken}{overlap}; no room is left for a text. Raise "
                "max_tokens."
            )


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


def _unknown_token(model: dict[str, Any]) -> str | None:
    """The token of what is not in the vocabulary; None if the model has none."""
    if isinstance(model["vocab"], list):
        number = model.get("unk_id")
        return None if number is None else str(model["vocab"][number][0])
    token = model.get("unk_token")
    return None if token is None else str(token)


def _special_tokens(processor: dict[str, Any]) -> Iterator[str]:
    """The tokens that are put around a text."""
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
