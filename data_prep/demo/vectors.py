"""Word vectors from the demo's own training text: positive pointwise mutual information and its largest axes.

    PPMI_ij = max(0, log(N_ij N / (N_i N_j)))        N_ij: how often two words stand in one post within WINDOW words
    vectors = U_d diag(s_d)^½                        of PPMI = U diag(s) Uᵀ, the WIDTH largest s

After Levy and Goldberg (NIPS 2014), who show what word2vec factors. The same text gives the same file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy import linalg

WIDTH = 50
WINDOW = 5  # words on either side
LEAST = 2  # times that a word must stand in the text


def word_vectors(posts: Sequence[Sequence[str]]) -> tuple[list[str], np.ndarray]:
    """Words in lower case, the most frequent first, and their vectors [words, WIDTH].

    A text of fewer words than WIDTH gives zeros in the last places.
    """
    counts = Counter(token.lower() for tokens in posts for token in tokens)
    words = sorted((word for word, count in counts.items() if count >= LEAST), key=lambda word: (-counts[word], word))
    index = {word: position for position, word in enumerate(words)}
    together = np.zeros((len(words), len(words)))
    for tokens in posts:
        row = [index.get(token.lower()) for token in tokens]
        for position, first in enumerate(row):
            for second in row[position + 1 : position + 1 + WINDOW]:
                if first is not None and second is not None:
                    together[first, second] += 1
                    together[second, first] += 1
    totals = together.sum(1)
    expected = np.outer(totals, totals) / max(totals.sum(), 1)
    information = np.log(np.divide(together, expected, out=np.ones_like(together), where=together > 0))
    last = [max(len(words) - WIDTH, 0), max(len(words) - 1, 0)]
    values, axes = linalg.eigh(np.maximum(information, 0), subset_by_index=last)
    axes, values = axes[:, ::-1], np.maximum(values[::-1], 0)
    # An axis may point either way: its largest number is positive, so that every machine writes the same file.
    largest = np.abs(axes.round(9)).argmax(0)
    axes = axes * np.where(axes[largest, range(axes.shape[1])] < 0, -1, 1)
    vectors = np.zeros((len(words), WIDTH))
    vectors[:, : len(values)] = axes * np.sqrt(values)
    return words, vectors


def glove_text(words: Sequence[str], vectors: np.ndarray) -> str:
    """The lines of a text file as GloVe's are: a word and its numbers."""
    lines = (
        f"{word} {' '.join(f'{value + 0.0:.4f}' for value in row.round(4))}\n"
        for word, row in zip(words, vectors, strict=True)
    )
    return "".join(lines)
