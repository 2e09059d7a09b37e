"""How alike the places of words and objects are in the structure of text and picture: MEGA (Zheng et al., MM 2021).

The text is a graph of its n words, the picture one of its o objects; together they are one graph of N = n + o nodes
without an edge between the two. A node is described by the degrees around it (xNetMF, Heimann et al., CIKM 2018):

    f_i[k] = Σ_{l=0..2} 0.01^l · |{j at distance l of i : floor(log2 degree_j) = k}|       (1) nodes without an edge
                                                                                               count nowhere
    C_ij   = exp(-‖f_i - f_j‖)                                                             (2)
    E Eᵀ   = C,  ‖E_i‖ = 1                                                                 (3)
    d_ij   = ‖E_i - E_j‖ = sqrt(2 - 2 C_ij)                                                (4)
    M_ij   = exp(-d_ij) for the 5 objects j that are nearest to word i, else 0             (5)

Of (3): xNetMF factors C by landmark nodes, E = C U sqrt(S) with U S Uᵀ = pinv(C of the landmarks), and divides rows by
their length. With all nodes as landmarks, as here whatever N is, E Eᵀ = C pinv(C) C = C, whose diagonal is 1: no
factor has to be computed, and nothing is drawn at random. (The released program draws min(10 log2 N, N) landmarks,
which are all nodes up to N = 58.) Of (5): where objects at the same distance reach over the fifth place, the places
that are left are shared between them; the released program takes what its search tree happens to give first.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

HOPS = 2
DISCOUNT = 0.01  # of a hop in (1)
NEAREST = 5  # objects of a word in (5)

Edge = tuple[int, int]


def structural_features(number: int, edges: Iterable[Edge]) -> np.ndarray:
    """(1) as float64 [number, K]; K is 1 + floor(log2 of the largest degree), or 1 without an edge.

    edges: undirected, over nodes from 0; an edge that stands twice, or from a node to itself, counts once or not.
    Raises ValueError for a node that there is not.
    """
    near = np.zeros((number, number), bool)
    for first, second in edges:
        if not (0 <= first < number and 0 <= second < number):
            raise ValueError(f"the edge {(first, second)} in a graph of {number} nodes")
        if first != second:
            near[first, second] = near[second, first] = True
    degrees = near.sum(1)
    buckets = np.zeros((number, max(int(degrees.max(initial=1)), 1).bit_length()))
    linked = np.flatnonzero(degrees)
    buckets[linked, [int(degree).bit_length() - 1 for degree in degrees[linked]]] = 1
    reached = np.eye(number, dtype=bool)
    ring, features = reached, buckets.copy()
    for hop in range(1, HOPS + 1):
        ring = (ring @ near) & ~reached
        reached = reached | ring
        features += DISCOUNT**hop * (ring @ buckets)
    return features


def align(
    words: int, text_edges: Sequence[Edge], objects: int, picture_edges: Sequence[Edge], nearest: int = NEAREST
) -> np.ndarray:
    """(5) as float64 [words, objects]; edges over words, and over objects, from 0 each.

    With at most `nearest` objects every one has its weight.
    """
    moved = [(words + first, words + second) for first, second in picture_edges]
    features = structural_features(words + objects, [*text_edges, *moved])
    # Counts and their discounts are the same numbers in the same order for nodes of the same place: ties are exact.
    apart = np.linalg.norm(features[:words, None] - features[None, words:], axis=-1)
    distance = np.sqrt(np.maximum(2 - 2 * np.exp(-apart), 0))
    return np.exp(-distance) * places(distance, nearest)


def places(distance: np.ndarray, nearest: int) -> np.ndarray:
    """The share in [0, 1] of the `nearest` first places of every row that each column has; rows sum to at most it.

    Columns at the same distance (to 12 digits) share what is left of the places before them.
    """
    rounded = np.round(distance, 12)
    before = (rounded[:, None, :] < rounded[:, :, None]).sum(-1)  # [rows, columns]: nearer columns
    tied = (rounded[:, None, :] == rounded[:, :, None]).sum(-1)
    return np.clip((nearest - before) / np.maximum(tied, 1), 0, 1)
