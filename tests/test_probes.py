"""The probes draw, fit and judge as MTEB does."""

import numpy as np
import pytest

from e5spark.errors import OptionError
from e5spark.evaluate import probes

CLASSES, DIM = 5, 8


def blobs(rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, CLASSES, rows)
    centres = np.random.default_rng(99).normal(size=(CLASSES, DIM))
    vectors = centres[labels] + generator.normal(scale=0.9, size=(rows, DIM))
    return vectors.astype(np.float32), labels.astype(str)


def test_few_shot_is_the_protocol_of_mteb(monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import Dataset
    from mteb.abstasks.classification import AbsTaskClassification

    train, test = blobs(200, 1), blobs(150, 2)
    found = probes.few_shot(train, test, samples_per_label=8, experiments=4)

    class Task(AbsTaskClassification):
        metadata = None
        seed = 42

        def __init__(self) -> None:
            pass

    data = Dataset.from_dict({"label": train[1].tolist()})
    order = None
    for row in found:
        _, order, drawn = Task()._undersample_data(data, 0, order)
        model = AbsTaskClassification.evaluator_model.set_params(random_state=42)
        expected = model.fit(train[0][drawn], train[1][drawn]).predict(test[0]) == test[1]
        assert row.tolist() == expected.tolist()
    assert len({row.mean() for row in found}) > 1  # experiments differ


def test_few_shot_takes_what_there_is_of_a_rare_class() -> None:
    _, labels = blobs(40, 1)
    labels[0] = "r"  # a class of one
    drawn = probes._first_of_each(np.arange(40), labels, 8)
    assert sorted(labels[drawn]) == sorted(
        label for each in set(labels) for label in [each] * min(8, (labels == each).sum())
    )


def test_more_examples_make_a_better_classifier() -> None:
    train, test = blobs(2000, 1), blobs(500, 2)
    few = probes.few_shot(train, test, samples_per_label=2, experiments=5).mean()
    assert probes.full_train(train, test).mean() > few > 1 / CLASSES


def test_first_v_measure_is_that_of_mteb() -> None:
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.metrics import v_measure_score

    vectors, labels = blobs(300, 1)
    found = probes.v_measures(vectors, labels, experiments=3)
    model = MiniBatchKMeans(CLASSES, batch_size=500, n_init="auto", random_state=42)
    assert found[0] == pytest.approx(v_measure_score(labels, model.fit(vectors).labels_))
    assert len(found) == 3


def test_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn", None)
    with pytest.raises(OptionError, match=r"pip install 'e5spark\[eval\]'"):
        probes.full_train(blobs(10, 1), blobs(10, 2))
