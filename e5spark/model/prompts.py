"""The prefixes that checkpoints were trained with, by role and instruction."""

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

from e5spark.errors import OptionError

Role = Literal["query", "passage"]
ROLES: tuple[Role, ...] = get_args(Role)

# The one-sentence task that the authors use for retrieval
# (model card of intfloat/multilingual-e5-large-instruct).
RETRIEVAL_TASK = "Given a web search query, retrieve relevant passages that answer the query"

# https://arxiv.org/abs/2212.03533, section 4: the prefixes break the symmetry of the two sides.
E5 = {"query": "query: ", "passage": "passage: "}
# https://arxiv.org/abs/2402.05672, section 2: instructions on the query side only.
E5_INSTRUCT = {"query": "Instruct: {task}\nQuery: ", "passage": ""}
NONE = {"query": "", "passage": ""}

_TASK = "{task}"


def check_role(role: str) -> Role:
    """Returns the role if it is one of E5's two, ``query`` or ``passage``.

    Raises:
        OptionError: For anything else.
    """
    for valid in ROLES:
        if role == valid:
            return valid
    raise OptionError(f"Unknown role {role!r}; use 'query' or 'passage'.")


def prefix(prompts: Mapping[str, str], role: str, instruction: str | None = None) -> str:
    r"""Returns the prefix of a text of this role.

    Args:
        prompts: Role to prefix; ``{task}`` in a prefix is replaced by the instruction.
        role: ``query`` or ``passage``.
        instruction: One sentence that describes the task, for checkpoints that take one.

    Raises:
        OptionError: If the role is unknown, if the prefix needs an instruction and there is none,
            or if there is an instruction and no prefix of the checkpoint takes one.
    """
    template = prompts[check_role(role)]
    if _TASK in template:
        if not instruction or not instruction.strip():
            raise OptionError(
                f"Role {role!r} of this checkpoint needs an instruction: one sentence that says "
                f"what the query is for, such as {RETRIEVAL_TASK!r}."
            )
        return template.replace(_TASK, instruction.strip())
    if instruction and not any(_TASK in other for other in prompts.values()):
        raise OptionError(
            "There is an instruction, but this checkpoint takes none; leave it out, or use an "
            "instruct checkpoint such as 'intfloat/multilingual-e5-large-instruct'."
        )
    return template


def already_prompted(prompts: Mapping[str, str], texts: Sequence[str]) -> list[bool]:
    """Returns which texts already begin with a prompt of the checkpoint, in upper or lower case.

    Args:
        prompts: Role to prefix, as for ``prefix``.
        texts: The texts, without the prompts that e5spark adds.
    """
    lowered = tuple(head.strip().lower() for head in prompt_heads(prompts))
    if not lowered:
        return [False] * len(texts)
    longest = max(map(len, lowered))
    return [
        # Few texts begin with white space. Sliced first, because a text can be megabytes long.
        text[: longest + 16].lstrip().lower().startswith(lowered)
        for text in texts
    ]


def prompt_heads(prompts: Mapping[str, str]) -> tuple[str, ...]:
    """Returns the beginnings of texts with a prompt: each prefix, up to its instruction."""
    heads = (template.partition(_TASK)[0] for template in prompts.values())
    return tuple(head for head in heads if head.strip())
