"""Checkpoints of true size with random weights, made offline: values do not affect the speed."""

import json
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from e5spark.benchmark.shapes import Shape
from e5spark.encoder.packages import require

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

MAX_TOKENS = 512
PROMPTS = {"query": "query: ", "passage": "passage: "}
_FORMAT = 1  # of the directories; part of their names, so that older ones are not used
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,:;!?'-"


def checkpoint(shape: Shape, directory: Path, *, name: str, seed: int = 0) -> Path:
    """Returns the directory of a sentence-transformers checkpoint; makes it if it is missing.

    Args:
        shape: Its size; the large multilingual one takes 2.2 GB on disk.
        directory: The parent directory of all checkpoints.
        name: The name of the shape, with which the directory's name begins.
        seed: The seed of the weights.

    Raises:
        OptionError: If torch or transformers is not installed.
    """
    final = directory / f"{name}-{_FORMAT}-{seed}"
    if not final.is_dir():
        require(("torch", "transformers"), extra="torch", purpose="A model with random weights")
        directory.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=directory))
        _save_model(shape, partial, seed)
        _tokenizer(shape).save_pretrained(partial)
        _sentence_transformers_layout(partial, shape.hidden)
        try:
            os.rename(partial, final)  # complete, or absent
        except OSError:  # another run was faster
            shutil.rmtree(partial)
    return final


def words(count: int) -> list[str]:
    """Returns this many distinct invented words, short ones first."""
    syllables = [consonant + vowel for consonant in "bcdfghjklmnprstvwxyz" for vowel in "aeiou"]
    random = np.random.default_rng(0)
    result: list[str] = []
    for length in (2, 3, 4):
        numbers = random.permutation(len(syllables) ** min(length, 3))[: count - len(result)]
        for number in numbers:
            word = ""
            for _ in range(min(length, 3)):
                number, digit = divmod(int(number), len(syllables))
                word += syllables[digit]
            result.append(word + "n" * (length - 3))
    return result[:count]


def _save_model(shape: Shape, directory: Path, seed: int) -> None:
    import torch
    from transformers import BertConfig, BertModel, XLMRobertaConfig, XLMRobertaModel, utils

    utils.logging.disable_progress_bar()
    sizes: dict[str, Any] = {
        "vocab_size": shape.embeddings,
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden,
        "num_attention_heads": shape.heads,
        "intermediate_size": shape.ffn,
    }
    # On the meta device, because transformers' own initialisation would cost as much as ours below.
    with torch.device("meta"):
        if shape.architecture == "bert":
            model = BertModel(BertConfig(**sizes))
        else:
            model = XLMRobertaModel(
                XLMRobertaConfig(max_position_embeddings=MAX_TOKENS + 2, type_vocab_size=1, **sizes)
            )
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _fill(name, parameter, generator)
    model.save_pretrained(directory)


def _fill(name: str, parameter: "torch.Tensor", generator: "torch.Generator") -> None:
    """Fills in values of ordinary size: values that overflow or vanish change the speed."""
    if name.endswith("bias"):
        parameter.normal_(0, 0.1, generator=generator)
    elif "LayerNorm" in name:
        parameter.normal_(1, 0.1, generator=generator)
    elif "embeddings" in name:
        parameter.normal_(0, 1 if "word" in name else 0.3, generator=generator)
    else:
        gain = 0.3 if "output.dense" in name else 1.0
        parameter.normal_(0, gain / math.sqrt(parameter.shape[1]), generator=generator)


def _tokenizer(shape: Shape) -> "PreTrainedTokenizerBase":
    from transformers import BertTokenizer, XLMRobertaTokenizer

    if shape.tokenizer == "wordpiece":
        vocabulary = {piece: number for number, piece in enumerate(_wordpieces(shape.pieces))}
        return BertTokenizer(vocab=vocabulary, model_max_length=MAX_TOKENS)
    return XLMRobertaTokenizer(vocab=_unigrams(shape.pieces), model_max_length=MAX_TOKENS)


def _wordpieces(count: int) -> list[str]:
    """Special tokens with bert-base-uncased's ids, letters, whole words, ends of words."""
    pieces = ["[PAD]", *(f"[unused{n}]" for n in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    pieces += [*_LETTERS, *(f"##{letter}" for letter in _LETTERS), "query", "passage"]
    remaining = count - len(pieces)
    ends = words(remaining // 4)
    return pieces + words(remaining - len(ends)) + [f"##{word}" for word in ends]


def _unigrams(count: int) -> list[tuple[str, float]]:
    """Special tokens with XLM-R's ids, letters, words with and without a space, by frequency."""
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    letters = ["▁", *_LETTERS]
    remaining = count - len(special) - len(letters) - 3  # the two roles, and <mask> at the end
    continuations = words(remaining // 4)
    starts = [f"▁{word}" for word in words(remaining - len(continuations))]
    pieces = ["▁query", "▁passage", *starts, *continuations]
    scored = [(piece, -math.log(rank + 10)) for rank, piece in enumerate(pieces)]
    return [
        *((piece, 0.0) for piece in special),
        *((letter, -20.0) for letter in letters),
        *scored,
        ("<mask>", 0.0),
    ]


def _sentence_transformers_layout(directory: Path, hidden: int) -> None:
    kinds = ["Transformer", "Pooling", "Normalize"]
    modules = [
        {
            "idx": index,
            "name": str(index),
            "path": f"{index}_{kind}" if index else "",
            "type": f"sentence_transformers.models.{kind}",
        }
        for index, kind in enumerate(kinds)
    ]
    files: dict[str, object] = {
        "modules.json": modules,
        "1_Pooling/config.json": {
            "word_embedding_dimension": hidden,
            "pooling_mode_mean_tokens": True,
            "pooling_mode_cls_token": False,
            "pooling_mode_lasttoken": False,
        },
        "sentence_bert_config.json": {"max_seq_length": MAX_TOKENS, "do_lower_case": False},
        "config_sentence_transformers.json": {
            "__version__": {},
            "prompts": PROMPTS,
            "default_prompt_name": None,
        },
    }
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content, indent=2), "utf-8")
