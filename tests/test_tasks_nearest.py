"""The exact search against a float64 product over everything, sorted."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tasks import nearest as search
from tasks.matrix import matrix_of
from tasks.nearest import nearest

NONE = np.empty(0, np.int64)


def unit(vectors: np.ndarray) -> np.ndarray:
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def naive(vectors: np.ndarray, queries: np.ndarray, k: int, missing: np.ndarray = NONE) -> np.ndarray:
    likeness = np.stack(
        [
            np.einsum("nd,nd->n", vectors.astype(float), np.broadcast_to(q, vectors.shape).astype(float))
            for q in queries
        ]
    )
    likeness[:, missing] = -np.inf
    return np.argsort(-likeness, axis=1, kind="stable")[:, :k]


def some(num: int, dims: int, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).normal(size=(num, dims)))


@given(
    arrays(
        np.float32,
        st.tuples(st.integers(1, 5), st.integers(1, 40)),
        elements=st.floats(-1, 1, width=32),
    )
)
def test_a_coarse_row_is_no_farther_from_its_row_than_it_says(vectors: np.ndarray):
    matrix = matrix_of(vectors)
    step, away = matrix.bounds.astype(np.float64).T
    true = np.linalg.norm(vectors.astype(np.float64) - matrix.coarse * step[:, None], axis=1)
    assert (true <= away).all() and (away <= true * 1.001 + 1e-9).all()
    assert (abs(matrix.coarse.astype(int)) <= 127).all() and (matrix.exact == vectors).all()


def test_a_row_of_the_matrix_does_not_depend_on_the_others():
    vectors = some(100, 512)
    whole = matrix_of(vectors)
    for place in (0, 7, 99):
        alone = matrix_of(vectors[place : place + 1])
        assert (alone.coarse[0] == whole.coarse[place]).all() and (
            alone.bounds[0] == whole.bounds[place]
        ).all()


def test_the_answers_are_the_same_where_8_bits_saturate(monkeypatch: pytest.MonkeyPatch):
    vectors, queries = some(3000, 128), some(9, 128, seed=1)
    expected = nearest(matrix_of(vectors), queries, 10, NONE)
    monkeypatch.setattr(search, "_multiplies_int8", lambda: False)
    found = nearest(matrix_of(vectors), queries, 10, NONE)
    assert (found[0] == expected[0]).all() and (found[1] == expected[1]).all()


def test_few_large_numbers_among_small_ones_are_found():
    """A coarse row of such a vector is far from it, and so is its block's bound."""
    vectors, queries = some(2000, 256), some(3, 256, seed=1)
    vectors[::7, 3] = 5
    queries[0, 3] = -4
    vectors, queries = unit(vectors), unit(queries)
    assert (nearest(matrix_of(vectors), queries, 20, NONE)[0] == naive(vectors, queries, 20)).all()


@pytest.mark.parametrize(
    ("num", "dims", "k"), [(1, 8, 10), (9, 8, 3), (3000, 128, 10), (5001, 512, 1), (777, 33, 50)]
)
def test_search_equals_float64_over_everything(num: int, dims: int, k: int):
    vectors, queries = some(num, dims), some(70, dims, seed=1)
    rows, likeness = nearest(matrix_of(vectors), queries, k, NONE)
    assert (rows == naive(vectors, queries, k)).all()
    np.testing.assert_allclose(
        likeness,
        np.take_along_axis(queries.astype(float) @ vectors.astype(float).T, rows, axis=1),
        rtol=0,
        atol=1e-14,
    )


def test_search_over_several_blocks_equals_float64(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(search, "ROWS_AT_ONCE", 257)
    monkeypatch.setattr(search, "NUMBERS_AT_ONCE", 1000)
    vectors, queries = some(3000, 64), some(9, 64, seed=1)
    for k in (1, 10, 300):
        assert (nearest(matrix_of(vectors), queries, k, NONE)[0] == naive(vectors, queries, k)).all()


def test_every_number_of_rows_is_searched_to_its_last():
    """The scan cuts rows into classes and a rest, whatever their number; the last row is the nearest here."""
    vectors = some(1300, 16)
    for num in [*range(1, 150), *range(1020, 1300, 3)]:
        query = vectors[num - 1 : num]
        for k in (1, 2):
            found = nearest(matrix_of(vectors[:num]), query, k, NONE)[0]
            assert (found == naive(vectors[:num], query, k)).all()


def test_rows_nearer_to_each_other_than_the_scan_can_tell_come_in_their_true_order():
    """All within a thousandth of the query, so that the scan sees most as equal; some are equal."""
    generator = np.random.default_rng(2)
    query = some(1, 256)
    vectors = unit(query + 1e-3 * generator.normal(size=(2000, 256)) / 16)
    vectors[[5, 50, 500]] = vectors[700]
    expected = naive(vectors, query, 40)
    assert (nearest(matrix_of(vectors), query, 40, NONE)[0] == expected).all()
    same = np.repeat(query, 500, axis=0)
    assert nearest(matrix_of(same), query, 10, NONE)[0].tolist() == [list(range(10))]


def test_missing_rows_are_passed_over():
    vectors, queries = some(2000, 64), some(5, 64, seed=1)
    missing = np.unique(naive(vectors, queries, 3))
    vectors[missing] = 0
    rows, _ = nearest(matrix_of(vectors), queries, 10, missing)
    assert (rows == naive(vectors, queries, 10, missing)).all()
    all_but_two = np.arange(2, 2000)
    rows, _ = nearest(matrix_of(vectors), queries, 10, all_but_two)
    assert rows.shape == (5, 2) and set(rows.ravel()) == {0, 1}
    assert nearest(matrix_of(vectors), queries, 10, np.arange(2000))[0].shape == (5, 0)


def test_one_query_is_answered_as_in_a_batch():
    vectors, queries = some(4000, 128), some(100, 128, seed=1)
    matrix = matrix_of(vectors)
    rows, likeness = nearest(matrix, queries, 10, NONE)
    for place in (0, 63, 64, 99):
        alone = nearest(matrix, queries[place : place + 1], 10, NONE)
        assert (alone[0] == rows[place]).all() and (alone[1] == likeness[place]).all()


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 300),
    st.integers(1, 12),
    st.integers(1, 40),
    st.sampled_from([0.0, 1e-4, 0.1]),
)
def test_search_of_clustered_vectors_equals_float64(seed: int, num: int, dims: int, k: int, spread: float):
    generator = np.random.default_rng(seed)
    centres = generator.normal(size=(3, dims)) + 1e-3
    vectors = unit(centres[generator.integers(3, size=num)] + spread * generator.normal(size=(num, dims)))
    queries = unit(centres + spread * generator.normal(size=(3, dims)))
    k = min(k, num)
    assert (nearest(matrix_of(vectors), queries, k, NONE)[0] == naive(vectors, queries, k)).all()
