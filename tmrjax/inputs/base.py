"""The contract of an input: what a method may ask of a post.

A method lists the inputs that it needs (:class:`tmrjax.methods.base.Method`). An input fits what it has to on the
training records (a vocabulary), encodes each record once, and fills its keys of a row of a batch. The first input of a
method reads the text (:class:`TextInput`): it says how long a row is and which words it holds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

from tmrjax.inputs.settings import TextSettings
from tmrjax.records import Record
from tmrjax.text.marking import MarkedPieces
from tmrjax.text.pieces import Tokenizer, WordPieces

if TYPE_CHECKING:
    from tmrjax.inputs.pictures import PictureSource

# Key of a batch -> shape and dtype of one row; a tuple of these for a key that holds several arrays.
Spec = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Reading:
    """What the inputs of one system share.

    tokenizer: fast, of transformers; None for a method without word pieces. text: settings. pictures: where pictures
    come from; None for a method that reads none.
    """

    tokenizer: Tokenizer | None
    text: TextSettings
    pictures: PictureSource | None = None


class Example(NamedTuple):
    """A record as integers, or one window of a long record.

    pieces: what the text input made of the text. values: what the other inputs encoded, by key of the batch, of the
    whole record; :meth:`Input.row` takes of it what a window needs.
    """

    record: Record
    pieces: WordPieces | MarkedPieces
    values: Mapping[str, Any]


class Input:
    """One thing that a method asks of a post. Subclasses are frozen dataclasses; their fields are options.

    name: of the input in checkpoints and error messages.
    """

    name: ClassVar[str]

    def check(self, records: Sequence[Record]) -> str | None:
        """What the training records lack of this input, and what to do: one sentence. None where nothing lacks."""
        del records

    def lacking(self, record: Record) -> tuple[str, ...]:
        """What a post to predict lacks of this input, by the names that results have: it is masked there."""
        del record
        return ()

    def fit(self, records: Iterable[Record]) -> Self:
        """The input with what it learns of the training records, such as a vocabulary."""
        del records
        return self

    def sizes(self) -> Mapping[str, int]:
        """Sizes that a method needs to build its parameters, by name of the method's field (``num_words``)."""
        return {}

    def to_meta(self) -> Any:
        """As JSON, what :meth:`fit` learned; None where that is nothing."""

    def from_meta(self, meta: Any) -> Self:
        """The inverse of :meth:`to_meta`."""
        del meta
        return self

    def encode(self, record: Record, pieces: WordPieces | MarkedPieces, reading: Reading) -> Mapping[str, Any]:
        """Values of a whole record, made once; ``pieces`` are those of the whole post."""
        del record, pieces, reading
        return {}

    def spec(self, length: int, reading: Reading) -> Spec:
        """Keys of the batch, each with the shape and dtype of one row; ``length`` in pieces of the text input."""
        raise NotImplementedError

    def row(self, example: Example, reading: Reading) -> Mapping[str, Any]:
        """The values of one row without padding; pictures are loaded here. By default those of :meth:`encode`."""
        return {key: example.values[key] for key in self.spec(len(example.pieces.input_ids), reading)}


class TextInput(Input):
    """The input that reads the text of a post."""

    # How many positions before and behind the words are special.
    specials: ClassVar[int] = 2
    # Whether a post beyond the limit can be read in windows (:func:`tmrjax.inputs.pieces.windows_of`).
    windows: ClassVar[bool] = False

    def pieces(self, record: Record, reading: Reading) -> WordPieces | MarkedPieces:
        """The text of a record as integers, with what of it is cut, unknown or without pieces."""
        raise NotImplementedError


def encode_records(records: Iterable[Record], inputs: Sequence[Input], reading: Reading) -> list[Example]:
    """One example a record, in their order; the first of ``inputs`` reads the text."""
    text_input, *others = inputs
    examples = []
    for record in records:
        pieces = text_input.pieces(record, reading)
        values: dict[str, Any] = {}
        for one in others:
            values |= one.encode(record, pieces, reading)
        examples.append(Example(record, pieces, values))
    return examples
