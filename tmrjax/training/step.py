"""The training step (appendix B) as pure functions: state, optimiser, one step of learning, one of predicting.

The state is donated, the batch is split over the mesh, everything else is replicated; XLA adds the gradients of the
devices. Nothing here touches the host.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from tmrjax import crf
from tmrjax.models import Batch, TMRForNER, TMRForRE
from tmrjax.text.tags import forbidden_transitions
from tmrjax.training.sharding import replicated, split_rows

ENCODERS = ("bert", "picture_encoder")

# loss(params, statistics, batch, key) -> (sum over the rows that are posts, (their number, new BatchNorm statistics))
Loss = Callable[[Any, Any, Batch, jax.Array], tuple[jax.Array, tuple[jax.Array, Any]]]

# Added to forbidden transitions while decoding: beyond any score, yet finite, so that no NaN arises.
_FORBIDDEN = -1e8


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


@dataclasses.dataclass(frozen=True)
class OptimizerSettings:
    """AdamW as BERT is fine-tuned.

    lr_encoder for BERT and ResNet, lr_fusion for everything above them, CRF included; weight decay on kernels only;
    linear warm-up over ``warmup`` of all steps, then linear decay to zero; clipping by the global norm.
    """

    steps: int
    lr_encoder: float = 3e-5
    lr_fusion: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.1
    clip: float = 1.0
    b1: float = 0.9
    b2: float = 0.999


def schedule(peak: float, steps: int, warmup: float) -> optax.Schedule:
    """0 → peak over the first ``warmup`` share of ``steps``, then peak → 0."""
    rise = max(1, round(warmup * steps))
    return optax.join_schedules(
        [optax.linear_schedule(0.0, peak, rise), optax.linear_schedule(peak, 0.0, max(1, steps - rise))], [rise]
    )


def parameter_groups(params: Any, frozen: Collection[str] = ()) -> Any:
    """A tree of "encoder", "fusion" or "frozen" in the shape of ``params``; ``frozen`` names modules at its top."""
    groups = {name: "encoder" if name in ENCODERS else "fusion" for name in params}
    groups |= {name: "frozen" for name in frozen if name in params}
    return {name: jax.tree.map(lambda _, name=name: groups[name], tree) for name, tree in params.items()}


def is_kernel(params: Any) -> Any:
    """True for the kernels of dense and convolutional layers and the weights of Eq. 1, by name.

    Biases, norms, embeddings and the CRF's transitions are not decayed.
    """

    def decide(path, _):
        return path[-1].key == "kernel" or path[-1].key.endswith("_weight")

    return jax.tree_util.tree_map_with_path(decide, params)


def make_optimizer(
    settings: OptimizerSettings, params: Any, frozen: Collection[str] = ()
) -> optax.GradientTransformation:
    """Clipping over all groups together, then AdamW with the group's learning rate; frozen groups hold no state."""

    def adamw(peak):
        return optax.adamw(
            schedule(peak, settings.steps, settings.warmup),
            settings.b1,
            settings.b2,
            weight_decay=settings.weight_decay,
            mask=is_kernel,
        )

    groups = {
        "encoder": adamw(settings.lr_encoder),
        "fusion": adamw(settings.lr_fusion),
        "frozen": optax.set_to_zero(),
    }
    return optax.chain(
        optax.clip_by_global_norm(settings.clip), optax.multi_transform(groups, parameter_groups(params, frozen))
    )


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


def tagging_loss(model: TMRForNER) -> Loss:
    """Eq. 9: −Σ log p(y) of the CRF over the rows that are posts."""

    def loss(params, statistics, batch, key):
        (emissions, intermediates), statistics = _apply_in_training(model, params, statistics, batch, key)
        likelihoods = crf.log_likelihood(emissions, batch["tags"], batch[model.tag_mask], intermediates["crf"])
        rows = batch["row_mask"]
        return -jnp.where(rows, likelihoods, 0).sum(), (rows.sum(), statistics)

    return loss


def classification_loss(model: TMRForRE) -> Loss:
    """Eq. 11: the cross-entropy −Σ log softmax(logits)[relation] over the rows that are posts."""

    def loss(params, statistics, batch, key):
        (logits, _), statistics = _apply_in_training(model, params, statistics, batch, key)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["relation"])
        rows = batch["row_mask"]
        return jnp.where(rows, losses, 0).sum(), (rows.sum(), statistics)

    return loss


