"""The one training loop, read from top to bottom: resume, steps, evaluation on dev, checkpoints, test once.

A run is a function of its config and its data: stopped by Ctrl-C, SIGTERM or a power cut and started again with the
same command, it ends with the same parameters as one that was never stopped, where the arithmetic of the device is the
same every time. metrics.jsonl has the same lines too, but for the seconds. Whatever the arithmetic, the epoch that is
reported is that of the weights in ``best/``: what is known of the best comes from the JSON beside them.

Nothing is saved whose losses or arrays are not finite.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from tqdm import tqdm

from experiments.lib.measuring import Metrics, Timer, Trace
from tmrjax.compilation import Compiled
from tmrjax.inputs.batching import PlannedBatches
from tmrjax.training.checkpoints import BEST, NEWEST, CheckpointError, CheckpointStore, load_best
from tmrjax.training.sharding import owned, replicate, shard_batch
from tmrjax.training.step import TrainState, all_finite

logger = logging.getLogger(__name__)

LOWER_IS_BETTER = ("ece", "log_loss")  # of the scores on dev; of all others the higher is
SIGNAL_CHECK_INTERVAL = 10  # steps between agreements of several processes on whether one was told to stop


class Interrupted(SystemExit):
    """The run was told to stop and has saved its state; its code is 128 + the signal's number, as shells expect."""


