"""How vectors are computed, from the user's options, the registry or the checkpoint's files."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from e5spark.errors import ModelError, OptionError
from e5spark.model import registry
from e5spark.model.architecture import ModelConfig, read_config
from e5spark.model.checkpoint import known_checkpoint
from e5spark.model.json_file import read_json
from e5spark.model.registry import Checkpoint, Recipe
from e5spark.model.spec import ModelSpec


def resolve_recipe(spec: ModelSpec, directory: Path | None = None) -> Recipe:
    """Returns the recipe of the checkpoint's vectors.

    The user's options take precedence, then the registry's entry for a published checkpoint or, for
    any other, the checkpoint's own files. Nothing is guessed.

    Args:
        spec: The model as the user described it.
        directory: The checkpoint's directory; None for a published checkpoint that this machine
            does not have: its recipe is the registry's.

    Raises:
        ModelError: If the files are not the published checkpoint's, or neither they nor the user
            say how vectors are computed.
        OptionError: If an option contradicts the checkpoint.
    """
    published = known_checkpoint(spec)
    if published is None and directory is None:
        raise ModelError(
            f"{spec.model!r} is not on this machine, and e5spark does not know it. Provide its "
            "directory on the driver."
        )
    declared = DeclaredRecipe.of_registry(published) if published else DeclaredRecipe()
    limit = None
    if directory is not None:
        config = read_config(directory)
        limit = config.max_tokens
        if published is not None:
            _check_same(published, config, directory)
        else:
            declared = DeclaredRecipe.of_files(directory, config)
    return _recipe(spec, declared, limit)


@dataclass(frozen=True, kw_only=True)
class DeclaredRecipe:
    """A recipe before the user's options; None where neither registry nor files declare a value."""

    dim: int | None = None
    pooling: str | None = None
    normalize: bool | None = None
    prompts: dict[str, str] | None = None
    max_tokens: int | None = None

    @classmethod
    def of_registry(cls, published: Checkpoint) -> "DeclaredRecipe":
        """Returns the recipe of a published checkpoint."""
        recipe = published.recipe
        return cls(
            dim=recipe.dim,
            pooling=recipe.pooling,
            normalize=recipe.normalize,
            prompts=dict(recipe.prompts),
            max_tokens=recipe.max_tokens,
        )

    @classmethod
    def of_files(cls, directory: Path, config: ModelConfig) -> "DeclaredRecipe":
        """Returns the recipe that the files declare, in the layout of sentence-transformers.

        Raises:
            ModelError: If they need a module or a pooling that e5spark does not support.
        """
        path = directory / "modules.json"
        try:
            modules = [
                (str(module["type"]).rsplit(".", 1)[-1], _folder(directory, str(module["path"])))
                for module in read_json(path, [])
            ]
        except (KeyError, TypeError) as error:
            raise ModelError(f"{path} has a module without type and path. Fetch it again.") from (
                error
            )
        kinds = [kind for kind, _ in modules]
        unsupported = set(kinds) - {"Transformer", "Pooling", "Normalize"}
        if unsupported:
            raise ModelError(
                f"{path} has a {sorted(unsupported)[0]} module, which e5spark does not run; it "
                "runs Transformer, Pooling and Normalize."
            )
        poolings = [_pooling(folder) for kind, folder in modules if kind == "Pooling"]
        return cls(
            dim=int(config.values["hidden_size"]),
            pooling=poolings[0] if poolings else None,
            normalize="Normalize" in kinds if modules else None,
            prompts=_prompts(read_json(directory / "config_sentence_transformers.json", {})),
            max_tokens=_token_limit(directory),
        )


def _folder(directory: Path, name: str) -> Path:
    """The folder of a module, which must be inside of the checkpoint's directory."""
    parts = PurePosixPath(name.replace("\\", "/")).parts
    if ".." in parts or "\0" in name or name.startswith(("/", "\\")):
        raise ModelError(
            f"{directory}/modules.json has a module in {name!r}, outside of its directory; it "
            "cannot be trusted. Fetch it again."
        )
    return directory / name


