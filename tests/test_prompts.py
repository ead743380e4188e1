import pytest
from hypothesis import given
from hypothesis import strategies as st

from e5spark.errors import OptionError
from e5spark.model import prompts

INSTRUCTIONS = st.text(min_size=1).filter(str.strip)
BLANK = [None, "", "  \n"]


@pytest.mark.parametrize(("role", "expected"), [("query", "query: "), ("passage", "passage: ")])
def test_e5_roles_have_their_published_prefixes(role, expected):
    assert prompts.prefix(prompts.E5, role) == expected


@pytest.mark.parametrize("role", prompts.ROLES)
def test_checkpoints_without_prompts_put_nothing_before_a_text(role):
    assert prompts.prefix(prompts.NONE, role) == ""


def test_an_instruct_query_follows_the_model_card():
    prefix = prompts.prefix(prompts.E5_INSTRUCT, "query", prompts.RETRIEVAL_TASK)
    assert prefix == (
        "Instruct: Given a web search query, retrieve relevant passages that answer the query\n"
        "Query: "
    )


@given(INSTRUCTIONS)
def test_an_instruction_goes_in_word_for_word_without_its_outer_white_space(instruction):
    prefix = prompts.prefix(prompts.E5_INSTRUCT, "query", instruction)
    assert prefix == "Instruct: " + instruction.strip() + "\nQuery: "


@pytest.mark.parametrize("instruction", ["Use {task} and {task}", "{0} {}", r"\1 \g<0>"])
def test_placeholders_in_an_instruction_are_left_alone(instruction):
    assert instruction in prompts.prefix(prompts.E5_INSTRUCT, "query", instruction)


@pytest.mark.parametrize("instruction", BLANK)
def test_an_instruct_query_needs_an_instruction(instruction):
    with pytest.raises(OptionError, match="needs an instruction"):
        prompts.prefix(prompts.E5_INSTRUCT, "query", instruction)


@pytest.mark.parametrize("instruction", [None, "Find duplicates"])
def test_an_instruct_passage_is_the_text_alone(instruction):
    assert prompts.prefix(prompts.E5_INSTRUCT, "passage", instruction) == ""


@pytest.mark.parametrize("role", prompts.ROLES)
@pytest.mark.parametrize("table", [prompts.E5, prompts.NONE])
def test_an_instruction_that_no_prompt_takes_is_refused(table, role):
    with pytest.raises(OptionError, match="this checkpoint takes none"):
        prompts.prefix(table, role, "Find duplicates")


@given(st.text().filter(lambda role: role not in prompts.ROLES))
def test_an_unknown_role_is_refused_by_name(role):
    with pytest.raises(OptionError) as refused:
        prompts.prefix(prompts.E5, role)
    assert repr(role) in str(refused.value)


@given(query=st.text().filter(lambda text: "{task}" not in text), passage=st.text())
def test_prompts_of_the_user_are_taken_word_for_word(query, passage):
    assert prompts.prefix({"query": query, "passage": passage}, "query") == query


@given(st.sampled_from(prompts.ROLES), st.text())
def test_a_text_with_a_prompt_is_already_prompted(role, text):
    prompted = prompts.prefix(prompts.E5, role) + text
    assert prompts.already_prompted(prompts.E5, [prompted, " " + prompted.upper()]) == [True] * 2


@pytest.mark.parametrize("text", ["", "query", "queries: none", "my query: x", "Instruct: x"])
def test_a_text_without_a_prompt_of_its_checkpoint_is_not_marked(text):
    assert prompts.already_prompted(prompts.E5, [text]) == [False]


def test_a_checkpoint_without_prompts_marks_no_text():
    assert prompts.already_prompted(prompts.NONE, ["query: x", ""]) == [False, False]
    assert prompts.already_prompted(prompts.E5_INSTRUCT, ["Instruct: x", "y"]) == [True, False]
