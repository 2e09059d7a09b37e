"""The loop on a model of one number: what it saves, what it refuses to save, and what a killed run goes on with."""

import dataclasses
import gzip
import json
import signal

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.lib import loop, measuring
from experiments.lib.loop import Interrupted, train
from tmrjax.inputs.batching import BatchPlan, PlannedBatches
from tmrjax.training.checkpoints import CheckpointError, CheckpointStore, load_best
from tmrjax.training.sharding import make_mesh
from tmrjax.training.step import TrainState, all_finite

EPOCHS, PER_EPOCH = 3, 4


@dataclasses.dataclass(frozen=True)
class Numbers(PlannedBatches):
    """One number a batch, 1 to 4 in each epoch."""

    plan: BatchPlan = dataclasses.field(default_factory=lambda: BatchPlan([1] * PER_EPOCH, [1], 1, epochs=EPOCHS))
    process_index: int = 0
    process_count: int = 1

    def load(self, bucket, indices):
        return {"x": np.asarray(indices, np.float32) + 1}


class Step:
    """params w := w + x, loss w; ``losses``, ``weights`` and ``norms`` by step replace what comes out."""

    def __init__(self, losses=None, weights=None, norms=None):
        self.losses, self.weights, self.norms = losses or {}, weights or {}, norms or {}

    def lower(self, state, batch):
        return self

    def compile(self):
        return self

    def __call__(self, state, batch):
        step = int(state.step) + 1
        w = jnp.asarray(self.weights.get(step, float(state.params["w"]) + float(batch["x"][0])), jnp.float32)
        values = {
            "loss": jnp.float32(self.losses.get(step, float(state.params["w"]))),
            "gradient_norm": jnp.float32(self.norms.get(step, 1.0)),
        }
        return state.replace(step=state.step + 1, params={"w": w}), values


def run(workdir, step=None, evaluate=lambda variables: {"f1": float(variables["params"]["w"])}, **changes):
    state = TrainState(jnp.int32(0), jnp.int32(0), {"w": jnp.float32(0)}, {}, {"m": jnp.float32(0)})
    options = {"log_every": 3, "checkpoint_every": 0, "num_threads": 1, "num_workers": 0} | changes
    return train(
        workdir=workdir, state=state, step_function=step or Step(), batches=Numbers(), evaluate=evaluate,
        meta={"config": {}}, mesh=make_mesh(1), **options,
    )  # fmt: skip


