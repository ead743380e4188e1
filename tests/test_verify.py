"""e5spark verify: parity as a command, for every architecture, with known answers, and its gate."""

import importlib
import json
import shutil
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from transformers import MistralConfig, MistralModel, PreTrainedTokenizerFast

from e5spark.cli import main
from e5spark.encoder import Encoder
from e5spark.encoder.engines import packed
from e5spark.encoder.engines.packed import Rows
from e5spark.encoder.tokenizer import Tokenizer as OurTokenizer
from e5spark.encoder.verify import TEXTS
from e5spark.model import prompts
from e5spark.spark import embed
from tests.oracle import FP32_TOLERANCE, INVARIANCE_TOLERANCE, assert_close, vectors_of
from tests.texts import SENTENCES, all_texts

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
SHAPES = ["bert_wordpiece", "xlmr_unigram", "bert_unigram"]
DECODER: dict[str, Any] = {"pooling": "last", "normalize": True, "prompts": prompts.E5_INSTRUCT}
SET = [
    "--set=model.pooling=last",
    "--set=model.normalize=true",
    f"--set=model.prompts.query={json.dumps(prompts.E5_INSTRUCT['query'])}",
    '--set=model.prompts.passage=""',
]
TASK = "Find passages that answer the question"
COMPARED = [
    f"{role}_{rival}"
    for role in prompts.ROLES
    for rival in ("transformers", "sentence_transformers")
]


@pytest.fixture
def verify(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, dict[str, Any]]]:
    """Runs `e5spark verify`, and returns its exit code and its document."""

    def run(*arguments: str) -> tuple[int, dict[str, Any]]:
        capsys.readouterr()
        code = main(["verify", *arguments])
        return code, json.loads(capsys.readouterr().out.splitlines()[-1])

    return run


