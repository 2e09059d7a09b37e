"""The contract of a method: the inputs that it needs, its arithmetic, its learning rates.

A method is a linen module in a file of its own that reads like its paper. It lists what it asks of a post
(:attr:`Method.inputs`), and turns a batch with the keys of these inputs into :class:`tmrjax.heads.outputs.Outputs`.
Labels, tokenizer and sizes come from :class:`tmrjax.tasks.system.System`; the head of the task has loss and decoding.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from tmrjax.encoders.base import PictureConfig, TextConfig
from tmrjax.encoders.open import parameter_name, picture_config, picture_encoder, text_config, text_encoder
from tmrjax.heads.outputs import Outputs
from tmrjax.inputs.base import Input
from tmrjax.inputs.pictures import Pictures
from tmrjax.methods.parts.pictures import PictureReader

Batch = Mapping[str, jax.Array]

# Fields that System fills in from the data set and the encoders; all others are options of a config.
SIZES = ("text", "picture", "num_labels", "max_pieces", "num_words", "num_characters", "num_objects", "object_size")


class Method(nn.Module, kw_only=True):
    """What all methods share. A subclass declares ``task``, ``inputs`` and ``__call__``; its fields are its options.

    Attributes:
        num_labels: K tags or R relations.
        text: sizes of the text encoder; None for a method without word pieces.
        picture: sizes of the picture encoder; None where pictures are not read, or come as features always.
        dropout: of the method's own layers; an encoder's dropout is that of its config.json.
        dtype: of encoders and layers; scores are float32 always.
        batch_norm: of the picture encoder, "frozen" or "train".
        freeze_text, freeze_pictures: no gradient into that encoder.
        remat: compute the encoders' layers again in the backward pass, which saves memory.
    """

    # "ner" or "re".
    task: ClassVar[str]
    # The folder of a data set with the picture encoder that comes with it.
    picture_folder: ClassVar[str] = "picture_encoder"

    num_labels: int
    text: TextConfig | None = None
    picture: PictureConfig | None = None
    dropout: float = 0.1
    dtype: jnp.dtype = jnp.float32
    batch_norm: str = "frozen"
    freeze_text: bool = False
    freeze_pictures: bool = False
    remat: bool = False

    @property
    def inputs(self) -> tuple[Input, ...]:
        """What the method asks of a post; the text input comes first."""
        raise NotImplementedError

    def __call__(self, batch: Batch, *, train: bool) -> Outputs:
        """A batch with the keys of ``inputs`` -> scores; ``train`` turns dropout on."""
        raise NotImplementedError

    @property
    def piece_tags(self) -> bool:
        """Whether the CRF runs over word pieces in the tag set of the released code, instead of over words."""
        return False

    @property
    def second(self) -> tuple[Input, ...]:
        """What the method asks of the posts of a second stream; the text input comes first.

        During training a batch holds as many of them, under keys that begin with ``second_``. An auxiliary loss reads
        them; they are no part of prediction.
        """
        return ()

    @property
    def rates(self) -> tuple[tuple[str, str], ...]:
        """(pattern, group) pairs: the first pattern that fits the whole path of a parameter gives its learning rate.

        Groups: "encoder" and "fusion" (config.lr_encoder, config.lr_fusion), "crf" (config.lr_crf).
        """
        encoders = "|".join(filter(None, (self.text_name, self.picture_name)))
        return (rf"({encoders})/.*", "encoder"), ("crf/.*", "crf"), (".*", "fusion")

    @property
    def frozen(self) -> tuple[str, ...]:
        """Patterns of the parameters that never change."""
        names = {self.text_name: self.freeze_text, self.picture_name: self.freeze_pictures}
        return tuple(f"{name}/.*" for name, is_frozen in names.items() if is_frozen and name)

    @property
    def left_out(self) -> str:
        """What an ablation left out, in the paper's words; "none" for the whole method."""
        text_only = not getattr(self, "use_pictures", True)
        released = getattr(self, "literal", False)
        return ", ".join(["pictures"] * text_only + ["nothing, released arithmetic"] * released) or "none"

    # ------------------------------------------------------------------ for subclasses

    @property
    def text_name(self) -> str | None:
        """The text encoder's name among the parameters: its model type, such as "bert"."""
        return None if self.text is None else parameter_name(self.text)

    @property
    def picture_name(self) -> str:
        """The picture encoder's name among the parameters: its model type where the method calls its parts itself."""
        pixels = self.pictures is not None and "pixels" in self.pictures.parts.values()
        return parameter_name(self.picture) if pixels and self.picture else "picture_encoder"

    @property
    def pictures(self) -> Pictures | None:
        """What the method reads of pictures."""
        return next((one for one in self.inputs if isinstance(one, Pictures)), None)

    def open_text(self) -> nn.Module:
        """The text encoder, inside of a compact ``__call__``; create it once, call it for sentence and phrases."""
        return text_encoder(self.text, dtype=self.dtype, remat=self.remat, name=self.text_name)

    def read_texts(self, *texts: tuple[jax.Array, jax.Array], train: bool) -> tuple[jax.Array, ...]:
        """Last states [B, T, D] of each (ids, mask) by one text encoder, without a gradient where it is frozen."""
        encoder = self.open_text()
        states = tuple(encoder(ids, mask.astype(bool), train=train)[0] for ids, mask in texts)
        return jax.lax.stop_gradient(states) if self.freeze_text else states

    def open_picture(self) -> nn.Module:
        """The picture encoder, for a method that asks for pixels and calls its parts itself; create it once."""
        return picture_encoder(
            self.picture, dtype=self.dtype, batch_norm=self.batch_norm, remat=self.remat, name=self.picture_name
        )

    def read_pictures(self, batch: Batch, *, train: bool) -> dict[str, Any]:
        """Encoded pictures by name: ``image``, ``region`` and the same with ``generated_``.

        Each is what the input :class:`tmrjax.inputs.pictures.Pictures` asks for (tokens [B, P, C], for regions
        [B, 3, P, C]; pooled [B, C] or [B, 3, C]; stages as tuples of maps), zero where a mask is False.
        """
        reader = PictureReader(
            self.picture, self.dtype, self.batch_norm, self.freeze_pictures, self.remat, name="picture_encoder"
        )
        return reader(batch, self.pictures, train=train)


