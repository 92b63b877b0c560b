"""Score rankings: one list of documents for each query; ties get the mean over all orders of the tied documents.

Source of the tie rules: McSherry and Najork, Computing Information Retrieval Performance Measures Efficiently in the
Presence of Tied Scores (2008). Checked against the average over every permutation, and scikit-learn's NDCG.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import comb
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from headrace.stats.binning import Floats

OneQuery: TypeAlias = Callable[[Floats, Floats], float | None]


def tie_blocks(relevance: Floats, scores: Floats) -> Iterator[tuple[int, Floats]]:
    """Yield (documents ranked before, relevances of the tied documents) by descending score."""
    order = np.argsort(-scores, kind="stable")
    ranked, ordered = relevance[order], scores[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    for start, block in zip(starts, np.split(ranked, starts[1:]), strict=True):
        yield int(start), block


def dcg(relevance: Floats, scores: Floats, k: int | None = None) -> float:
    """Return the discounted cumulative gain of one ranking: sum of relevance / log2(rank + 1) over the first k."""
    discounts = 1.0 / np.log2(np.arange(relevance.size) + 2.0)
    if k is not None:
        discounts[k:] = 0.0
    blocks = tie_blocks(relevance, scores)
    return float(sum(block.mean() * discounts[start : start + block.size].sum() for start, block in blocks))


def ndcg_of_query(relevance: Floats, scores: Floats, k: int | None = None) -> float | None:
    """Return DCG over the best possible DCG; None where nothing is relevant.

    Source: Jarvelin and Kekalainen (2002), linear gain; checked against `sklearn.metrics.ndcg_score`.
    """
    best = dcg(relevance, relevance, k)
    return dcg(relevance, scores, k) / best if best > 0 else None


def average_precision_of_query(relevance: Floats, scores: Floats) -> float | None:
    """Return the mean precision at the ranks of the relevant documents; None where nothing is relevant."""
    hits = (relevance > 0).astype(np.float64)
    total, before, found = 0.0, 0.0, float(hits.sum())
    if found == 0:
        return None
    for start, block in tie_blocks(hits, scores):
        size, relevant = block.size, float(block.sum())
        place = np.arange(size)
        others = place * (relevant - 1.0) / (size - 1) if size > 1 else np.zeros(1)
        total += relevant / size * float(np.sum((before + 1.0 + others) / (start + place + 1.0)))
        before += relevant
    return total / found


def reciprocal_rank_of_query(relevance: Floats, scores: Floats) -> float | None:
    """Return 1 / rank of the first relevant document; None where nothing is relevant."""
    for start, block in tie_blocks((relevance > 0).astype(np.float64), scores):
        size, relevant = block.size, int(block.sum())
        if relevant:
            orders = comb(size, relevant)
            first = range(1, size - relevant + 2)
            return sum(comb(size - j, relevant - 1) / orders / (start + j) for j in first)
    return None


def over_queries(measure: OneQuery, relevance: ArrayLike, scores: ArrayLike, queries: ArrayLike) -> float | None:
    """Return the mean of a measure over the queries where it is defined; None if there is none."""
    gain, score = np.asarray(relevance, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    _, place = np.unique(np.asarray(queries), return_inverse=True)
    order = np.argsort(place, kind="stable")
    rows = np.split(order, np.flatnonzero(np.diff(place[order])) + 1) if order.size else []
    found = [value for value in (measure(gain[row], score[row]) for row in rows) if value is not None]
    return float(np.mean(found)) if found else None


def ndcg(relevance: ArrayLike, scores: ArrayLike, queries: ArrayLike, k: int | None = None) -> float | None:
    """Return the mean NDCG (of the first k documents) over the queries that have a relevant document.

    >>> ndcg([1, 0, 0], [0.9, 0.5, 0.1], [7, 7, 7])
    1.0
    """
    return over_queries(lambda gain, score: ndcg_of_query(gain, score, k), relevance, scores, queries)


def mean_average_precision(relevance: ArrayLike, scores: ArrayLike, queries: ArrayLike) -> float | None:
    """Return the mean average precision over the queries that have a relevant document (relevance above 0).

    >>> mean_average_precision([0, 1], [0.9, 0.5], [7, 7])
    0.5
    """
    return over_queries(average_precision_of_query, relevance, scores, queries)


def mean_reciprocal_rank(relevance: ArrayLike, scores: ArrayLike, queries: ArrayLike) -> float | None:
    """Return the mean of 1 / rank of the first relevant document, over the queries that have one.

    >>> mean_reciprocal_rank([0, 1], [0.5, 0.5], [7, 7])
    0.75
    """
    return over_queries(reciprocal_rank_of_query, relevance, scores, queries)
