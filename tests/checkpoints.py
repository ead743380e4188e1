"""Random-weight checkpoints on disk in the shapes of the E5 family, built offline.

The files are those that the published checkpoints ship; weights and tokenizers depend on nothing
but the seed and `tests/texts.py`.
"""

import io
import json
import math
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any, Literal

import sentencepiece
import torch
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    XLMRobertaConfig,
    XLMRobertaModel,
    XLMRobertaTokenizer,
)
from transformers.convert_slow_tokenizer import XLMRobertaConverter

from tests.texts import SENTENCES, mixed_texts

# The hub holds both: "rebuilt" is what transformers 5 makes of any XLM-R tokenizer.json and saves,
# "converted" is what transformers 4 wrote. They split a few rare texts differently.
TokenizerJson = Literal["rebuilt", "converted"]

MAX_TOKENS = 512
SPM_FILE = "sentencepiece.bpe.model"
WORDPIECES = 3000
UNIGRAM_PIECES = 3000


def bert_wordpiece(
    directory: Path,
    *,
    layers: int = 2,
    hidden: int = 32,
    heads: int = 4,
    ffn: int = 64,
    seed: int = 0,
    vocab_size: int | None = None,
) -> Path:
    """The shape of e5-small-v2: BERT with a WordPiece uncased tokenizer."""
    vocabulary = _wordpiece_vocabulary()
    config = BertConfig(
        vocab_size=vocab_size or len(vocabulary),
        **_measures(layers, hidden, heads, ffn),
    )
    _save_model(BertModel, config, directory, seed)
    tokenizer = BertTokenizer(
        vocab={piece: position for position, piece in enumerate(vocabulary)},
        model_max_length=MAX_TOKENS,
    )
    tokenizer.save_pretrained(directory)
    (directory / "vocab.txt").write_text("".join(f"{piece}\n" for piece in vocabulary))
    return directory


def xlmr_unigram(
    directory: Path,
    *,
    layers: int = 2,
    hidden: int = 32,
    heads: int = 4,
    ffn: int = 64,
    seed: int = 0,
    vocab_size: int | None = None,
    tokenizer_json: TokenizerJson = "rebuilt",
) -> Path:
    """The shape of multilingual-e5-large: XLM-RoBERTa with its SentencePiece unigram tokenizer."""
    pieces = _save_unigram_tokenizer(directory, tokenizer_json)
    config = XLMRobertaConfig(
        vocab_size=vocab_size or pieces,
        max_position_embeddings=MAX_TOKENS + 2,
        type_vocab_size=1,
        layer_norm_eps=1e-5,
        **_measures(layers, hidden, heads, ffn),
    )
    _save_model(XLMRobertaModel, config, directory, seed)
    return directory


def bert_unigram(
    directory: Path,
    *,
    layers: int = 2,
    hidden: int = 32,
    heads: int = 4,
    ffn: int = 64,
    seed: int = 0,
    vocab_size: int | None = None,
    tokenizer_json: TokenizerJson = "rebuilt",
) -> Path:
    """The shape of multilingual-e5-small: BERT (pad id 0) with XLM-R's tokenizer (pad id 1)."""
    pieces = _save_unigram_tokenizer(directory, tokenizer_json)
    config = BertConfig(
        vocab_size=vocab_size or pieces,
        tokenizer_class="XLMRobertaTokenizer",
        **_measures(layers, hidden, heads, ffn),
    )
    _save_model(BertModel, config, directory, seed)
    return directory


SMALL = {"layers": 12, "hidden": 384, "heads": 12, "ffn": 1536}
BASE = {"layers": 12, "hidden": 768, "heads": 12, "ffn": 3072}
LARGE = {"layers": 24, "hidden": 1024, "heads": 16, "ffn": 4096}

TRUE_SIZES: dict[str, Callable[..., Path]] = {
    "intfloat/e5-small-v2": partial(bert_wordpiece, **SMALL, vocab_size=30522),
    "intfloat/e5-base-v2": partial(bert_wordpiece, **BASE, vocab_size=30522),
    "intfloat/e5-large-v2": partial(bert_wordpiece, **LARGE, vocab_size=30522),
    "intfloat/multilingual-e5-small": partial(bert_unigram, **SMALL, vocab_size=250037),
    "avditvs/multilingual-e5-small-distill-base": partial(bert_unigram, **SMALL, vocab_size=250037),
    "intfloat/multilingual-e5-base": partial(xlmr_unigram, **BASE, vocab_size=250002),
    "intfloat/multilingual-e5-large": partial(xlmr_unigram, **LARGE, vocab_size=250002),
    "intfloat/multilingual-e5-large-instruct": partial(xlmr_unigram, **LARGE, vocab_size=250002),
}


def true_size(directory: Path, checkpoint: str, *, seed: int = 0) -> Path:
    """One of TRUE_SIZES in full; embedding rows past the small tokenizer are never looked up."""
    return TRUE_SIZES[checkpoint](directory, seed=seed)


def sentence_transformers_layout(
    directory: Path,
    *,
    pooling: Literal["mean", "cls", "lasttoken"] = "mean",
    normalize: bool = True,
    max_tokens: int | None = None,
    prompts: Mapping[str, str] | None = None,
) -> Path:
    """Add to a plain checkpoint the files that make it a sentence-transformers model."""
    hidden = json.loads((directory / "config.json").read_text())["hidden_size"]
    modules = ["Transformer", "Pooling", "Normalize"] if normalize else ["Transformer", "Pooling"]
    flags = {"mean": "mean_tokens", "cls": "cls_token", "lasttoken": "lasttoken"}
    _write_json(directory / "modules.json", [_module(*named) for named in enumerate(modules)])
    _write_json(
        directory / "1_Pooling" / "config.json",
        {"word_embedding_dimension": hidden}
        | {f"pooling_mode_{flag}": mode == pooling for mode, flag in flags.items()},
    )
    _write_json(
        directory / "sentence_bert_config.json",
        {"max_seq_length": max_tokens or MAX_TOKENS, "do_lower_case": False},
    )
    _write_json(
        directory / "config_sentence_transformers.json",
        {"__version__": {}, "prompts": dict(prompts or {}), "default_prompt_name": None},
    )
    return directory


