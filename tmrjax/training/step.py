"""The training step (appendix B) as pure functions: state, loss, one step of learning, one of predicting.

The state is donated, the batch is split over the mesh, everything else is replicated; XLA adds the gradients of the
devices. Nothing here touches the host.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from tmrjax.training.sharding import replicated, split_rows

if TYPE_CHECKING:
    import optax

Batch = Mapping[str, Any]

# loss(params, statistics, batch, key) -> (sum over the rows that are posts, (their number, new BatchNorm statistics,
# the sums of the parts of the loss by name, empty where there is one))
Loss = Callable[[Any, Any, Batch, jax.Array], tuple[jax.Array, tuple[jax.Array, Any, dict[str, jax.Array]]]]


class TrainState(flax.struct.PyTreeNode):
    """What a step of training reads and changes.

    ``statistics`` are the BatchNorm statistics, empty without a ResNet. ``seed`` of dropout is data, not part of the
    program: runs that differ in their seeds alone share one compilation.
    """

    step: jax.Array
    seed: jax.Array
    params: Any
    statistics: Any
    opt_state: Any

    @property
    def variables(self) -> dict[str, Any]:
        """What ``model.apply`` takes."""
        return {"params": self.params, "batch_stats": self.statistics}


def create_state(variables: dict[str, Any], optimizer: optax.GradientTransformation, *, seed: int) -> TrainState:
    """The state before the first step."""
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        seed=jnp.asarray(seed, jnp.int32),
        params=params,
        statistics=variables.get("batch_stats", {}),
        opt_state=optimizer.init(params),
    )


def _apply_in_training(model, params, statistics, batch, key):
    """(output, intermediates) with dropout, and the new BatchNorm statistics."""
    output, updated = model.apply(
        {"params": params, "batch_stats": statistics},
        batch,
        train=True,
        rngs={"dropout": key},
        mutable=["batch_stats"],
    )
    return output, updated.get("batch_stats", statistics)


class Head(Protocol):
    """What training asks of a head (:mod:`tmrjax.heads`)."""

    def loss(self, outputs: Any, batch: Batch) -> jax.Array:
        """[B]."""

    def predict(self, outputs: Any, batch: Batch) -> dict[str, Any]:
        """Arrays whose first axis is B, and parameters."""


def make_loss(model: Any, head: Head, prepare: Callable[[Batch], Batch] = lambda batch: batch) -> Loss:
    """The head's loss and the method's auxiliary losses, summed over the rows that are posts.

    Args:
        model: a :class:`tmrjax.methods.base.Method`.
        head: of its task.
        prepare: what is done to a batch on the device first, such as the normalisation of uint8 pixels.
    """

    def loss(params, statistics, batch, key):
        batch = prepare(batch)
        outputs, statistics = _apply_in_training(model, params, statistics, batch, key)
        rows = batch["row_mask"]
        parts = {"head": head.loss(outputs, batch), **outputs.losses}
        sums = {name: jnp.where(rows, part, 0).sum() for name, part in parts.items()}
        total = sum(sums[name] for name in sorted(sums))
        return total, (rows.sum(), statistics, sums if len(sums) > 1 else {})

    return loss


def make_train_step(
    loss: Loss, optimizer: optax.GradientTransformation, mesh: Mesh, *, accumulate: int = 1
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """``step(state, batch) -> (state, {"loss", "gradient_norm"})``; the state is donated.

    A method with auxiliary losses has each part of the loss besides, as ``loss_head``, ``loss_NAME``.

    The loss is the mean over the posts of the whole batch, so that neither rows of padding nor the number of devices
    nor ``accumulate`` (parts of the batch whose gradients are added before the update) changes it.
    """
    import optax  # prediction needs none, and it is slow to import

    gradient = jax.value_and_grad(loss, has_aux=True)

    def step(state: TrainState, batch: Batch):
        # rbg: drawing bits for dropout by threefry takes a sizable share of a step on CPU.
        key = jax.random.fold_in(jax.random.key(state.seed, impl="rbg"), state.step)
        if accumulate == 1:
            (total, (count, statistics, sums)), gradients = gradient(state.params, state.statistics, batch, key)
        else:
            # Row r goes to part r mod accumulate: every part is spread over all devices, nothing moves.
            parts = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), dict(batch))

            def of_part(statistics, index, rows):
                (total, (count, statistics, sums)), gradients = gradient(
                    state.params, statistics, rows, jax.random.fold_in(key, index)
                )
                return (total, count, gradients, sums), statistics

            def add(carry, part):
                found, statistics = of_part(carry[1], *part)
                return (jax.tree.map(jnp.add, carry[0], found), statistics), None

            indices = jnp.arange(accumulate)
            first = jax.tree.map(lambda x: x[0], (indices, parts))
            shapes = jax.eval_shape(of_part, state.statistics, *first)[0]
            zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
            ((total, count, gradients, sums), statistics), _ = jax.lax.scan(
                add, (zero, state.statistics), (indices, parts)
            )
        scale = 1 / jnp.maximum(count, 1)
        gradients = jax.tree.map(lambda g: g * scale, gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        new_state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            statistics=statistics,
            opt_state=opt_state,
        )
        metrics = {f"loss_{name}": value * scale for name, value in sums.items()}
        return new_state, {"loss": total * scale, "gradient_norm": optax.tree.norm(gradients), **metrics}

    everywhere = replicated(mesh)
    return jax.jit(
        step, donate_argnums=0, in_shardings=(everywhere, split_rows(mesh)), out_shardings=(everywhere, everywhere)
    )


@jax.jit
def all_finite(tree: Any) -> jax.Array:
    """True where no floating-point array of a tree holds NaN or an infinity."""
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)]
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in floats])) if floats else jnp.asarray(True)


def make_predict_step(
    model: Any, head: Head, mesh: Mesh, prepare: Callable[[Batch], Batch] = lambda batch: batch
) -> Callable[[dict[str, Any], Batch], dict[str, jax.Array]]:
    """``predict(variables, batch)``: what the head makes of a batch.

    Batches come split over the devices; what is predicted goes to every device of every process.
    """

    def predict(variables, batch):
        batch = prepare(batch)
        return head.predict(model.apply(variables, batch, train=False), batch)

    everywhere = replicated(mesh)
    return jax.jit(predict, in_shardings=(everywhere, split_rows(mesh)), out_shardings=everywhere)
