"""Probes: what a linear classifier and k-means find in vectors. They need scikit-learn."""

from collections import defaultdict
from typing import Any

import numpy as np
import numpy.typing as npt

from e5spark.errors import OptionError

Vectors = npt.NDArray[np.float32]
Labels = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]

# MTEB's: the seed of its tasks, the iterations of its classifier, the batch of its k-means.
_SEED = 42
_ITERATIONS = 100
_BATCH = 500
# Enough for the full train set of Banking77 to converge.
_FULL_ITERATIONS = 1000


def few_shot(
    train: tuple[Vectors, Labels],
    test: tuple[Vectors, Labels],
    *,
    samples_per_label: int,
    experiments: int,
) -> Floats:
    """Returns which rows of the test set each experiment's classifier gets right.

    MTEB's protocol: an experiment takes the first examples of each class, in an order that a
    RandomState with seed 42 shuffles again before each experiment, and fits a logistic regression.

    Args:
        train: Vectors and classes to draw from, in the order of the published set.
        test: Vectors and classes to predict.
        samples_per_label: Examples of each class; fewer where there are fewer.
        experiments: Draws.

    Returns:
        1 for a right prediction, 0 for a wrong one.  # (experiments, test rows)

    Raises:
        OptionError: If scikit-learn is not installed.
    """
    vectors, labels = train
    order = np.arange(len(labels))
    results = []
    for _ in range(experiments):
        np.random.RandomState(_SEED).shuffle(order)  # as MTEB draws
        drawn = _first_of_each(order, labels, samples_per_label)
        results.append(_right((vectors[drawn], labels[drawn]), test, _ITERATIONS))
    return np.stack(results)


def full_train(train: tuple[Vectors, Labels], test: tuple[Vectors, Labels]) -> Floats:
    """Returns which rows of the test set a classifier of the whole train set gets right.

    Raises:
        OptionError: If scikit-learn is not installed.
    """
    return _right(train, test, _FULL_ITERATIONS)


def v_measures(vectors: Vectors, labels: Labels, *, experiments: int) -> Floats:
    """Returns V-measure of MTEB's mini-batch k-means, for each seed from 42 on.

    The first one is MTEB's own.

    Raises:
        OptionError: If scikit-learn is not installed.
    """
    _check_installed()
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.metrics import v_measure_score

    values = []
    for seed in range(_SEED, _SEED + experiments):
        model = MiniBatchKMeans(
            n_clusters=len(set(labels)), batch_size=_BATCH, n_init="auto", random_state=seed
        )
        values.append(float(v_measure_score(labels, model.fit(vectors).labels_)))
    return np.array(values)


def _first_of_each(order: npt.NDArray[np.int64], labels: Labels, count: int) -> list[int]:
    seen: defaultdict[Any, int] = defaultdict(int)
    drawn = []
    for row in order.tolist():
        if seen[labels[row]] < count:
            seen[labels[row]] += 1
            drawn.append(row)
    return drawn


def _right(train: tuple[Vectors, Labels], test: tuple[Vectors, Labels], iterations: int) -> Floats:
    _check_installed()
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(max_iter=iterations, random_state=_SEED).fit(*train)
    return np.asarray(model.predict(test[0]) == test[1], dtype=np.float64)


def _check_installed() -> None:
    try:
        import sklearn  # noqa: F401
    except ImportError as error:
        raise OptionError(
            "Classification and clustering need scikit-learn on the driver, which is not "
            "installed. Run pip install 'e5spark[eval]', or leave these tasks out."
        ) from error