def at_words(states: jax.Array, batch: Batch) -> jax.Array:
    """States at the first piece of each word: [B, T, D] -> [B, W, D]."""
    return jnp.take_along_axis(states, batch["word_starts"][..., None], axis=1)


def at_markers(states: jax.Array, batch: Batch) -> jax.Array:
    """[head; tail]: states at the markers before both entities, [B, T, D] -> [B, 2 D]."""
    rows = jnp.arange(states.shape[0])
    return jnp.concatenate([states[rows, batch["head_start"]], states[rows, batch["tail_start"]]], axis=-1)


def options_of(method: type[Method]) -> dict[str, Any]:
    """The options of a method with their defaults: every field that is no size."""
    hidden = {"parent", "name", *SIZES}
    return {
        field.name: jnp.dtype(field.default).name if field.name == "dtype" else field.default
        for field in dataclasses.fields(method)
        if field.name not in hidden
    }


def method_to_dict(method: Method) -> dict[str, Any]:
    """All fields of a method as JSON; :func:`method_from_dict` builds the same method from it."""
    fields = {field.name: getattr(method, field.name) for field in dataclasses.fields(method)}
    fields = {name: value for name, value in fields.items() if name not in ("parent", "name")}
    for name in ("text", "picture"):
        fields[name] = None if fields[name] is None else fields[name].to_dict()
    fields["dtype"] = jnp.dtype(method.dtype).name
    return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}


def method_from_dict(kind: type[Method], fields: Mapping[str, Any]) -> Method:
    """A method from its fields: encoders as dicts, dtype by name, lists for tuples.

    An unknown field raises TypeError.
    """
    fields = {name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()}
    for name, read in (("text", text_config), ("picture", picture_config)):
        if isinstance(fields.get(name), Mapping):
            fields[name] = read(fields[name])
    if "dtype" in fields:
        fields["dtype"] = jnp.dtype(fields["dtype"])
    return kind(**fields)