@pytest.fixture(scope="session")
def mistral(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The shape of e5-mistral-7b-instruct: a decoder whose tokenizer adds <s> and no </s>."""
    directory = tmp_path_factory.mktemp("mistral")
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    letters = sorted({letter for text in all_texts() for letter in text if not letter.isspace()})
    trainer = trainers.BpeTrainer(
        vocab_size=1200,
        special_tokens=["<unk>", "<s>", "</s>", *letters],
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(SENTENCES["english"])], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=512,
    ).save_pretrained(directory)
    config = MistralConfig(
        vocab_size=tokenizer.get_vocab_size(),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        sliding_window=None,
    )
    torch.manual_seed(0)
    model = MistralModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 1 / np.sqrt(parameter.shape[-1]))
    model.save_pretrained(directory)
    return str(directory)


# Checkpoints that pass


@pytest.mark.parametrize("shape", SHAPES)
def test_a_sound_checkpoint_passes(
    verify: Callable[..., Any], models: dict[str, str], shape: str
) -> None:
    code, document = verify(models[shape])
    assert code == 0
    assert (document["status"], document["precision"]) == ("done", "fp32")
    assert document["texts"] == len(TEXTS)
    for name in COMPARED:
        print(name, document[name])
        assert 0 <= document[name]["largest_difference"] <= FP32_TOLERANCE
        assert document[name]["worst_cosine"] > 0.999999
        assert document[name]["worst_cosine"] <= document[name]["mean_cosine"]


@pytest.mark.parametrize(
    "options",
    [
        ["--set=model.dim=8", "--set=model.force_dim=true"],
        ["--set=model.pooling=cls"],
        ["--set=model.normalize=false"],
        ["--set=model.max_tokens=32"],
        ["--set=model.long_text=mean"],
    ],
    ids=str,
)
def test_the_recipe_in_use_is_what_is_verified(
    verify: Callable[..., Any], model: str, options: list[str]
) -> None:
    code, document = verify(model, *options)
    assert code == 0, document
    assert set(COMPARED) <= set(document)


def test_the_built_in_texts_are_of_many_scripts_and_lengths(model: str) -> None:
    tokens = OurTokenizer.load(Path(model)).tokenize(TEXTS, 512)
    assert tokens.n_tokens.min() < 8
    assert tokens.truncated.any()
    assert (~tokens.truncated & (tokens.n_tokens > 100)).any()
    scripts = {unicodedata.name(letter, "?").split()[0] for text in TEXTS for letter in text}
    assert scripts >= {
        *("LATIN", "CYRILLIC", "GREEK", "ARABIC", "HEBREW", "DEVANAGARI", "THAI"),
        *("CJK", "HIRAGANA", "KATAKANA", "HANGUL", "FULLWIDTH", "COMBINING"),
    }


def test_bf16_has_a_tolerance_of_its_own(verify: Callable[..., Any], minilm: str) -> None:
    code, document = verify(
        minilm, f"--set=model.checkpoint={MINILM}", "--set=model.precision=bf16"
    )
    assert code == 0, document
    assert document["precision"] == "bf16"
    assert 0.9995 <= document["query_transformers"]["worst_cosine"] < 0.9999999


def test_altered_weights_of_a_published_checkpoint_do_not_pass(
    verify: Callable[..., Any], minilm: str, tmp_path: Path
) -> None:
    directory = Path(shutil.copytree(minilm, tmp_path / "altered"))
    weights = directory / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    code, document = verify(str(directory), f"--set=model.checkpoint={MINILM}")
    assert (code, "was published with" in document["message"]) == (2, True)


# The decoder


def test_a_decoder_passes(verify: Callable[..., Any], mistral: str) -> None:
    code, document = verify(mistral, *SET)
    assert code == 0, document
    for role in prompts.ROLES:
        assert document[f"{role}_transformers"]["largest_difference"] <= FP32_TOLERANCE


def by_card(directory: str, texts: list[str]) -> np.ndarray:
    """The vectors of e5-mistral's card: </s> appended by hand, the last token's hidden state."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(directory)
    model = transformers.AutoModel.from_pretrained(directory).eval()
    vectors = []
    for text in texts:
        ids = tokenizer(text, max_length=511, truncation=True)["input_ids"]
        batch = torch.tensor([[*ids, tokenizer.eos_token_id]])
        with torch.inference_mode():
            last = model(input_ids=batch).last_hidden_state[0, -1]
        vectors.append(torch.nn.functional.normalize(last, dim=0).numpy())
    return np.stack(vectors)


DECODED = [sentences[0] for sentences in SENTENCES.values()] + [" ".join(SENTENCES["english"] * 3)]


def test_the_vector_of_a_decoder_is_that_of_the_appended_last_token(mistral: str) -> None:
    encoder = Encoder.load(mistral, **DECODER)
    passages = encoder.encode(DECODED, role="passage")
    assert_close(passages, by_card(mistral, DECODED), FP32_TOLERANCE)
    queries = encoder.encode(DECODED, role="query", instruction=TASK)
    prompted = [f"Instruct: {TASK}\nQuery: {text}" for text in DECODED]
    assert_close(queries, by_card(mistral, prompted), FP32_TOLERANCE)


def test_a_decoder_without_the_appended_token_would_differ(
    mistral: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = Encoder.load(mistral, **DECODER)
    tokenizer = encoder._loaded.tokenizer
    monkeypatch.setattr(tokenizer, "_appended", [])
    monkeypatch.setattr(tokenizer, "_suffix", np.zeros(0, np.int32))
    difference = np.abs(encoder.encode(DECODED, role="passage") - by_card(mistral, DECODED))
    assert difference.max() > 100 * FP32_TOLERANCE


@pytest.mark.parametrize("max_tokens", [8, 64, 512])
def test_each_text_of_a_decoder_ends_in_one_eos_also_if_it_is_cut(
    mistral: str, max_tokens: int
) -> None:
    tokenizer = OurTokenizer.load(Path(mistral), appends_eos=True)
    tokens = tokenizer.tokenize([*DECODED, "", "</s>"], max_tokens)
    assert tokens.truncated.any()
    assert tokenizer.special_tokens == 2
    for start, end in zip(tokens.offsets[:-1], tokens.offsets[1:], strict=True):
        assert tokens.ids[start] == 1
        assert tokens.ids[end - 1] == 2
        assert end - start <= max_tokens


def test_a_tokenizer_that_appends_eos_itself_gets_no_second_one(
    mistral: str, tmp_path: Path
) -> None:
    backend = Tokenizer.from_file(f"{mistral}/tokenizer.json")
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair=None, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokens = OurTokenizer(backend, pad_id=2, eos_id=2).tokenize(["one two", "three " * 50], 16)
    assert (tokens.ids == 2).sum() == 2


def test_a_decoder_is_causal(mistral: str) -> None:
    """No token attends to a later one: the first vector is the one of <s> alone."""
    first = Encoder.load(mistral, **{**DECODER, "pooling": "cls"}).encode(DECODED, role="passage")
    assert_close(first, np.repeat(first[:1], len(first), axis=0), INVARIANCE_TOLERANCE)


@pytest.mark.parametrize("token_budget", [1, 300, 1 << 20])
def test_a_decoder_s_vectors_do_not_depend_on_padding(mistral: str, token_budget: int) -> None:
    together = Encoder.load(mistral, token_budget=token_budget, **DECODER)
    actual = together.encode(DECODED, role="passage")
    alone = np.concatenate([together.encode([text], role="passage") for text in DECODED])
    assert_close(actual, alone, INVARIANCE_TOLERANCE)


def test_a_decoder_runs_through_spark(make_table: Callable[..., Any], mistral: str) -> None:
    df = embed(
        make_table(DECODED),
        text="text",
        role="query",
        instruction=TASK,
        model=mistral,
        **DECODER,
    )
    prompted = [f"Instruct: {TASK}\nQuery: {text}" for text in DECODED]
    assert_close(vectors_of(df), by_card(mistral, prompted), FP32_TOLERANCE)


# Known answers


@pytest.fixture
def few_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shortens the built-in texts, which are compared before the known answers."""
    monkeypatch.setattr(importlib.import_module("e5spark.encoder.verify"), "TEXTS", TEXTS[:2])


@pytest.fixture
def answers(model: str, tmp_path: Path, few_texts: None) -> Callable[..., str]:
    """Writes a file of known answers: the scores of transformers, with changes."""

    def write(**changes: Any) -> str:
        rows, columns = list(SENTENCES["english"][:2]), list(SENTENCES["german"][:3])
        tokenizer = transformers.AutoTokenizer.from_pretrained(model)
        loaded = transformers.AutoModel.from_pretrained(model).eval()

        def vectors(texts: list[str], role: str) -> np.ndarray:
            result = []
            for text in texts:
                with torch.inference_mode():
                    batch = tokenizer(f"{role}: {text}", return_tensors="pt")
                    hidden = loaded(**batch).last_hidden_state[0]
                result.append(torch.nn.functional.normalize(hidden.mean(0), dim=0).numpy())
            return np.stack(result)

        scores = 100 * vectors(rows, "query") @ vectors(columns, "passage").T
        document = {
            "rows": [{"text": text, "role": "query"} for text in rows],
            "columns": [{"text": text, "role": "passage"} for text in columns],
            "scores": scores.tolist(),
            "scale": 100,
            "tolerance": 0.01,
        }
        document |= {name: change(document[name]) for name, change in changes.items()}
        path = tmp_path / "answers.json"
        path.write_text(json.dumps({k: v for k, v in document.items() if v is not None}))
        return str(path)

    return write


def test_correct_known_answers_pass(
    verify: Callable[..., Any], model: str, answers: Callable[..., str]
) -> None:
    code, document = verify(model, "--known-answers", answers())
    assert code == 0, document
    assert document["known_answers"]["tolerance"] == 0.01
    assert document["known_answers"]["largest_difference"] < 0.001


def test_a_scale_of_one_is_the_cosine_itself(
    verify: Callable[..., Any], model: str, answers: Callable[..., str]
) -> None:
    path = answers(
        scale=lambda _: None,
        tolerance=lambda _: 1e-5,
        scores=lambda scores: (np.array(scores) / 100).tolist(),
    )
    code, document = verify(model, "--known-answers", path)
    assert code == 0, document


@pytest.mark.usefixtures("few_texts")
def test_known_answers_with_an_instruction(
    verify: Callable[..., Any], mistral: str, tmp_path: Path
) -> None:
    query = by_card(mistral, [f"Instruct: {TASK}\nQuery: {DECODED[0]}"])
    passages = by_card(mistral, DECODED[:3])
    path = tmp_path / "answers.json"
    path.write_text(
        json.dumps(
            {
                "rows": [{"text": DECODED[0], "role": "query", "instruction": TASK}],
                "columns": [{"text": text, "role": "passage"} for text in DECODED[:3]],
                "scores": (query @ passages.T).tolist(),
                "tolerance": 1e-5,
            }
        )
    )
    code, document = verify(mistral, *SET, "--known-answers", str(path))
    assert code == 0, document


def test_one_wrong_score_ends_with_4(
    verify: Callable[..., Any], model: str, answers: Callable[..., str]
) -> None:
    def wrong(scores: list[list[float]]) -> list[list[float]]:
        scores[1][2] += 0.5
        return scores

    code, document = verify(model, "--known-answers", answers(scores=wrong))
    assert code == 4
    assert document["error"] == "GateError"
    assert "a score differs by 0.5" in document["message"]
    assert "0.01 is allowed" in document["message"]


MALFORMED: dict[str, dict[str, Any]] = {
    "no rows": {"rows": lambda _: None},
    "no columns": {"columns": lambda _: None},
    "no scores": {"scores": lambda _: None},
    "no tolerance": {"tolerance": lambda _: None},
    "a tolerance that is no number": {"tolerance": lambda _: "small"},
    "an empty list of rows": {"rows": lambda _: []},
    "rows that are texts": {"rows": lambda rows: [row["text"] for row in rows]},
    "a row without a text": {"rows": lambda rows: [{"role": "query"} for _ in rows]},
    "a row without a role": {"rows": lambda rows: [{"text": row["text"]} for row in rows]},
    "an unknown role": {"rows": lambda rows: [{**row, "role": "document"} for row in rows]},
    "a text that is no string": {"rows": lambda rows: [{**row, "text": 3} for row in rows]},
    "an instruction that is not wanted": {
        "rows": lambda rows: [{**row, "instruction": "Find"} for row in rows]
    },
    "fewer scores than texts": {"scores": lambda scores: scores[:1]},
    "one score for all": {"scores": lambda scores: scores[0][0]},
    "scores turned round": {"scores": lambda scores: np.array(scores).T.tolist()},
    "scores that are no numbers": {"scores": lambda scores: [["x"] * 3] * 2},
    "a score that is not a number": {"scores": lambda scores: [[float("nan")] * 3] * 2},
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_known_answers_end_with_2(
    verify: Callable[..., Any], model: str, answers: Callable[..., str], case: str
) -> None:
    path = answers(**MALFORMED[case])
    code, document = verify(model, "--known-answers", path)
    assert code == 2, document
    assert path in document["message"]


@pytest.mark.usefixtures("few_texts")
def test_known_answers_that_are_no_json_end_with_2(
    verify: Callable[..., Any], model: str, tmp_path: Path
) -> None:
    (tmp_path / "answers.json").write_text("rows: 3")
    code, document = verify(model, "--known-answers", str(tmp_path / "answers.json"))
    assert code == 2
    assert "cannot be used" in document["message"]


@pytest.mark.usefixtures("few_texts")
def test_known_answers_that_are_not_there_end_with_2(
    verify: Callable[..., Any], model: str, tmp_path: Path
) -> None:
    code, document = verify(model, "--known-answers", str(tmp_path / "none.json"))
    assert code == 2
    assert "none.json" in document["message"]


# Faults that are caught


def last_token(hidden: torch.Tensor, rows: Rows, *_: object) -> torch.Tensor:
    return hidden[rows.offsets[1:].long() - 1]


def noise(hidden: torch.Tensor, rows: Rows, *_: object) -> torch.Tensor:
    mean = torch.segment_reduce(hidden, "mean", lengths=rows.offsets.long().diff(), axis=0)
    mean[:, 0] += 1e-3
    return mean


def not_a_number(hidden: torch.Tensor, rows: Rows, *_: object) -> torch.Tensor:
    return last_token(hidden, rows) * float("nan")


@pytest.mark.parametrize("fault", [last_token, noise])
def test_a_broken_engine_ends_with_4(
    verify: Callable[..., Any], model: str, monkeypatch: pytest.MonkeyPatch, fault: Any
) -> None:
    monkeypatch.setattr(packed, "pool", fault)
    code, document = verify(model, "--set=model.engine=torch")
    assert code == 4
    assert document["error"] == "GateError"
    assert "against transformers: the largest difference is" in document["message"]
    assert "the promises are 1e-05, 0.999999 and 0.999999" in document["message"]


def test_an_engine_that_returns_no_numbers_ends_with_4(
    verify: Callable[..., Any], model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "pool", not_a_number)
    code, document = verify(model, "--set=model.engine=torch")
    assert code == 4
    assert "not finite" in document["message"]


def test_a_broken_tokenizer_ends_with_4(
    verify: Callable[..., Any], model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenize = OurTokenizer.tokenize
    monkeypatch.setattr(
        OurTokenizer,
        "tokenize",
        lambda self, texts, most: tokenize(self, [text.upper() + "." for text in texts], most),
    )
    code, _ = verify(model)
    assert code == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no/such-model"], "Unknown model 'no/such-model'"),
        (["/no/such/directory"], "There is no model directory"),
        (["{model}", "--set=model.pooling=max"], "pooling"),
        (["{model}", "--set=output.path=x"], "only keys of model can be set here"),
        (["{model}", "--set=model.polling=cls"], "unknown key 'polling'"),
        (["{model}", "--set=model.dim=99"], "has 32 dimensions"),
    ],
    ids=str,
)
def test_wrong_arguments_end_with_2(
    verify: Callable[..., Any], model: str, arguments: list[str], message: str
) -> None:
    code, document = verify(*(argument.format(model=model) for argument in arguments))
    assert code == 2
    assert message in document["message"]