def make_train_step(
    loss: Loss, optimizer: optax.GradientTransformation, mesh: Mesh, *, accumulate: int = 1
) -> Callable[[TrainState, Batch], tuple[TrainState, dict[str, jax.Array]]]:
    """``step(state, batch) -> (state, {"loss", "gradient_norm"})``; the state is donated.

    The loss is the mean over the posts of the whole batch, so that neither rows of padding nor the number of devices
    nor ``accumulate`` (parts of the batch whose gradients are added before the update) changes it.
    """
    gradient = jax.value_and_grad(loss, has_aux=True)

    def step(state: TrainState, batch: Batch):
        # rbg: drawing bits for dropout by threefry takes a sizable share of a step on CPU.
        key = jax.random.fold_in(jax.random.key(state.seed, impl="rbg"), state.step)
        if accumulate == 1:
            (total, (count, statistics)), gradients = gradient(state.params, state.statistics, batch, key)
        else:
            # Row r goes to part r mod accumulate: every part is spread over all devices, nothing moves.
            parts = jax.tree.map(lambda x: x.reshape(-1, accumulate, *x.shape[1:]).swapaxes(0, 1), dict(batch))

            def add(carry, part):
                sums, statistics = carry
                index, rows = part
                (total, (count, statistics)), gradients = gradient(
                    state.params, statistics, rows, jax.random.fold_in(key, index)
                )
                return (jax.tree.map(jnp.add, sums, (total, count, gradients)), statistics), None

            zero = (jnp.zeros(()), jnp.zeros((), jnp.int32), jax.tree.map(jnp.zeros_like, state.params))
            carry = (zero, state.statistics)
            ((total, count, gradients), statistics), _ = jax.lax.scan(add, carry, (jnp.arange(accumulate), parts))
        scale = 1 / jnp.maximum(count, 1)
        gradients = jax.tree.map(lambda g: g * scale, gradients)
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
        new_state = state.replace(
            step=state.step + 1,
            params=optax.apply_updates(state.params, updates),
            statistics=statistics,
            opt_state=opt_state,
        )
        return new_state, {"loss": total * scale, "gradient_norm": optax.tree.norm(gradients)}

    everywhere = replicated(mesh)
    return jax.jit(
        step, donate_argnums=0, in_shardings=(everywhere, split_rows(mesh)), out_shardings=(everywhere, everywhere)
    )


@jax.jit
def all_finite(tree: Any) -> jax.Array:
    """True where no floating-point array of a tree holds NaN or an infinity."""
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)]
    return jnp.all(jnp.stack([jnp.isfinite(leaf).all() for leaf in floats])) if floats else jnp.asarray(True)


def constrain(params: crf.CRFParams, tags: tuple[str, ...] | None) -> crf.CRFParams:
    """The CRF with the transitions that IOB2 never allows made impossible; as it is where ``tags`` is None."""
    if tags is None:
        return params
    starts, pairs = forbidden_transitions(tags)
    before, after = (jnp.array(side) for side in zip(*pairs, strict=True))
    return params._replace(
        start_transitions=params.start_transitions.at[jnp.array(starts)].set(_FORBIDDEN),
        transitions=params.transitions.at[before, after].set(_FORBIDDEN),
    )


def _compiled_on(mesh: Mesh, predict: Callable[[dict[str, Any], Batch], dict[str, jax.Array]]) -> Callable:
    """Batches come split over the devices; what is predicted goes to every device of every process."""
    everywhere = replicated(mesh)
    return jax.jit(predict, in_shardings=(everywhere, split_rows(mesh)), out_shardings=everywhere)


def make_tagging_step(
    model: TMRForNER, mesh: Mesh, *, tags: tuple[str, ...] | None
) -> Callable[[dict[str, Any], Batch], dict[str, jax.Array]]:
    """``predict(variables, batch) -> {"tags", "emissions", "mask", "crf"}``.

    ``tags`` names the tags, to decode under IOB2 constraints (ours: without them a linear-chain CRF may predict an
    entity without a beginning); None decodes without.
    """

    def predict(variables, batch):
        emissions, intermediates = model.apply(variables, batch, train=False)
        params = constrain(intermediates["crf"], tags)
        mask = batch[model.tag_mask]
        best, _ = crf.viterbi_decode(emissions, mask, params)
        return {"tags": best, "emissions": emissions, "mask": mask, "crf": params}

    return _compiled_on(mesh, predict)


def make_classification_step(model: TMRForRE, mesh: Mesh) -> Callable[[dict[str, Any], Batch], dict[str, jax.Array]]:
    """``predict(variables, batch) -> {"probabilities" [B, R]}``, the softmax of Eq. 11."""

    def predict(variables, batch):
        logits, _ = model.apply(variables, batch, train=False)
        return {"probabilities": jax.nn.softmax(logits)}

    return _compiled_on(mesh, predict)
