"""Sentences, parameters and answers for the CRF's tests: every path enumerated, and recursions in float64."""

import itertools

import numpy as np

from tmrjax.crf import CRFParams

SHAPE = 8, 6, 4


def random_params(generator, num_tags):
    shapes = (num_tags, num_tags), (num_tags,), (num_tags,)
    return CRFParams(*(generator.normal(size=shape).astype(np.float32) for shape in shapes))


def random_batch(seed, batch=SHAPE[0], time=SHAPE[1], num_tags=SHAPE[2]):
    """Emissions, tags, a ragged mask that includes an empty row and a row with a hole, parameters."""
    generator = np.random.default_rng(seed)
    emissions = generator.normal(size=(batch, time, num_tags)).astype(np.float32)
    tags = generator.integers(0, num_tags, (batch, time))
    lengths = generator.integers(1, time + 1, batch)
    lengths[0] = time
    mask = np.arange(time) < lengths[:, None]
    mask[1] = False
    mask[2] = np.arange(time) % 3 != generator.integers(0, 2) if time > 1 else True
    return emissions, tags, mask, random_params(generator, num_tags)


def path_scores(emissions, params, paths):
    """s(y) of whole sequences [N,T] over one sentence [T,K], in float64."""
    transitions, start, end = (np.asarray(p, np.float64) for p in params)
    paths = np.asarray(paths)
    emitted = np.asarray(emissions, np.float64)[np.arange(paths.shape[1]), paths].sum(1)
    return start[paths[:, 0]] + emitted + transitions[paths[:, :-1], paths[:, 1:]].sum(1) + end[paths[:, -1]]


class Enumeration:
    """Every path of one sentence, of which only the valid positions are kept."""

    def __init__(self, emissions, mask, params, allowed=None):
        emissions = np.asarray(emissions)[mask]
        if allowed is not None:
            emissions = np.where(allowed[mask], emissions, -np.inf)
        self.mask, self.num_tags, self.empty = mask, emissions.shape[1], not mask.any()
        self.paths = np.array(list(itertools.product(range(self.num_tags), repeat=len(emissions))))
        self.scores = np.zeros(1) if self.empty else path_scores(emissions, params, self.paths)
        self.log_normalizer = np.logaddexp.reduce(self.scores)

    @property
    def marginals(self):
        result = np.zeros((len(self.mask), self.num_tags))
        if not self.empty and self.log_normalizer > -np.inf:
            probability = np.exp(self.scores - self.log_normalizer)
            result[self.mask] = [np.bincount(tags, probability, minlength=self.num_tags) for tags in self.paths.T]
        return result

    @property
    def best(self):
        """Among the best paths the one whose last tag is lowest, then the one before, and so on."""
        result = np.zeros(len(self.mask), int)
        if not self.empty:
            best = self.paths[self.scores == self.scores.max()]
            result[self.mask] = min(best.tolist(), key=lambda path: path[::-1])
        return result


def dense(params, emissions):
    return params, emissions


def forbidden(params, emissions):
    """Tag 1 only after tag 0 or itself, never first: −inf."""
    transitions, start = params.transitions.copy(), params.start_transitions.copy()
    transitions[2:, 1] = start[1] = -np.inf
    return params._replace(transitions=transitions, start_transitions=start), emissions


def forbidden_softly(params, emissions):
    params, emissions = forbidden(params, emissions)
    return CRFParams(*(np.maximum(p, np.float32(-1e4)) for p in params)), emissions


def far_apart(params, emissions):
    """States hundreds of nats apart, and the far one can be the only way on."""
    params, emissions = forbidden(params, emissions)
    return params, emissions * 300


def never_entered(params, emissions):
    """No tag leads to tag 1."""
    transitions = params.transitions.copy()
    transitions[:, 1] = -np.inf
    return params._replace(transitions=transitions), emissions


def unreachable(params, emissions):
    """Every path of more than one position is forbidden."""
    return params._replace(transitions=np.full_like(params.transitions, -np.inf)), emissions


KINDS = [dense, forbidden, forbidden_softly, far_apart, never_entered, unreachable]


def log_sum_exp(values, axis):
    peak = values.max(axis, keepdims=True)
    with np.errstate(divide="ignore"):
        return np.squeeze(peak, axis) + np.log(np.exp(values - peak).sum(axis))


def recursions_in_float64(emissions, tags, params):
    """log Z, log p(tags), marginals and best score of whole sentences by the textbook recursions in log space."""
    transitions, start, end = (np.asarray(p, np.float64) for p in params)
    emissions = np.asarray(emissions, np.float64)
    alpha, beta = np.empty_like(emissions), np.empty_like(emissions)
    alpha[:, 0], beta[:, -1] = start + emissions[:, 0], end
    best = alpha[:, 0]
    for t in range(1, emissions.shape[1]):
        alpha[:, t] = log_sum_exp(alpha[:, t - 1, :, None] + transitions, 1) + emissions[:, t]
        best = (best[:, :, None] + transitions).max(1) + emissions[:, t]
    for t in range(emissions.shape[1] - 2, -1, -1):
        beta[:, t] = log_sum_exp(transitions + (emissions[:, t + 1] + beta[:, t + 1])[:, None], 2)
    normalizer = log_sum_exp(alpha[:, -1] + end, 1)
    score = np.array([path_scores(e, params, path[None])[0] for e, path in zip(emissions, tags, strict=True)])
    probability = np.exp(alpha + beta - normalizer[:, None, None])
    return normalizer, score - normalizer, probability, (best + end).max(1)