def preset_padding(directory: Path, *, tokens: int = 128) -> Path:
    """Store truncation and fixed padding in tokenizer.json, as all-MiniLM-L6-v2 does."""
    path = str(directory / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    pad = json.loads((directory / "tokenizer_config.json").read_text())["pad_token"]
    tokenizer.enable_truncation(tokens)
    tokenizer.enable_padding(pad_id=tokenizer.token_to_id(pad), pad_token=pad, length=tokens)
    tokenizer.save(path)
    return directory


def _module(index: int, kind: str) -> dict[str, Any]:
    return {
        "idx": index,
        "name": str(index),
        "path": f"{index}_{kind}" if index else "",
        "type": f"sentence_transformers.models.{kind}",
    }


def _write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2))


def _measures(layers: int, hidden: int, heads: int, ffn: int) -> dict[str, int]:
    return {
        "num_hidden_layers": layers,
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": ffn,
    }


def _save_model(
    kind: type[PreTrainedModel], config: PreTrainedConfig, directory: Path, seed: int
) -> None:
    # Made without memory first: transformers' own initialisation would cost as much as ours.
    with torch.device("meta"):
        model = kind(config)
    model.to_empty(device="cpu")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            _fill(name, parameter, generator)
    model.save_pretrained(directory)


def _fill(name: str, parameter: torch.Tensor, generator: torch.Generator) -> None:
    """Random everywhere, biases and LayerNorms included, so that no term can be left out unseen."""
    if name.endswith("bias"):
        parameter.normal_(0, 0.1, generator=generator)
    elif "LayerNorm" in name:
        parameter.normal_(1, 0.1, generator=generator)
    elif "embeddings" in name:
        parameter.normal_(0, 1 if "word" in name else 0.3, generator=generator)
    else:
        # With full-strength branches the tokens of a text converge over 24 layers, and a wrong
        # pooling would give the right vector.
        gain = 0.3 if "output.dense" in name else 1.0
        parameter.normal_(0, gain / math.sqrt(parameter.shape[1]), generator=generator)


def _corpus() -> list[str]:
    sentences = [sentence for texts in SENTENCES.values() for sentence in texts]
    return sentences + mixed_texts(1000, seed=1, longest=500)


@cache
def _wordpiece_vocabulary() -> list[str]:
    """Pieces with the special tokens at bert-base-uncased's ids: 0, then 100 to 103."""
    special = ["[PAD]", *(f"[unused{n}]" for n in range(99)), "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    # Letters left to the trainer get ids in the order of a hash map, another in each process.
    letters = _letters(tokenizer)
    trainer = trainers.WordPieceTrainer(
        vocab_size=WORDPIECES,
        special_tokens=[*special, *letters, *(f"##{letter}" for letter in letters)],
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    vocabulary = tokenizer.get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)


def _letters(tokenizer: Tokenizer) -> list[str]:
    normalised = "".join(tokenizer.normalizer.normalize_str(text) for text in _corpus())
    return sorted(letter for letter in set(normalised) if not letter.isspace())


@cache
def _sentencepiece_model() -> bytes:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(_corpus()),
        model_writer=model,
        model_type="unigram",
        vocab_size=UNIGRAM_PIECES,
        hard_vocab_limit=False,
        character_coverage=1.0,
        normalization_rule_name="nmt_nfkc",
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def _save_unigram_tokenizer(directory: Path, tokenizer_json: TokenizerJson) -> int:
    """Write the tokenizer's files and return its number of pieces."""
    tokenizer = _unigram_tokenizer(tokenizer_json)
    tokenizer.save_pretrained(directory)
    (directory / SPM_FILE).write_bytes(_sentencepiece_model())
    _write_json(directory / "tokenizer_config.json", _published_settings())
    return len(tokenizer)


@cache
def _unigram_tokenizer(tokenizer_json: TokenizerJson) -> PreTrainedTokenizerBase:
    load = _rebuilt_tokenizer if tokenizer_json == "rebuilt" else _converted_tokenizer
    # An empty folder: from_pretrained would prefer a tokenizer.json to the SentencePiece model.
    with TemporaryDirectory() as folder:
        (Path(folder) / SPM_FILE).write_bytes(_sentencepiece_model())
        return load(Path(folder))


def _rebuilt_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    return XLMRobertaTokenizer.from_pretrained(directory, **_unigram_settings())


def _converted_tokenizer(directory: Path) -> PreTrainedTokenizerBase:
    slow = SimpleNamespace(
        vocab_file=str(directory / SPM_FILE),
        convert_tokens_to_ids={"<s>": 0, "</s>": 2}.__getitem__,
    )
    converted = XLMRobertaConverter(slow).converted()
    return PreTrainedTokenizerFast(tokenizer_object=converted, **_unigram_settings())


def _unigram_settings() -> dict[str, Any]:
    return {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "cls_token": "<s>",
        "sep_token": "</s>",
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "mask_token": AddedToken("<mask>", lstrip=True, special=True),
        "model_max_length": MAX_TOKENS,
    }


def _published_settings() -> dict[str, Any]:
    mask = {"__type": "AddedToken", "content": "<mask>", "lstrip": True, "rstrip": False}
    return _unigram_settings() | {"mask_token": mask, "tokenizer_class": "XLMRobertaTokenizer"}
