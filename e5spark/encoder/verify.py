"""e5spark verify: the engine's vectors compared with transformers', on texts in many scripts.

The reference is written to be obviously right and shares no code with the engine: one text at a
time, so that there is no padding and no mask, in fp32. Importing this module loads no engine.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from e5spark.encoder.encoder import Encoder
from e5spark.encoder.engine import Vectors
from e5spark.encoder.loading import load
from e5spark.encoder.packages import missing, require
from e5spark.encoder.tokenizer import appends_eos
from e5spark.errors import GateError, OptionError, TextError
from e5spark.model import prepared, prompts
from e5spark.model.checkpoint import Files
from e5spark.model.registry import Recipe
from e5spark.model.resolve import resolve
from e5spark.model.spec import ModelSpec

log = logging.getLogger(__name__)

# The documented promises, by precision.
LARGEST_DIFFERENCE = {"fp32": 1e-5}
WORST_COSINE = {"fp32": 0.999999, "bf16": 0.9995}
MEAN_COSINE = {"fp32": 0.999999, "bf16": 0.9999}

_SENTENCES = (
    "The ferry leaves at seven unless the wind is stronger than forty knots.",
    "Der Zug nach Zürich fällt heute wegen Bauarbeiten aus.",
    "La recette demande trois œufs, du beurre salé et beaucoup de patience.",
    "Библиотека закрывается в шесть часов вечера.",
    "Το μουσείο είναι ανοιχτό κάθε μέρα εκτός Δευτέρας.",
    "يفتح السوق أبوابه قبل شروق الشمس بقليل.",
    "הגשר נבנה מחדש אחרי השיטפון הגדול.",
    "मानसून के बाद नदी का पानी साफ़ हो जाता है।",
    "รถไฟขบวนสุดท้ายออกเวลาเที่ยงคืน",
    "这座山的北坡常年积雪。",
    "駅前のパン屋は朝六時に開きます。",
    "겨울에는 호수가 두껍게 얼어붙는다.",
    "x = {key: value for key, value in pairs if value is not None}",
    "Prices: 19.99 € → 24,50 €; see https://example.org/a?b=c#d",
    "Family emoji 👨‍👩‍👧 and flags 🇯🇵, ＦＵＬＬＷＩＤＴＨ ｔｅｘｔ, e\u0301 and é.",
    "ok",
)
TEXTS = (
    *_SENTENCES,
    *(" ".join(_SENTENCES[:count]) for count in (2, 4, 8)),
    " ".join(_SENTENCES * 6),  # far beyond 512 tokens: truncated
)


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """The agreement of two sets of vectors of the same texts.

    Attributes:
        largest_difference: The largest difference between two components.
        worst_cosine: The lowest cosine between the two vectors of a text.
        mean_cosine: The mean cosine between the two vectors of a text.
    """

    largest_difference: float
    worst_cosine: float
    mean_cosine: float


def agreement(vectors: Vectors, reference: Vectors) -> Agreement:
    """Returns the agreement of two arrays, row by row.  # (texts, dim) both."""
    left, right = vectors.astype(np.float64), reference.astype(np.float64)
    norms = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    cosines = (left * right).sum(axis=1) / np.maximum(norms, 1e-30)
    return Agreement(
        largest_difference=float(np.abs(left - right).max()),
        worst_cosine=float(cosines.min()),
        mean_cosine=float(cosines.mean()),
    )


def verify(spec: ModelSpec, known_answers: str | None = None) -> dict[str, Any]:
    """Returns the engine's agreement with transformers, sentence-transformers and known answers.

    Args:
        spec: The checkpoint and the precision to verify.
        known_answers: A JSON file of texts, with the scores that the checkpoint's authors
            published for them.

    Raises:
        GateError: If a promise is broken; the message has the figures.
        ModelError: If the checkpoint is unknown, absent, altered or incomplete.
        OptionError: If the known answers cannot be read, or a package is not installed.
    """
    require(("torch", "transformers"), extra="torch", purpose="e5spark verify")
    spec = replace(spec, long_text="truncate", output_type="float32", calibration=None)
    resolved = resolve(spec)
    files, recipe, precision = resolved.files, resolved.recipe, resolved.spec.precision
    if prepared.read(files.model) is not None:
        raise OptionError(
            f"{spec.model} is a prepared model, which transformers cannot run; verify the "
            "checkpoint that it was prepared from (--set model.engine=openvino)."
        )
    loaded = load(files, engine=spec.engine, precision=precision, device=spec.device, threads=None)
    encoder = Encoder(loaded, recipe, spec)
    document: dict[str, Any] = {"model": spec.model, "precision": precision, "texts": len(TEXTS)}
    for role in prompts.ROLES:
        prefix = prompts.prefix(recipe.prompts, role, _instruction(recipe, role))
        try:
            vectors = encoder.encode(TEXTS, role=role, instruction=_instruction(recipe, role))
        except TextError as error:
            raise GateError(f"{spec.model} in {precision}, {role}: {error}") from error
        references = {"transformers": _transformers(files, recipe, prefix)}
        if _has_sentence_transformers(files, recipe):
            references["sentence_transformers"] = _sentence_transformers(files, recipe, prefix)
        for name, reference in references.items():
            result = agreement(vectors, reference)
            document[f"{role}_{name}"] = vars(result)
            _check(result, precision, f"{spec.model} in {precision}, {role}, against {name}")
    if known_answers is not None:
        document["known_answers"] = _known_answers(encoder, known_answers)
    return document