def _recipe(spec: ModelSpec, declared: DeclaredRecipe, limit: int | None) -> Recipe:
    pooling = spec.pooling or declared.pooling
    normalize = spec.normalize if spec.normalize is not None else declared.normalize
    role_prompts = spec.prompts if spec.prompts is not None else declared.prompts
    limits = [tokens for tokens in (declared.max_tokens, limit) if tokens is not None]
    max_tokens = min(limits)
    if declared.dim is None or pooling is None or normalize is None or role_prompts is None:
        choices = (
            ("pooling='mean'", pooling),
            ("normalize=True", normalize),
            ("prompts={'query': 'query: ', 'passage': 'passage: '}", role_prompts),
        )
        missing = ", ".join(choice for choice, value in choices if value is None)
        raise ModelError(
            f"The files of {spec.model} do not say how its vectors are computed, and e5spark does "
            f"not guess. Set what is missing (for instance {missing}), or name the published "
            "checkpoint that it holds, for instance checkpoint='intfloat/multilingual-e5-small'."
        )
    if spec.max_tokens is not None and spec.max_tokens > max_tokens:
        raise OptionError(
            f"max_tokens is {spec.max_tokens}, but {spec.model} takes at most {max_tokens} tokens. "
            "Lower it, or leave it out."
        )
    if spec.long_text != "truncate" and 4 * spec.overlap > (spec.max_tokens or max_tokens):
        raise OptionError(
            f"overlap is {spec.overlap}, but a window has {spec.max_tokens or max_tokens} tokens; "
            "use a quarter of them at most."
        )
    return Recipe(
        dim=_dim(spec, declared.dim),
        pooling=_checked_pooling(pooling),
        prompts=dict(role_prompts),
        max_tokens=spec.max_tokens or max_tokens,
        normalize=normalize,
        long_text=spec.long_text,
        overlap=0 if spec.long_text == "truncate" else spec.overlap,
        already_prompted=spec.already_prompted,
    )


def _dim(spec: ModelSpec, full: int) -> int:
    """The dim of a vector: the checkpoint's, or a smaller one if trained for it or forced."""
    dim = spec.dim or full
    published = known_checkpoint(spec)
    trained = (full, *published.matryoshka_dims) if published is not None else (full,)
    if dim > full:
        raise OptionError(f"dim is {dim}, but {spec.model} has {full} dimensions. Lower it.")
    if dim in trained or spec.force_dim:
        return dim
    if published is not None and published.matryoshka_dims:
        dims = ", ".join(map(str, published.matryoshka_dims))
        why = f"was trained for the dims {dims} only"
    elif published is not None and published.matryoshka:
        candidates = ", ".join(str(full >> halvings) for halvings in range(1, 4))
        why = (
            "was trained for shorter vectors, but its authors name no dims; the halvings "
            f"({candidates}) are likely, and untested by them"
        )
    else:
        why = "was not trained for shorter vectors, which lose quality when cut"
    raise OptionError(f"dim is {dim}, but {spec.model} {why}. Force it with force_dim = true.")


def _checked_pooling(pooling: str) -> registry.Pooling:
    for supported in registry.POOLINGS:
        if pooling == supported:
            return supported
    raise ModelError(f"Pooling {pooling!r} is not supported; use mean, cls or last.")


def _check_same(published: Checkpoint, config: ModelConfig, directory: Path) -> None:
    """Raises unless config.json has the values of the published checkpoint."""
    different = [
        f"{key} {config.values.get(key)!r} (not {value!r})"
        for key, value in published.config.items()
        if config.values.get(key) != value
    ]
    if different:
        raise ModelError(
            f"{directory} does not hold {published.name}: its config.json has "
            f"{', '.join(different)}. Name the checkpoint that it holds, or fetch it again."
        )


def _pooling(directory: Path) -> str | None:
    config = read_json(directory / "config.json", {})
    if config.get("include_prompt") is False:
        raise ModelError(
            f"{directory} leaves the prompt out of its pooling, which e5spark does not do."
        )
    if "pooling_mode" in config:  # sentence-transformers 5.2 and later: a name, or several
        declared = config["pooling_mode"]
        modes = [declared] if isinstance(declared, str) else declared
    else:
        modes = [
            key.removeprefix("pooling_mode_")
            for key, value in config.items()
            if key.startswith("pooling_mode_") and value is True
        ]
    return "+".join(_ST_POOLING.get(str(mode), str(mode)) for mode in modes) or None


_ST_POOLING = {
    "mean_tokens": "mean",
    "mean": "mean",
    "cls_token": "cls",
    "cls": "cls",
    "lasttoken": "last",
}


def _prompts(config: dict[str, Any]) -> dict[str, str] | None:
    """The two prompts of config_sentence_transformers.json, or None unless it has both."""
    prompts = config.get("prompts")
    if not isinstance(prompts, dict):
        return None
    passage = prompts.get("passage", prompts.get("document", prompts.get("corpus")))
    if prompts.get("query") is None or passage is None:
        return None
    if not isinstance(prompts["query"], str) or not isinstance(passage, str):
        raise ModelError(
            "config_sentence_transformers.json has a prompt that is no string. Fetch it again."
        )
    return {"query": prompts["query"], "passage": passage}


def _token_limit(directory: Path) -> int | None:
    limits = [
        read_json(directory / "sentence_bert_config.json", {}).get("max_seq_length"),
        # Tokenizers without a limit have 1e30 here.
        read_json(directory / "tokenizer_config.json", {}).get("model_max_length"),
    ]
    counts = [limit for limit in limits if isinstance(limit, int) and limit < 1 << 30]
    return min(counts, default=None)
