"""How vectors are made: the user's word, the table's, the checkpoint's own; never a guess."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e5spark.errors import ModelError, OptionError
from e5spark.model import registry
from e5spark.model.checkpoint import known_checkpoint, read_json
from e5spark.model.registry import Checkpoint, Recipe
from e5spark.model.spec import ModelSpec


def resolve_recipe(spec: ModelSpec, directory: Path | None = None) -> Recipe:
    """Returns how the checkpoint's vectors are made: the user's word, the table's, its own files'.

    Args:
        spec: What the user asked for.
        directory: Where the checkpoint lies; None for a known checkpoint that this machine
            does not have, whose recipe is then the table's.

    Raises:
        ModelError: If the files do not say and the user did not; nothing is guessed.
        OptionError: If an option contradicts the checkpoint.
    """
    known = known_checkpoint(spec)
    if known is None and directory is None:
        raise ModelError(f"{spec.model!r} is not on this machine, and e5spark does not know it.")
    said = _DeclaredRecipe.by_table(known) if known else _DeclaredRecipe()
    limit = None
    if directory is not None:
        config = read_json(directory / "config.json")
        limit = _positions(config, directory)
        if known is not None:
            _check_same(known, config, directory)
        else:
            said = _DeclaredRecipe.by_files(directory, config)
    return _recipe(spec, said, limit)


@dataclass(frozen=True, kw_only=True)
class _DeclaredRecipe:
    """What is known of a recipe before the user is heard; None where nothing was said."""

    dim: int | None = None
    pooling: str | None = None
    normalize: bool | None = None
    prompts: dict[str, str] | None = None
    max_tokens: int | None = None

    @classmethod
    def by_table(cls, known: Checkpoint) -> "_DeclaredRecipe":
        recipe = known.recipe
        return cls(
            dim=recipe.dim,
            pooling=recipe.pooling,
            normalize=recipe.normalize,
            prompts=dict(recipe.prompts),
            max_tokens=recipe.max_tokens,
        )

    @classmethod
    def by_files(cls, directory: Path, config: dict[str, Any]) -> "_DeclaredRecipe":
        modules = [
            (str(module["type"]).rsplit(".", 1)[-1], directory / str(module["path"]))
            for module in read_json(directory / "modules.json", [])
        ]
        kinds = [kind for kind, _ in modules]
        unknown = set(kinds) - {"Transformer", "Pooling", "Normalize"}
        if unknown:
            raise ModelError(
                f"{directory}/modules.json has a {sorted(unknown)[0]} module, which e5spark does "
                "not run; it runs Transformer, Pooling and Normalize."
            )
        pooled = [_pooling(path) for kind, path in modules if kind == "Pooling"]
        dim = config.get("hidden_size")
        return cls(
            dim=dim if isinstance(dim, int) else None,
            pooling=pooled[0] if pooled else None,
            normalize="Normalize" in kinds if modules else None,
            prompts=_prompts(read_json(directory / "config_sentence_transformers.json", {})),
            max_tokens=_token_limit(directory),
        )


def _recipe(spec: ModelSpec, said: _DeclaredRecipe, limit: int | None) -> Recipe:
    pooling = spec.pooling or said.pooling
    normalize = spec.normalize if spec.normalize is not None else said.normalize
    role_prompts = spec.prompts if spec.prompts is not None else said.prompts
    most = min(tokens for tokens in (said.max_tokens, limit, 1 << 30) if tokens is not None)
    if said.dim is None or pooling is None or normalize is None or role_prompts is None:
        choices = (
            ("pooling='mean'", pooling),
            ("normalize=True", normalize),
            ("prompts={'query': 'query: ', 'passage': 'passage: '}", role_prompts),
        )
        asked = ", ".join(choice for choice, value in choices if value is None)
        raise ModelError(
            f"The files of {spec.model} do not say how its vectors are made, and e5spark does not "
            f"guess. Give what is missing (for instance {asked}), or say which published "
            "checkpoint it holds, for instance checkpoint='intfloat/multilingual-e5-small'."
        )
    if spec.max_tokens is not None and spec.max_tokens > most:
        raise OptionError(
            f"max_tokens is {spec.max_tokens}, but {spec.model} takes at most {most} tokens."
        )
    if spec.long_text != "truncate" and 4 * spec.overlap > (spec.max_tokens or most):
        raise OptionError(
            f"overlap is {spec.overlap}, but a window has {spec.max_tokens or most} tokens; it "
            "may be a quarter of them at most."
        )
    return Recipe(
        dim=_dim(spec, said.dim),
        pooling=_checked_pooling(pooling),
        prompts=dict(role_prompts),
        max_tokens=spec.max_tokens or most,
        normalize=normalize,
        long_text=spec.long_text,
        overlap=0 if spec.long_text == "truncate" else spec.overlap,
        already_prompted=spec.already_prompted,
    )


def _dim(spec: ModelSpec, whole: int) -> int:
    """The dim of a vector: the checkpoint's, or fewer where it was trained for that, or forced."""
    dim = spec.dim or whole
    known = known_checkpoint(spec)
    trained = (whole, *known.matryoshka_dims) if known is not None else (whole,)
    if dim > whole:
        raise OptionError(f"dim is {dim}, but {spec.model} has {whole} dimensions.")
    if dim in trained or spec.force_dim:
        return dim
    if known is not None and known.matryoshka_dims:
        published = ", ".join(map(str, known.matryoshka_dims))
        why = f"was trained for the dims {published} only"
    elif known is not None and known.matryoshka:
        ladder = ", ".join(str(whole >> halvings) for halvings in range(1, 4))
        why = (
            "was trained for shorter vectors, but its authors name no dims; the halvings "
            f"({ladder}) are likely, and untested by them"
        )
    else:
        why = "was not trained for shorter vectors, which lose quality when cut"
    raise OptionError(f"dim is {dim}, but {spec.model} {why}. Force it with force_dim = true.")


