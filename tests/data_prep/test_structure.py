"""MEGA's structural alignment against the factorisation it stands for and breadth-first search; graphs of boxes."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.objects.graphs import box_edges, chain_edges, dependency_edges
from data_prep.objects.structure import align, places, structural_features


def distances_from(start, number, edges):
    """By breadth-first search over neighbour lists."""
    near = {node: set() for node in range(number)}
    for first, second in edges:
        if first != second:
            near[first].add(second)
            near[second].add(first)
    found, front, hop = {start: 0}, [start], 0
    while front:
        hop += 1
        front = sorted({other for node in front for other in near[node]} - found.keys())
        found |= dict.fromkeys(front, hop)
    return found, {node: len(others) for node, others in near.items()}


def features_by_search(number, edges):
    """(1) of the module, one node after another."""
    rows = []
    for node in range(number):
        found, degrees = distances_from(node, number, edges)
        top = max(degrees.values(), default=0)
        row = [0.0] * (1 + (int(math.log2(top)) if top else 0))
        for other, hop in found.items():
            if hop <= 2 and degrees[other]:
                row[int(math.log2(degrees[other]))] += 0.01**hop
        rows.append(row)
    return np.array(rows)


def alignment_by_factors(words, text_edges, objects, picture_edges):
    """(2) to (5) with all nodes as landmarks, as the method is written: singular values, row norms; no ties."""
    number = words + objects
    edges = [*text_edges, *((words + a, words + b) for a, b in picture_edges)]
    features = features_by_search(number, edges)
    similar = np.exp(-np.linalg.norm(features[:, None] - features[None], axis=-1))
    left, values, _ = np.linalg.svd(np.linalg.pinv(similar))
    embedded = similar @ left @ np.diag(np.sqrt(values))
    embedded /= np.linalg.norm(embedded, axis=1, keepdims=True)
    distance = np.linalg.norm(embedded[:words, None] - embedded[None, words:], axis=-1)
    return np.exp(-distance), distance


@st.composite
def graphs(draw):
    words, objects = draw(st.integers(1, 9)), draw(st.integers(1, 8))

    def edges(number):
        return draw(st.lists(st.tuples(st.integers(0, number - 1), st.integers(0, number - 1)), max_size=2 * number))

    return words, edges(words), objects, edges(objects)


@given(graphs())
@settings(max_examples=60, deadline=None)
def test_features_and_weights_against_the_method_as_it_is_written(graph):
    words, text_edges, objects, picture_edges = graph
    edges = [*text_edges, *((words + a, words + b) for a, b in picture_edges)]
    np.testing.assert_allclose(
        structural_features(words + objects, edges), features_by_search(words + objects, edges), atol=1e-12
    )
    found = align(words, text_edges, objects, picture_edges)
    weights, distance = alignment_by_factors(*graph)
    # A square root at 0 halves the digits: 1e-15 of the product becomes 3e-8 of the distance.
    np.testing.assert_allclose(found, weights * places(distance.round(6), 5), atol=1e-6)


def test_a_chain_and_three_boxes_by_hand():
    """Words a - b - c, objects 0 - 1 and 2 alone: degrees 1 2 1, 1 1 0."""
    features = structural_features(6, [(0, 1), (1, 2), (3, 4)])
    by_hand = [[1 + 1e-4, 0.01], [0.02, 1], [1 + 1e-4, 0.01], [1.01, 0], [1.01, 0], [0, 0]]
    np.testing.assert_allclose(features, by_hand, atol=1e-15)
    weights = align(3, [(0, 1), (1, 2)], 3, [(0, 1)])
    apart = np.linalg.norm(features[:3, None] - features[None, 3:], axis=-1)
    np.testing.assert_allclose(weights, np.exp(-np.sqrt(2 - 2 * np.exp(-apart))), atol=1e-12)
    assert (weights[0] == weights[2]).all() and (weights[:, 0] == weights[:, 1]).all()


def test_ties_share_the_places_that_are_left():
    distance = np.array([[0.1, 0.3, 0.3, 0.3, 0.3, 0.3, 0.3, 0.2], [1, 2, 3, 4, 5, 6, 7, 8]])
    share = places(distance, 5)
    np.testing.assert_allclose(share[0], [1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 1])
    np.testing.assert_array_equal(share[1], [1, 1, 1, 1, 1, 0, 0, 0])
    equal = align(2, chain_edges(2), 10, [])  # a picture without a relation
    np.testing.assert_allclose(equal, np.full((2, 10), equal[0, 0]))


def test_the_order_of_objects_and_of_edges_means_nothing():
    picture = [(0, 1), (1, 2), (1, 3), (4, 5)]
    weights = align(6, chain_edges(6), 8, picture)
    order = np.random.default_rng(0).permutation(8)
    place = np.argsort(order)
    moved = align(6, chain_edges(6), 8, [(int(place[b]), int(place[a])) for a, b in reversed(picture)] * 2)
    np.testing.assert_array_equal(moved, weights[:, order])


def test_a_node_that_is_not_there():
    with pytest.raises(ValueError, match=r"the edge \(0, 3\) in a graph of 3 nodes"):
        structural_features(3, [(0, 3)])


def test_boxes_that_overlap_or_are_near():
    boxes = [(0, 0, 0.4, 0.4), (0.2, 0.2, 0.5, 0.5), (0.56, 0.58, 0.8, 0.8), (0.9, 0, 1, 0.1)]
    assert box_edges(boxes) == [(0, 1), (1, 2)]  # 0.06 and 0.08 apart: 0.1
    assert box_edges(boxes, near=0.05) == [(0, 1)] and len(box_edges(boxes, near=2)) == 6


def test_edges_of_a_parse():
    words = [SimpleNamespace(head=head) for head in (2, 0, 2)]
    assert dependency_edges(("I", "saw", "it"), words) == [(1, 0), (1, 2)]
    with pytest.raises(ValueError, match="3 words out of 2 tokens"):
        dependency_edges(("I", "saw"), words)