class StopSignal:
    """Remembers SIGINT and SIGTERM instead of dying of them; a second one falls back to the usual handling."""

    def __init__(self):
        self.received = 0

    def __enter__(self):
        self._previous = {number: signal.signal(number, self._receive) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _receive(self, number, _frame):
        self.received = number
        signal.signal(number, self._previous[number])

    def __exit__(self, *_):
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def agreed(self, step: int) -> int:
        """The signal that any process received, known to all of them at the same step; 0 without one."""
        if jax.process_count() == 1:
            return self.received
        if step % SIGNAL_CHECK_INTERVAL:
            return 0
        from jax.experimental import multihost_utils

        return int(multihost_utils.process_allgather(np.int32(self.received)).max())


def progress_bar(batches: Iterator, total: int, description: str = "evaluate") -> Iterator:
    """A bar on the terminal of process 0, silent where the output is no terminal."""
    return tqdm(batches, total=total, desc=description, leave=False, disable=None if jax.process_index() == 0 else True)


def is_better(scores: Mapping[str, float], best: Mapping[str, Any] | None, choose_by: str) -> bool:
    """Whether the score that the epoch is chosen by is better than the best one's; NaN never is."""
    if best is None:
        return True
    found, kept = scores[choose_by], best[choose_by]
    return found < kept if choose_by in LOWER_IS_BETTER else found > kept


def require_finite(values: Sequence[Mapping[str, Any]], state: TrainState, step: int, newest: CheckpointStore) -> None:
    """Raise FloatingPointError where a loss of the steps up to ``step``, or an array of the state, is not finite.

    An infinite norm of the gradients alone is a warning: clipping may have saved the step.
    """
    first = step - len(values) + 1
    kept = newest.latest_step()
    good = f"the last good checkpoint is {newest.directory / str(kept)}" if kept else "there is no checkpoint yet"
    advice = f"Nothing was saved since; {good}. Lower the learning rates and train in another --workdir"
    for number, value in enumerate(values, first):
        if not np.isfinite(value["loss"]):
            raise FloatingPointError(f"the loss is {float(value['loss'])} at step {number}. {advice}")
    if not all_finite((state.params, state.statistics, state.opt_state)):
        raise FloatingPointError(f"parameters or the optimiser's state are not finite after step {step}. {advice}")
    wild = [number for number, value in enumerate(values, first) if not np.isfinite(value["gradient_norm"])]
    if wild:
        logger.warning(
            "step %d: the norm of the gradients is not finite (%d of the last %d steps): the rates are too high",
            wild[0], len(wild), len(values),
        )  # fmt: skip


def train(
    *,
    workdir: Path,
    state: TrainState,
    step_function: Callable,
    batches: PlannedBatches,
    evaluate: Callable[[Any], dict[str, float]],
    meta: dict[str, Any],
    mesh: Mesh,
    log_every: int,
    checkpoint_every: int,
    num_threads: int,
    num_workers: int,
    steps: int | None = None,
    evaluate_every: int | None = None,
    choose_by: str = "f1",
    rates: Mapping[str, Callable[[int], float]] | None = None,
    profile: int = 0,
) -> dict[str, Any]:
    """Train to the last step, or resume and do so.

    Args:
        workdir: where checkpoints and metrics go.
        state: before the first step, host arrays.
        step_function: :func:`tmrjax.training.step.make_train_step`'s.
        batches: all epochs of this process.
        evaluate: variables -> scores on dev, such as {"precision", "recall", "f1"}.
        meta: what a checkpoint holds besides arrays; "config" in it decides whether a workdir belongs to this run.
        mesh: devices.
        log_every: steps between lines of metrics.
        checkpoint_every: steps between checkpoints besides those after each evaluation, 0 for none.
        num_threads: that prepare batches.
        num_workers: processes that prepare batches, 0 for none.
        steps: where to end, within ``batches``; their number unless given.
        evaluate_every: steps between evaluations on dev, the last step's besides; an epoch unless given.
        choose_by: the score on dev of which the best is kept (of LOWER_IS_BETTER the lowest), the earliest of equals.
        rates: by group, updates made before -> the learning rate of the next one, for the metrics.
        profile: how many steps are traced (:class:`experiments.lib.measuring.Trace`).

    Returns:
        {"best": {"step", "epoch", **scores}, "steps", "seconds_per_step", "waiting_share", "compile_seconds"}.

    Raises:
        Interrupted: told to stop; the state is saved.
        FloatingPointError: a loss, a parameter or the optimiser's state is not finite; what was saved before is good.
        CheckpointError: a checkpoint of the workdir is damaged, or cannot be written.
    """
    total = len(batches) if steps is None else steps
    per_epoch = batches.plan.batches_per_epoch
    evaluate_every = evaluate_every or per_epoch
    if not 0 < total <= len(batches):
        raise ValueError(f"{total} steps were asked for, but the batches hold {len(batches)}")

    # ---- resume: own workdir, else the given state
    newest, best_store = CheckpointStore(workdir / NEWEST), CheckpointStore(workdir / BEST)
    # Not what checkpoints/ says of the best: a run that died between its two saves has a best of a later step.
    best = (best_store.meta() or {}).get("best")
    timing, pending = None, []
    step = newest.latest_step() or 0
    if step:
        state, saved = newest.restore(state, mesh)
        timing, pending = saved["timing"], saved.get("pending", [])
        if best is None and saved["best"] is not None:
            raise CheckpointError(
                f"{best_store.directory}: the best checkpoint, of step {saved['best']['step']}, is gone. Copy it back, "
                "or train again in another --workdir"
            )
        logger.info("resumed at step %d of %d", step, total)
    else:
        state = owned(replicate(state, mesh))

    def save() -> None:
        """The losses that no line of metrics holds yet come along, so that a resumed run writes the same lines."""
        waiting = [{name: float(value) for name, value in values.items()} for values in jax.device_get(pending)]
        require_finite(waiting, state, step, newest)
        newest.save(step, state, {**meta, "best": best, "timing": timer.to_meta(), "pending": waiting})

    # ---- loop
    timer = Timer(timing)
    compiled = Compiled(step_function, timer)
    stream = batches.iterate(
        step, num_threads=num_threads, num_workers=num_workers, place=lambda batch: shard_batch(batch, mesh)
    )
    silent = None if jax.process_index() == 0 else True
    bar = tqdm(total=total, initial=step, desc="train", unit="step", disable=silent)
    timed = 0  # steps since the window of time began; a resumed window has more losses than that
    with StopSignal() as stop, Trace(workdir / "profile", profile, step) as trace, closing(stream):
        metrics = Metrics(workdir, step)  # here: a run whose metrics are there saves when it is told to stop
        timer.restart()
        for _, (_, batch) in zip(range(step, total), timer.waits(stream), strict=False):
            trace.before(step)
            state, values = compiled(state, batch)
            step += 1
            timed += 1
            pending.append(values)
            bar.update()
            last = step == total
            due = last or step % evaluate_every == 0
            if len(pending) >= log_every or due:
                fetched = jax.device_get(pending)
                timer.stop(timed)
                means = {name: float(np.mean([float(values[name]) for values in fetched])) for name in fetched[0]}
                means |= {f"learning_rate/{group}": float(rate(step - 1)) for group, rate in (rates or {}).items()}
                metrics.write(step, means | {"seconds_per_step": timer.windows[-1]})
                bar.set_postfix(loss=f"{means['loss']:.3f}")
                require_finite(fetched, state, step, newest)
                pending.clear()
                timed = 0
            if due:
                epoch = step // per_epoch if step % per_epoch == 0 else round(step / per_epoch, 2)
                scores = evaluate(state.variables)
                metrics.write(step, {f"dev/{name}": value for name, value in scores.items()} | {"epoch": epoch})
                tqdm.write(f"epoch {epoch}: dev " + "  ".join(f"{k} {100 * v:.2f}" for k, v in scores.items()))
                # Up to the step of best/ a run that is repeated from an older checkpoint has chosen already.
                if (best is None or step > best["step"]) and is_better(scores, best, choose_by):
                    best = {"step": step, "epoch": epoch, **scores}
                    best_store.save(step, state.variables, {**meta, "best": best})
            signalled = stop.agreed(step)
            if due or signalled or (checkpoint_every and step % checkpoint_every == 0):
                save()
            if signalled and not last:
                bar.close()
                metrics.close()
                print(f"stopped at step {step} of {total} and saved; the same command resumes", flush=True)
                raise Interrupted(128 + signalled)
            if due:
                timer.restart()  # evaluation and saving are no part of a step
                timed = 0
    bar.close()
    metrics.close()
    newest.close()
    best_store.close()
    return {
        "best": best,
        "steps": total,
        "seconds_per_step": timer.seconds_per_step,
        "waiting_share": timer.waiting_share,
        "compile_seconds": timer.compile_seconds,
    }


def restore_best(workdir: Path, mesh: Mesh) -> tuple[Any, dict[str, Any]]:
    """The variables of the best epoch on the devices of ``mesh``, and their JSON."""
    variables, meta = load_best(workdir)
    return replicate(variables, mesh), meta