def lines_of(workdir):
    def refuse(token):
        raise AssertionError(f"{token} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def newest(workdir):
    store = CheckpointStore(workdir / "checkpoints")
    template = TrainState(jnp.int32(0), jnp.int32(0), {"w": jnp.float32(0)}, {}, {"m": jnp.float32(0)})
    return store.latest_step(), float(store.restore(template, make_mesh(1))[0].params["w"])


@pytest.mark.parametrize(
    ("faulty", "message"),
    [
        ({"losses": {6: np.nan}}, "the loss is nan at step 6"),
        ({"losses": {6: np.inf}}, "the loss is inf at step 6"),
        ({"weights": {6: np.nan}}, "parameters or the optimiser's state are not finite after step 6"),
    ],
)
def test_what_is_not_finite_is_never_saved(tmp_path, faulty, message):
    """Between two lines of metrics, where a checkpoint used to be saved unseen and the last good one was lost."""
    with pytest.raises(FloatingPointError, match=f"{message}.*the last good checkpoint is .*checkpoints/5"):
        run(tmp_path, Step(**faulty), checkpoint_every=1, log_every=50)
    assert newest(tmp_path) == (5, 11.0)
    assert float(load_best(tmp_path)[0]["params"]["w"]) == 10.0
    lines_of(tmp_path)


def test_parameters_that_are_not_finite_at_the_end_of_an_epoch_do_not_replace_the_best(tmp_path):
    with pytest.raises(FloatingPointError, match=r"not finite after step 8.*checkpoints/4"):
        run(tmp_path, Step(weights={8: np.inf}))
    assert load_best(tmp_path)[1]["best"]["step"] == 4


def test_numbers_that_are_not_finite_are_null_in_the_metrics_and_said(tmp_path, caplog):
    run(tmp_path, Step(norms={2: np.inf}))
    first = lines_of(tmp_path)[0]
    assert first["step"] == 3 and first["gradient_norm"] is None and first["loss"] == pytest.approx(4 / 3)
    assert "step 3: gradient_norm is inf; written as null" in caplog.text
    assert "step 2: the norm of the gradients is not finite (1 of the last 3 steps)" in caplog.text


def test_all_finite_looks_at_floats_only():
    assert all_finite({"a": jnp.ones(3), "n": jnp.int32(2)}) and all_finite({})
    assert not all_finite({"a": jnp.array([1, jnp.nan])}) and not all_finite({"a": jnp.array(jnp.inf, jnp.bfloat16)})


class Killed(BaseException):
    """As a power cut: nothing of the program runs behind it."""


def test_what_is_reported_of_the_best_is_true_of_its_weights_after_a_kill(tmp_path, monkeypatch):
    """Killed between the save of best/ and that of checkpoints/; the second evaluation differs a little."""
    scores = iter([0.5, 0.6])
    save = CheckpointStore.save

    def dying(self, step, *arguments):
        if step == 8 and self.directory.name == "checkpoints":
            raise Killed
        save(self, step, *arguments)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(CheckpointStore, "save", dying)
        run(tmp_path, evaluate=lambda _: {"f1": next(scores)})
    assert newest(tmp_path)[0] == 4 and load_best(tmp_path)[1]["best"]["step"] == 8
    again = iter([0.49, 0.3])
    outcome = run(tmp_path, evaluate=lambda _: {"f1": next(again)})
    variables, kept = load_best(tmp_path)
    assert outcome["best"] == kept["best"] == {"step": 8, "epoch": 2, "f1": 0.6}
    assert float(variables["params"]["w"]) == 20.0


def test_a_kill_before_the_first_checkpoint_leaves_a_best_that_holds(tmp_path, monkeypatch):
    save = CheckpointStore.save

    def dying(self, step, *arguments):
        if self.directory.name == "checkpoints":
            raise Killed
        save(self, step, *arguments)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(CheckpointStore, "save", dying)
        run(tmp_path, evaluate=lambda _: {"f1": 0.9})
    scores = iter([0.95, 0.2, 0.91])
    assert run(tmp_path, evaluate=lambda _: {"f1": next(scores)})["best"] == {"step": 12, "epoch": 3, "f1": 0.91}


def test_the_metrics_have_the_learning_rate_of_the_last_update(tmp_path):
    run(tmp_path, rates={"encoder": lambda updates: updates / 10, "crf": lambda _: 1.0})
    found = {line["step"]: line for line in lines_of(tmp_path) if "loss" in line}
    assert {step: line["learning_rate/encoder"] for step, line in found.items()} == {
        3: 0.2, 4: 0.3, 7: 0.6, 8: 0.7, 11: 1.0, 12: 1.1,
    }  # fmt: skip
    assert all(line["learning_rate/crf"] == 1 for line in found.values())


def test_what_share_of_the_time_was_waiting(monkeypatch):
    """On a clock of its own: batches take 3 seconds to come, steps 1, compilation 10 and evaluation 100."""
    clock = [0.0]
    monkeypatch.setattr(measuring.time, "perf_counter", lambda: clock[0])

    def batches():
        for number in range(4):
            clock[0] += 3
            yield number

    timer = measuring.Timer({"windows": [8.0], "compile_seconds": 1.0, "seconds": 16.0, "waited": 0.0})
    for number in timer.waits(batches()):
        clock[0] += 1
        if number == 0:
            clock[0] += 10
            timer.compile_seconds += 10
        if number == 1:
            timer.stop(2)
            clock[0] += 100
            timer.restart()
    timer.stop(2)
    assert timer.windows == [8.0, 4.0, 4.0] and timer.seconds_per_step == 4
    assert timer.waiting_share == 12 / 32 and measuring.Timer(timer.to_meta()).waiting_share == 12 / 32
    assert measuring.Timer().waiting_share is None


def test_some_steps_are_traced(tmp_path):
    run(tmp_path, profile=2)
    (profile,) = (tmp_path / "profile").rglob("*.xplane.pb")
    with gzip.open(profile.parent / "perfetto_trace.json.gz") as file:
        assert json.load(file)["traceEvents"]
    run(tmp_path / "other")
    assert not (tmp_path / "other" / "profile").exists()


def test_a_trace_ends_with_a_run_that_fails(tmp_path):
    with pytest.raises(FloatingPointError):
        run(tmp_path, Step(losses={5: np.nan}), log_every=1, profile=8)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


def test_a_best_that_is_gone_is_said(tmp_path):
    stop_at(tmp_path, 6, pytest.MonkeyPatch())
    for folder in (tmp_path / "best").iterdir():
        folder.rename(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="the best checkpoint, of step 4, is gone"):
        run(tmp_path)


def stop_at(workdir, step, patch):
    patch.setattr(loop.StopSignal, "agreed", lambda _, now: signal.SIGTERM if now == step else 0)
    with pytest.raises(Interrupted):
        run(workdir)
    patch.undo()


def test_a_resumed_run_writes_the_lines_of_one_that_was_never_stopped(tmp_path, monkeypatch):
    run(tmp_path / "whole")
    for step in (1, 6, 11):
        stop_at(tmp_path / "parts", step, monkeypatch)
    run(tmp_path / "parts")
    whole, parts = (
        [line | {"seconds_per_step": 0} for line in lines_of(tmp_path / name)] for name in ("whole", "parts")
    )
    assert whole == parts and [line["step"] for line in whole] == [3, 4, 4, 7, 8, 8, 11, 12, 12]


@pytest.mark.parametrize(("score", "best"), [("f1", 8), ("log_loss", 4), ("ece", 4)])
def test_the_best_is_the_lowest_of_a_loss_and_the_highest_of_a_score(tmp_path, score, best):
    values = iter([0.2, 0.5, 0.3])
    outcome = run(tmp_path, evaluate=lambda _: {score: next(values)}, choose_by=score)
    assert outcome["best"]["step"] == best == load_best(tmp_path)[1]["best"]["step"]


def test_the_first_step_gets_a_state_that_it_may_write_over(tmp_path, monkeypatch):
    """Arrays that lie in host arrays cannot be donated: the step would hold both."""
    owned, seen = [], []

    def own(tree):
        owned.append(tree)
        return loop_owned(tree)

    class Watching(Step):
        def __call__(self, state, batch):
            seen.append(state)
            return super().__call__(state, batch)

    loop_owned = loop.owned
    monkeypatch.setattr(loop, "owned", own)
    run(tmp_path, Watching())
    assert len(owned) == 1 and owned[0].params["w"] is not seen[0].params["w"]
