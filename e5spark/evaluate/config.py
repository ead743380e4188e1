"""An evaluation as frozen dataclasses: what is judged, on which judgements, with which vectors."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from e5spark.job.config import ModelConfig
from e5spark.model.spec import ModelOptions, OutputType

Layout = Literal["beir", "miracl"]
Format = Literal["", "parquet", "delta", "csv", "tsv", "jsonl"]


@dataclass(frozen=True, kw_only=True)
class TableConfig:
    """One table of a task: the output of a job, or texts that have no vectors yet.

    Attributes:
        job: A job file, whose output this is, in place of path or table.
        path: A file, a directory or a glob.
        table: The name in a catalog, in place of path.
        format: The format of path; by default as its name ends, or Parquet.
        id: The column that identifies a row; without one, rows are numbered in their order.
        text: The text columns. For pairs they are two; elsewhere they are joined by a space.
        vector: The columns of the vectors; by default ``embedding``, or for pairs the text
            columns' names with ``_embedding``.
        role: Whether the texts are queries or passages, in place of what the task implies.
        options: Spark's reader options.
    """

    job: str = ""
    path: str = ""
    table: str = ""
    format: Format = ""
    id: str = ""
    text: str | tuple[str, ...] = ()
    vector: str | tuple[str, ...] = ()
    role: Literal["", "query", "passage"] = ""
    options: Mapping[str, str] = field(default_factory=dict)

    @property
    def texts(self) -> tuple[str, ...]:
        """The text columns."""
        return (self.text,) if isinstance(self.text, str) else self.text

    @property
    def vectors(self) -> tuple[str, ...]:
        """The columns of the vectors; empty for the default."""
        return (self.vector,) if isinstance(self.vector, str) else self.vector


@dataclass(frozen=True, kw_only=True)
class RetrievalConfig:
    """Search: for each query, all documents are ranked by their cosine.

    Attributes:
        name: The task's name in the published figures.
        data: A directory of the layout, for those of ``queries``, ``corpus`` and ``qrels`` that
            the task does not name.
        layout: ``beir`` or ``miracl``.
        split: Which judgements of the directory.
        depth: Hits of each query.
        drop_same_id: Whether a hit whose id is the query's is left out.
    """

    name: str = ""
    data: str = ""
    layout: Layout = "beir"
    split: str = "test"
    depth: int = 1000
    drop_same_id: bool = False


@dataclass(frozen=True, kw_only=True)
class RerankingConfig(RetrievalConfig):
    """Re-ranking: for each query, the documents that were judged for it are ranked."""


@dataclass(frozen=True, kw_only=True)
class SimilarityConfig:
    """Similarity: the cosine of pairs of texts against a score.

    Attributes:
        name: The task's name in the published figures.
        score: The column of the scores.
    """

    name: str = ""
    score: str = "score"


@dataclass(frozen=True, kw_only=True)
class BitextConfig:
    """Bitext: for each sentence, its translation is the nearest of all.

    Attributes:
        name: The task's name in the published figures.
    """

    name: str = ""


@dataclass(frozen=True, kw_only=True)
class ClassificationConfig:
    """Classification: a logistic regression on the vectors, with few and with all examples.

    Attributes:
        name: The task's name in the published figures.
        label: The column of the classes.
        samples_per_label: Examples of each class in MTEB's protocol.
        experiments: Draws of examples in MTEB's protocol.
    """

    name: str = ""
    label: str = "label"
    samples_per_label: int = 8
    experiments: int = 10


@dataclass(frozen=True, kw_only=True)
class ClusteringConfig:
    """Clustering: k-means with as many clusters as there are labels.

    Attributes:
        name: The task's name in the published figures.
        label: The column of the labels.
        experiments: Runs of k-means, each with its own seed.
    """

    name: str = ""
    label: str = "label"
    experiments: int = 10


Settings = (
    RetrievalConfig
    | RerankingConfig
    | SimilarityConfig
    | BitextConfig
    | ClassificationConfig
    | ClusteringConfig
)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of task.

    Attributes:
        settings: The dataclass of its keys.
        tables: The names of its tables, each with the role of its texts.
        is_paired: Whether the rows of its table are pairs of texts.
        text: The text columns that a table has unless it says otherwise.
    """

    settings: type[Settings]
    tables: Mapping[str, Literal["query", "passage"]]
    is_paired: bool = False
    text: tuple[str, ...] = ("text",)

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of a task whose values are tables."""
        return (
            (*self.tables, "qrels")
            if issubclass(self.settings, RetrievalConfig)
            else (*self.tables,)
        )


_PAIR = ("sentence1", "sentence2")
# For symmetric tasks E5's authors use the prompt of a query on both sides.
KINDS: Mapping[str, Kind] = {
    "retrieval": Kind(settings=RetrievalConfig, tables={"queries": "query", "corpus": "passage"}),
    "reranking": Kind(settings=RerankingConfig, tables={"queries": "query", "corpus": "passage"}),
    "similarity": Kind(
        settings=SimilarityConfig, tables={"pairs": "query"}, is_paired=True, text=_PAIR
    ),
    "bitext": Kind(settings=BitextConfig, tables={"pairs": "query"}, is_paired=True, text=_PAIR),
    "classification": Kind(
        settings=ClassificationConfig, tables={"train": "query", "test": "query"}
    ),
    "clustering": Kind(settings=ClusteringConfig, tables={"texts": "query"}),
}


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """One task of an evaluation.

    Attributes:
        key: Its name in the file.
        kind: A key of ``KINDS``.
        settings: What belongs to its kind.
        tables: Its tables, with the judgements as ``qrels``, as far as the file names them.
        model: Options of the model for this task alone.
    """

    key: str
    kind: str
    settings: Settings
    tables: Mapping[str, TableConfig]
    model: ModelOptions

    @property
    def name(self) -> str:
        """The task's name in the published figures."""
        return self.settings.name or self.key


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """``[compare]``: what ``e5spark compare`` judges side by side.

    Attributes:
        precisions: How the engine computes; each embeds all tables.
        int8: The directory of the model that ``e5spark prepare`` quantised, for precision int8.
        output_types: How vectors are stored; made from the float32 vectors of the first precision.
        dims: Components; the first ones of the vectors of the first precision, normalised again.
    """

    precisions: tuple[Literal["fp32", "bf16", "int8"], ...] = ("fp32",)
    int8: str = ""
    output_types: tuple[OutputType, ...] = ("float32", "float16", "int8", "binary")
    dims: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class OutputConfig:
    """``[output]``: the directory of the vectors of tables that have none."""

    path: str = ""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """A whole evaluation."""

    tasks: tuple[TaskConfig, ...]
    model: ModelConfig | None
    output: OutputConfig
    compare: CompareConfig
    spark: Mapping[str, str]