def _check(result: Agreement, precision: str, comparison: str) -> None:
    log.info(
        "%s: largest difference %.2g, worst cosine %.7f, mean cosine %.7f.",
        comparison,
        result.largest_difference,
        result.worst_cosine,
        result.mean_cosine,
    )
    holds = (
        result.largest_difference <= LARGEST_DIFFERENCE.get(precision, np.inf)
        and result.worst_cosine >= WORST_COSINE[precision]
        and result.mean_cosine >= MEAN_COSINE[precision]
    )
    if not holds:  # the inverse comparisons would be false for NaN
        raise GateError(
            f"{comparison}: the largest difference is {result.largest_difference:.2g}, the worst "
            f"cosine {result.worst_cosine:.7f}, the mean {result.mean_cosine:.7f}; the promises "
            f"are {LARGEST_DIFFERENCE.get(precision, 'any')}, {WORST_COSINE[precision]} and "
            f"{MEAN_COSINE[precision]}."
        )


def _instruction(recipe: Recipe, role: str) -> str | None:
    return prompts.RETRIEVAL_TASK if "{task}" in recipe.prompts[role] else None


def _transformers(files: Files, recipe: Recipe, prefix: str) -> Vectors:
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(files.tokenizer, trust_remote_code=False)
    model = AutoModel.from_pretrained(
        files.model, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    ).eval()
    room = recipe.max_tokens - (1 if appends_eos(files.model) else 0)
    vectors = []
    for text in TEXTS:
        ids = tokenizer(prefix + text, truncation=True, max_length=room)["input_ids"]
        if appends_eos(files.model) and ids[-1] != tokenizer.eos_token_id:
            ids = [*ids, tokenizer.eos_token_id]
        with torch.inference_mode():
            hidden = model(input_ids=torch.tensor([ids])).last_hidden_state[0]  # (tokens, hidden)
        pooled = {"mean": hidden.mean(dim=0), "cls": hidden[0], "last": hidden[-1]}[recipe.pooling]
        cut = pooled[: recipe.dim]
        unit = torch.nn.functional.normalize(cut, dim=0) if recipe.normalize else cut
        vectors.append(unit.numpy())
    return np.stack(vectors)


def _has_sentence_transformers(files: Files, recipe: Recipe) -> bool:
    is_comparable = recipe.pooling != "last" and files.tokenizer == files.model
    return is_comparable and not missing(["sentence_transformers"])


def _sentence_transformers(files: Files, recipe: Recipe, prefix: str) -> Vectors:
    from sentence_transformers import SentenceTransformer

    try:
        from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    except ImportError:  # older releases
        from sentence_transformers.models import Pooling, Transformer

    transformer = Transformer(str(files.model))
    transformer.max_seq_length = recipe.max_tokens
    hidden = transformer.auto_model.config.hidden_size
    pooling = Pooling(hidden, pooling_mode=recipe.pooling)
    model = SentenceTransformer(modules=[transformer, pooling], device="cpu")
    vectors: npt.NDArray[np.float32] = model.encode(
        list(TEXTS),
        prompt=prefix,
        truncate_dim=recipe.dim,
        normalize_embeddings=recipe.normalize,
        show_progress_bar=False,
    )
    return vectors


def _known_answers(encoder: Encoder, path: str) -> dict[str, float]:
    """The largest difference from published scores, and the tolerance.

    The file: ``{"rows": [TEXT, ...], "columns": [TEXT, ...], "scores": [[...], ...], "scale": 100,
    "tolerance": 0.01}``, where TEXT is ``{"text": ..., "role": ..., "instruction": ...}`` and a
    score is ``scale`` times the cosine of a row and a column.
    """
    try:
        document = json.loads(Path(path).read_text("utf-8"))
        rows, columns = (_encoded(encoder, document[key]) for key in ("rows", "columns"))
        published = np.array(document["scores"], dtype=np.float64)
        scores = float(document.get("scale", 1)) * (rows @ columns.T).astype(np.float64)
        tolerance = float(document["tolerance"])
        if published.shape != scores.shape or not np.isfinite(published).all():
            raise ValueError(f"scores must be {len(rows)} lists of {len(columns)} numbers")
        difference = float(np.abs(scores - published).max())
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OptionError(
            f"The known answers {path} cannot be used ({type(error).__name__}: {error}); the file "
            "needs rows, columns, scores and tolerance."
        ) from error
    log.info("%s: the largest difference from a published score is %.3g.", path, difference)
    if not difference <= tolerance:
        raise GateError(
            f"{path}: a score differs by {difference:.4g} from the published one; "
            f"{tolerance} is allowed."
        )
    return {"largest_difference": difference, "tolerance": tolerance}


def _encoded(encoder: Encoder, texts: Sequence[Mapping[str, str]]) -> Vectors:
    return np.concatenate(
        [
            encoder.encode([text["text"]], role=text["role"], instruction=text.get("instruction"))
            for text in texts
        ]
    )
