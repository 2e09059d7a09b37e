"""Probabilities of spans under a CRF, against every enumerated path and in extreme sentences."""

import numpy as np
import pytest

from tests.crf_oracle import Enumeration, random_batch, random_params
from tmrjax.crf import CRFParams
from tmrjax.heads.span_probabilities import SpanTags, span_probabilities


@pytest.mark.parametrize("seed", range(4))
def test_they_equal_enumeration(seed):
    """Spans anywhere in sentences of any length, several of one row, some tags free, some rows without a span."""
    emissions, _, _, params = random_batch(seed)
    batch, time, num_tags = emissions.shape
    generator = np.random.default_rng(seed)
    lengths = generator.integers(1, time + 1, batch)
    lengths[0] = time
    mask = np.arange(time) < lengths[:, None]
    emissions[~mask] = np.nan  # what stands behind a sentence has no influence
    spans, expected = [], []
    for row in (0, 3, 3, 5, 0, 6, 7):
        first = generator.integers(lengths[row])
        size = generator.integers(1, lengths[row] - first + 1)
        allowed = generator.random((size, num_tags)) < 0.6
        allowed[np.arange(size), generator.integers(0, num_tags, size)] = True
        spans.append(SpanTags(row, first, allowed))
        everywhere = np.ones((time, num_tags), bool)
        everywhere[first : first + size] = allowed
        inside = Enumeration(emissions[row], mask[row], params, everywhere).log_normalizer
        expected.append(np.exp(inside - Enumeration(emissions[row], mask[row], params).log_normalizer))
    np.testing.assert_allclose(span_probabilities(emissions, mask, params, spans), expected, rtol=1e-10)
    assert span_probabilities(emissions, mask, params, []).shape == (0,)


def test_what_is_forbidden_has_no_probability_and_large_scores_lose_nothing():
    """Weights of -1e8 and of -inf, and a sentence whose log Z has seven digits: float32 would be off by 0.06 there."""
    params = random_params(np.random.default_rng(0), 2)
    hard = CRFParams(np.float32([[0, -1e8], [-np.inf, 0]]), np.zeros(2, np.float32), np.zeros(2, np.float32))
    emissions, mask = np.zeros((1, 3, 2), np.float32), np.ones((1, 3), bool)
    both = [SpanTags(0, 0, np.array([[True, False], [False, True]])), SpanTags(0, 1, np.array([[True, False]]))]
    np.testing.assert_allclose(span_probabilities(emissions, mask, hard, both), [0, 0.5])
    long = np.random.default_rng(1).normal(3e4, 1, (1, 300, 2))
    mask, last = np.ones((1, 300), bool), [SpanTags(0, 299, np.array([[True, False]]))]
    near = span_probabilities(long - 3e4, mask, params, last)
    np.testing.assert_allclose(span_probabilities(long, mask, params, last), near, rtol=1e-8)
