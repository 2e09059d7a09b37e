"""Learning rates by pattern: the first one that fits counts, and what none fits is an error."""

import jax
import numpy as np
import pytest

from tmrjax.training.optimizer import (
    FROZEN,
    OptimizerSettings,
    make_optimizer,
    parameter_groups,
    schedule,
    schedules_of,
)

PARAMS = {
    "bert": {"layer_0": {"kernel": np.ones(2, np.float32)}, "layer_1": {"kernel": np.ones(2, np.float32)}},
    "crf": {"transitions": np.ones(3, np.float32)},
    "emission": {"kernel": np.ones(4, np.float32), "bias": np.ones(4, np.float32)},
}
OWN = (("bert/.*", "encoder"), ("crf/.*", "crf"), (".*", "fusion"))


def test_the_first_pattern_that_fits_the_whole_path_counts():
    groups = parameter_groups(PARAMS, (("bert/layer_1/.*", "top"), ("kernel", "never"), *OWN))
    assert groups == {
        "bert": {"layer_0": {"kernel": "encoder"}, "layer_1": {"kernel": "top"}},
        "crf": {"transitions": "crf"},
        "emission": {"kernel": "fusion", "bias": "fusion"},
    }


def test_what_is_frozen_comes_first():
    groups = parameter_groups(PARAMS, OWN, frozen=("bert/.*",))
    assert set(jax.tree.leaves(groups["bert"])) == {FROZEN} and groups["crf"]["transitions"] == "crf"


def test_every_parameter_without_a_rate_is_listed():
    with pytest.raises(ValueError, match="no pattern gives a learning rate to crf/transitions, emission/bias"):
        parameter_groups(PARAMS, (("bert/.*", "encoder"),))
    with pytest.raises(ValueError, match=r"the pattern 'bert/\(' of a learning rate is no regular expression"):
        parameter_groups(PARAMS, (("bert/(", "encoder"),))
    groups = parameter_groups(PARAMS, OWN)
    with pytest.raises(ValueError, match=r"the groups \['crf'\] have no learning rate; .*'encoder', 'fusion'"):
        make_optimizer(OptimizerSettings(10, {"encoder": 1.0, "fusion": 1.0}), groups)


def test_each_group_moves_at_its_own_rate():
    """Adam's first step is the rate, whatever the gradient is."""
    rates = {"encoder": 1e-3, "crf": 3e-1, "fusion": 1e-2}
    settings = OptimizerSettings(4, rates, weight_decay=0.0, warmup=0.0, clip=1e9)
    optimizer = make_optimizer(settings, parameter_groups(PARAMS, OWN, frozen=("bert/layer_0/.*",)))
    state, gradients = optimizer.init(PARAMS), jax.tree.map(np.ones_like, PARAMS)
    _, state = optimizer.update(gradients, state, PARAMS)  # the first rate of a schedule is 0
    updates, _ = optimizer.update(gradients, state, PARAMS)
    assert not updates["bert"]["layer_0"]["kernel"].any()
    for tree, rate in ((updates["bert"]["layer_1"], 1e-3), (updates["crf"], 3e-1), (updates["emission"], 1e-2)):
        for leaf in jax.tree.leaves(tree):
            np.testing.assert_allclose(leaf, -rate, rtol=1e-4)


def test_sgd_with_momentum_decays_by_epoch_as_recurrent_taggers_do():
    """v = 0.9 v + g + decay w; w −= rate v, with rate = peak / (1 + 0.05 t) in epoch t; biases are not decayed."""
    settings = OptimizerSettings(
        6, {"fusion": 0.1}, weight_decay=0.5, warmup=0.0, clip=1e9, kind="sgd", momentum=0.9, decay="inverse", epochs=3
    )
    params = {"emission": {"kernel": np.full(2, 2.0, np.float32), "bias": np.full(2, 2.0, np.float32)}}
    optimizer = make_optimizer(settings, parameter_groups(params, ((".*", "fusion"),)))
    state, expected, velocity = optimizer.init(params), {"kernel": 2.0, "bias": 2.0}, {"kernel": 0.0, "bias": 0.0}
    for step in range(6):
        gradients = jax.tree.map(lambda leaf, step=step: np.full_like(leaf, 1.0 + step), params)
        updates, state = optimizer.update(gradients, state, params)
        params = jax.tree.map(np.add, params, updates)
        for name, decay in (("kernel", 0.5), ("bias", 0.0)):
            velocity[name] = 0.9 * velocity[name] + 1.0 + step + decay * expected[name]
            expected[name] -= 0.1 / (1 + 0.05 * (step // 2)) * velocity[name]
            np.testing.assert_allclose(params["emission"][name], expected[name], rtol=1e-5)


def test_constant_and_warmed_rates():
    rates = [float(schedule(2.0, 10, 0.4, "constant")(step)) for step in range(10)]
    np.testing.assert_allclose(rates, [0.5, 1.0, 1.5, *[2.0] * 7])


@pytest.mark.parametrize("decay", ["linear", "inverse", "constant"])
def test_the_rates_that_are_told_are_those_of_the_updates(decay):
    """Of SGD without momentum an update is minus the rate times the gradient."""
    settings = OptimizerSettings(
        8, {"encoder": 0.5, "crf": 0.25, "fusion": 1.0}, warmup=0.25, clip=1e9, weight_decay=0, kind="sgd", decay=decay,
        epochs=4,
    )  # fmt: skip
    groups = parameter_groups(PARAMS, OWN, frozen=("crf/.*",))
    optimizer = make_optimizer(settings, groups)
    state, gradients = optimizer.init(PARAMS), jax.tree.map(np.ones_like, PARAMS)
    for step in range(8):
        updates, state = optimizer.update(gradients, state, PARAMS)
        found = {group: rate(step) for group, rate in schedules_of(settings, groups).items()}
        assert set(found) == {"encoder", "fusion"}  # what is frozen has none
        np.testing.assert_allclose(updates["bert"]["layer_0"]["kernel"], -found["encoder"], rtol=1e-6)
        np.testing.assert_allclose(updates["emission"]["bias"], -found["fusion"], rtol=1e-6)
