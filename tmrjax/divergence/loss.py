"""The three ways to train the divergence estimator that Table 3 compares (§3.4, appendix B.3).

cross_entropy           on the three classes.
negative_sampling       cross-entropy with further weaken examples: a text with another picture of its own source, so
                        that a source's style alone cannot tell its pairs from mismatched ones.
supervised_contrastive  Eq. 6 on the pooled state; the head learns by cross-entropy on a stop-gradient of it (the paper
                        leaves open how the head is trained).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from tmrjax.contrastive import supervised_contrastive_loss
from tmrjax.divergence import Batch, DivergenceEstimator
from tmrjax.records.schema import SCORE_CLASSES
from tmrjax.training.step import Loss

MODES = ("cross_entropy", "negative_sampling", "supervised_contrastive")
WEAKEN = SCORE_CLASSES.index("weaken")


def add_in_domain_negatives(batch: Batch, key: jax.Array, count: int) -> dict[str, jax.Array]:
    """The batch with ``count`` further rows: texts of matching pairs, each with another picture of the same source.

    Texts and pictures are drawn by ``key`` from the rows that are no weaken pairs; a picture that is the text's own, as
    with several captions of one picture, is none of the choices. Rows for which nothing is left are masked.

    Args:
        batch: the keys of :func:`tmrjax.divergence.pipeline.collate_pairs`.
        key: a JAX key.
        count: K ≤ B.

    Returns:
        ``input_ids attention_mask pixel_values pixel_mask labels row_mask`` of B + K rows.
    """
    matching = batch["row_mask"] & (batch["labels"] != WEAKEN)
    # Equal pictures have equal sums; different ones practically never do.
    prints = jnp.sum(batch["pixel_values"], axis=(1, 2), dtype=jnp.float32)
    same_picture = jnp.all(prints[:, None] == prints[None, :], axis=-1)
    same_source = batch["sources"][:, None] == batch["sources"][None, :]
    choices = matching[:, None] & matching[None, :] & same_source & ~same_picture
    choice_key, row_key = jax.random.split(key)
    picture = jnp.argmax(jnp.where(choices, jax.random.uniform(choice_key, choices.shape), -1), axis=1)
    drawn, rows = jax.lax.top_k(jnp.where(choices.any(1), jax.random.uniform(row_key, matching.shape), -1), count)
    pictures = picture[rows]
    added = {
        "input_ids": batch["input_ids"][rows],
        "attention_mask": batch["attention_mask"][rows],
        "pixel_values": batch["pixel_values"][pictures],
        "pixel_mask": batch["pixel_mask"][pictures],
        "labels": jnp.full(count, WEAKEN, batch["labels"].dtype),
        "row_mask": drawn >= 0,
    }
    return {name: jnp.concatenate([batch[name], rows]) for name, rows in added.items()}


def make_loss(model: DivergenceEstimator, mode: str, *, temperature: float = 0.07, negatives: float = 0.25) -> Loss:
    """The loss of a training step: see :data:`tmrjax.training.step.Loss`.

    Cross-entropy is a mean over rows, the contrast a mean over anchors that have positives; neither depends on rows of
    padding nor on the number of devices: negatives and the contrast run over the global batch.

    Args:
        model: what is trained.
        mode: one of :data:`MODES`.
        temperature: τ of Eq. 6.
        negatives: rows that ``negative_sampling`` adds, as a share of the batch.

    Raises:
        ValueError: an unknown mode, or a share outside (0, 1].
    """
    if mode not in MODES:
        raise ValueError(f"there is no mode {mode!r} of training; choose one of {', '.join(MODES)}")
    if not 0 < negatives <= 1:
        raise ValueError(f"negatives is the share of rows that are added, in (0, 1], got {negatives}")
    contrastive = mode == "supervised_contrastive"
    trained = model.clone(detach_head=contrastive)

    def loss(params, statistics, batch, key):
        if mode == "negative_sampling":
            count = max(1, round(negatives * len(batch["labels"])))
            batch = add_in_domain_negatives(batch, jax.random.fold_in(key, 1), count)
        logits, pooled = trained.apply({"params": params}, batch, train=True, rngs={"dropout": key})
        rows = batch["row_mask"]
        count = rows.sum()
        entropies = optax.softmax_cross_entropy_with_integer_labels(logits, batch["labels"])
        total = jnp.where(rows, entropies, 0).sum()
        if contrastive:
            labels = batch["labels"]
            anchors = supervised_contrastive_loss(pooled, labels, temperature=temperature, mask=rows)
            same = (labels[:, None] == labels[None, :]) & rows[:, None] & rows[None, :]
            with_positives = (same.sum(axis=1) > 1).sum()
            total += count * anchors.sum() / jnp.maximum(with_positives, 1)
        return total, (count, statistics, {})

    return loss
