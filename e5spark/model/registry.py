"""The E5 checkpoints as data: what their authors published, and how their vectors are computed.

Sources: the model cards, https://arxiv.org/abs/2212.03533 (E5), https://arxiv.org/abs/2402.05672
(multilingual E5), https://arxiv.org/abs/2401.00368 (E5-mistral). The revisions are the ones
that MTEB's registry pins.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from e5spark.errors import ModelError
from e5spark.model import prompts

Pooling = Literal["mean", "cls", "last"]
TokenizerModel = Literal["WordPiece", "Unigram", "BPE"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)
LongText = Literal["truncate", "split", "mean"]
LONG_TEXTS: tuple[LongText, ...] = get_args(LongText)
AlreadyPrompted = Literal["report", "refuse", "keep"]
ALREADY_PROMPTED: tuple[AlreadyPrompted, ...] = get_args(AlreadyPrompted)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a text becomes a vector, apart from the weights: all of it is part of the fingerprint.

    Attributes:
        dim: Number of components; a vector is the first ``dim`` components of the checkpoint's.
        pooling: How the token vectors become one vector: their mean, the first or the last.
        prompts: Role to prefix; ``{task}`` in a prefix is replaced by the instruction.
        max_tokens: Maximum number of tokens of a text, prompt and special tokens included; the
            rest is handled as ``long_text`` says.
        normalize: Whether vectors have unit L2 norm.
        long_text: How to handle a longer text: cut it, split it, or take the mean of its windows.
        overlap: Tokens that neighbouring windows share; 0 where texts are cut.
        already_prompted: How to handle a text that already begins with a prompt.
    """

    dim: int
    pooling: Pooling
    prompts: Mapping[str, str]
    max_tokens: int
    normalize: bool = True
    long_text: LongText = "truncate"
    overlap: int = 0
    already_prompted: AlreadyPrompted = "report"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """The sizes of a transformer: layers, hidden width, attention heads, feed-forward width."""

    layers: int
    hidden: int
    heads: int
    ffn: int


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A published checkpoint.

    Attributes:
        name: Its name on the hub.
        architecture: The ``model_type`` of its config.json.
        shape: Its sizes.
        vocab: Rows of the token embedding.
        details: Further values of its config.json that decide a vector.
        tokenizer_model: The model in its tokenizer.json.
        recipe: How its vectors are computed.
        revision: The commit it is pinned to; None if e5spark knows none and the caller pins one.
        languages: The languages that its authors trained it for.
        tokenizer: The checkpoint whose tokenizer it uses, if it has none of its own.
        weights_sha256: Hash of model.safetensors, if known.
        content_sha256: Identity of its weights by ``e5spark.model.content``, if known: files that
            do not say how vectors are computed, as in a jar, are recognised by it.
        matryoshka: Whether it was trained so that the first components alone are a usable vector.
        matryoshka_dims: The dims that its authors name; empty if they name none.
        pair_cosine: The range of the mean cosine of random pairs of texts of a corpus; None if it
            is not known.
    """

    name: str
    architecture: str
    shape: Shape
    vocab: int
    details: Mapping[str, Any]
    tokenizer_model: TokenizerModel
    recipe: Recipe
    revision: str | None = None
    languages: str = "English"
    tokenizer: str | None = None
    weights_sha256: str | None = None
    content_sha256: str | None = None
    matryoshka: bool = False
    matryoshka_dims: tuple[int, ...] = ()
    pair_cosine: tuple[float, float] | None = None

    @property
    def config(self) -> dict[str, Any]:
        """Returns the values of its config.json that decide a vector."""
        return {
            "model_type": self.architecture,
            "num_hidden_layers": self.shape.layers,
            "hidden_size": self.shape.hidden,
            "num_attention_heads": self.shape.heads,
            "intermediate_size": self.shape.ffn,
            "vocab_size": self.vocab,
            **self.details,
        }


_SMALL = Shape(layers=12, hidden=384, heads=12, ffn=1536)
_BASE = Shape(layers=12, hidden=768, heads=12, ffn=3072)
_LARGE = Shape(layers=24, hidden=1024, heads=16, ffn=4096)
_WORDPIECE, _XLMR, _XLMR_IN_BERT = 30_522, 250_002, 250_037
_BERT_DETAILS = {
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
}
_XLMR_DETAILS = {
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 514,
    "type_vocab_size": 1,
    "pad_token_id": 1,
}
_MISTRAL_DETAILS = {"hidden_act": "silu", "rms_norm_eps": 1e-5, "num_key_value_heads": 8}
_MANY_LANGUAGES = "about 100 languages"
# The cards of E5 and multilingual E5 say "around 0.7 to 1.0", because they were trained with a
# temperature of 0.01. Measured for the mean of random pairs of e5-small-v2: 0.699 and 0.711 (STS
# Benchmark in English, as passages and as queries), 0.808 (SciFact), 0.818 (Banking77). Vectors
# that say nothing have a mean near 0 or near 1.
_PAIR_COSINE = (0.6, 0.95)


def _recipe(shape: Shape, role_prompts: Mapping[str, str] = prompts.E5) -> Recipe:
    return Recipe(dim=shape.hidden, pooling="mean", prompts=role_prompts, max_tokens=512)


def _english(
    name: str, shape: Shape, revision: str | None = None, content_sha256: str | None = None
) -> Checkpoint:
    return Checkpoint(
        name=name,
        architecture="bert",
        shape=shape,
        vocab=_WORDPIECE,
        details=_BERT_DETAILS,
        tokenizer_model="WordPiece",
        recipe=_recipe(shape),
        revision=revision,
        content_sha256=content_sha256,
        pair_cosine=_PAIR_COSINE,
    )


def _multilingual(name: str, recipe: Recipe, shape: Shape, revision: str) -> Checkpoint:
    return Checkpoint(
        name=name,
        architecture="xlm-roberta",
        shape=shape,
        vocab=_XLMR,
        details=_XLMR_DETAILS,
        tokenizer_model="Unigram",
        recipe=recipe,
        revision=revision,
        languages=_MANY_LANGUAGES,
        pair_cosine=_PAIR_COSINE,
    )


_ALL = (
    _multilingual(
        "intfloat/multilingual-e5-large",
        _recipe(_LARGE),
        _LARGE,
        "ab10c1a7f42e74530fe7ae5be82e6d4f11a719eb",
    ),
    _multilingual(
        "intfloat/multilingual-e5-large-instruct",
        _recipe(_LARGE, prompts.E5_INSTRUCT),
        _LARGE,
        "baa7be480a7de1539afce709c8f13f833a510e0a",
    ),
    _multilingual(
        "intfloat/multilingual-e5-base",
        _recipe(_BASE),
        _BASE,
        "d13f1b27baf31030b7fd040960d60d909913633f",
    ),
    # BERT architecture (positions from 0, token type ids) with XLM-R's tokenizer.
    Checkpoint(
        name="intfloat/multilingual-e5-small",
        architecture="bert",
        shape=_SMALL,
        vocab=_XLMR_IN_BERT,
        details=_BERT_DETAILS,
        tokenizer_model="Unigram",
        recipe=_recipe(_SMALL),
        revision="fd1525a9fd15316a2d503bf26ab031a61d056e98",
        languages=_MANY_LANGUAGES,
        pair_cosine=_PAIR_COSINE,
    ),
    Checkpoint(
        name="avditvs/multilingual-e5-small-distill-base",
        architecture="bert",
        shape=_SMALL,
        vocab=_XLMR_IN_BERT,
        details=_BERT_DETAILS,
        tokenizer_model="Unigram",
        recipe=_recipe(_SMALL),
        languages=_MANY_LANGUAGES,
        tokenizer="intfloat/multilingual-e5-small",
        matryoshka=True,  # its card names no dims
    ),
    _english(
        "intfloat/e5-small-v2",
        _SMALL,
        "dca8b1a9dae0d4575df2bf423a5edb485a431236",
        content_sha256="0e6062a92d1c67c19d81c4b6d92a4ce13129f9c8418a1a47bab5b40588f64583",
    ),
    _english("intfloat/e5-base-v2", _BASE, "1c644c92ad3ba1efdad3f1451a637716616a20e8"),
    _english("intfloat/e5-large-v2", _LARGE, "b322e09026e4ea05f42beadf4d661fb4e101d311"),
    _english("intfloat/e5-small", _SMALL),
    _english("intfloat/e5-base", _BASE),
    _english("intfloat/e5-large", _LARGE),
    Checkpoint(
        name="intfloat/e5-mistral-7b-instruct",
        architecture="mistral",
        shape=Shape(layers=32, hidden=4096, heads=32, ffn=14_336),
        vocab=32_000,
        details=_MISTRAL_DETAILS,
        tokenizer_model="BPE",
        recipe=Recipe(dim=4096, pooling="last", prompts=prompts.E5_INSTRUCT, max_tokens=4096),
        revision="07163b72af1488142a360786df853f237b1a3ca1",
    ),
    # Not an E5: the quality tests use it, because a Python package ships it.
    Checkpoint(
        name="sentence-transformers/all-MiniLM-L6-v2",
        architecture="bert",
        shape=Shape(layers=6, hidden=384, heads=12, ffn=1536),
        vocab=_WORDPIECE,
        details=_BERT_DETAILS,
        tokenizer_model="WordPiece",
        recipe=Recipe(dim=384, pooling="mean", prompts=prompts.NONE, max_tokens=256),
        weights_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
)

CHECKPOINTS: Mapping[str, Checkpoint] = {checkpoint.name: checkpoint for checkpoint in _ALL}


def find(name: str) -> Checkpoint:
    """Returns the checkpoint of this name.

    Raises:
        ModelError: If there is none; the message suggests the most similar name.
    """
    if name in CHECKPOINTS:
        return CHECKPOINTS[name]
    similar = difflib.get_close_matches(name, CHECKPOINTS, n=1, cutoff=0.6)
    hint = f"Did you mean {similar[0]!r}?" if similar else f"Known: {', '.join(CHECKPOINTS)}."
    raise ModelError(
        f"Unknown model {name!r}. {hint} For a checkpoint of your own, name its directory: an "
        "absolute path, './relative' or 'archive:name'."
    )