def _checked_pooling(pooling: str) -> registry.Pooling:
    for known in registry.POOLINGS:
        if pooling == known:
            return known
    raise ModelError(f"Pooling {pooling!r} is not supported; use mean, cls or last.")


def _check_same(known: Checkpoint, config: dict[str, Any], directory: Path) -> None:
    found = (config.get("model_type"), config.get("hidden_size"), config.get("num_hidden_layers"))
    needed = (known.architecture, known.shape.hidden, known.shape.layers)
    if found != needed:
        raise ModelError(
            f"{directory} does not hold {known.name}: its config.json says {found[0]}, "
            f"{found[1]} wide, {found[2]} layers; {known.name} is {needed[0]}, {needed[1]} wide, "
            f"{needed[2]} layers."
        )


def _positions(config: dict[str, Any], directory: Path) -> int:
    """Most tokens that the position embeddings can number.

    XLM-R counts positions from padding_idx + 1, so its 514 rows serve 512 tokens
    (transformers' create_position_ids_from_input_ids).
    """
    kind = config.get("model_type")
    rows = config.get("max_position_embeddings")
    if kind not in registry.ARCHITECTURES or not isinstance(rows, int):
        raise ModelError(
            f"{directory} holds a {kind!r} model; e5spark runs {', '.join(registry.ARCHITECTURES)}."
        )
    return rows - 2 if kind == "xlm-roberta" else rows


def _pooling(directory: Path) -> str | None:
    config = read_json(directory / "config.json", {})
    if config.get("include_prompt") is False:
        raise ModelError(
            f"{directory} leaves the prompt out of its pooling, which e5spark does not do."
        )
    if "pooling_mode" in config:  # sentence-transformers 5.2 and later: a name, or several
        given = config["pooling_mode"]
        modes = [given] if isinstance(given, str) else given
    else:
        modes = [
            key.removeprefix("pooling_mode_")
            for key, value in config.items()
            if key.startswith("pooling_mode_") and value is True
        ]
    return "+".join(_ST_POOLING.get(mode, mode) for mode in modes) or None


_ST_POOLING = {
    "mean_tokens": "mean",
    "mean": "mean",
    "cls_token": "cls",
    "cls": "cls",
    "lasttoken": "last",
}


def _prompts(config: dict[str, Any]) -> dict[str, str] | None:
    """The two prompts of config_sentence_transformers.json, or None unless it has both."""
    given = config.get("prompts")
    if not isinstance(given, dict):
        return None
    passage = given.get("passage", given.get("document", given.get("corpus")))
    if given.get("query") is None or passage is None:
        return None
    return {"query": str(given["query"]), "passage": str(passage)}


def _token_limit(directory: Path) -> int | None:
    limits = [
        read_json(directory / "sentence_bert_config.json", {}).get("max_seq_length"),
        # Tokenizers without a limit carry 1e30 here.
        read_json(directory / "tokenizer_config.json", {}).get("model_max_length"),
    ]
    counts = [limit for limit in limits if isinstance(limit, int) and limit < 1 << 30]
    return min(counts, default=None)
