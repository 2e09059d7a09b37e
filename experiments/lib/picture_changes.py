"""Does the picture matter? Posts with their pictures taken away or exchanged, and everything else as it is.

The kinds of PICTURES say what a post's text is read beside:

* ``own``: its own pictures.
* ``none``: no picture at all. Everything that comes from pictures is masked: whole pictures, regions, generated
  pictures, objects and their alignment, divergence scores.
* ``generated-only``: the same without the generated picture and its score, which stay.
* ``grey``: one constant grey picture in the place of each picture and of each region, as many as the post has. A
  detector finds nothing in it, so there are no objects.
* ``shuffled``: the pictures of another post of the split, with their regions and objects, in a random order that a seed
  gives; posts that share a picture count as one, so that no post gets a picture of its own back. A post gives its
  pictures to one other, among posts that have the same kinds of pictures; where there is none it keeps its own.

With ``grey`` and ``shuffled`` divergence scores stay those of the post and its own picture: the pixels are changed and
nothing else. What an ablation without scores tells is another question. The alignment of words and objects belongs to
both, and means nothing beside another picture: it is left out with ``shuffled``.
"""

from __future__ import annotations

import dataclasses
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from tmrjax.files import DataError
from tmrjax.inputs import alignment, objects
from tmrjax.methods import name_of
from tmrjax.methods.base import Method
from tmrjax.records import Record

logger = logging.getLogger(__name__)
OWN, NONE, SHUFFLED, GREY, GENERATED_ONLY = PICTURES = ("own", "none", "shuffled", "grey", "generated-only")
GREY_VALUE, GREY_SIDE = 128, 64
_WHOLE = (0.0, 0.0, 1.0, 1.0)


def require_pictures(method: Method, kinds: Sequence[str], records: Sequence[Record], where: Path) -> None:
    """Raises ValueError for an unknown kind, and where a kind would change nothing that the method reads.

    The latter: a method of text alone, ``generated-only`` with a method that reads no generated picture, records of
    which none has the picture that is meant.
    """
    unknown = [kind for kind in kinds if kind not in PICTURES]
    if unknown or not kinds:
        raise ValueError(f"--pictures={','.join(kinds)}: expected some of {', '.join(PICTURES)}, with commas between")
    pictures, name = method.pictures, name_of(method)
    reads_objects = any(isinstance(one, objects.Objects) for one in method.inputs)
    changes = [kind for kind in kinds if kind != OWN]
    if changes and pictures is None and not reads_objects:
        raise ValueError(
            f"--pictures={','.join(changes)}: the method {name} reads no pictures; name a run of a method that does"
        )
    if GENERATED_ONLY in kinds and not (pictures is not None and pictures.generated):
        raise ValueError(f"--pictures={GENERATED_ONLY}: the method {name} reads no generated pictures; leave it out")
    generated = any(record.generated is not None for record in records)
    if changes and not (any(record.image is not None for record in records) or generated):
        raise DataError(
            where, f"no picture in {len(records)} posts, for --pictures={','.join(changes)}", "posts with pictures",
            "Name a data set with pictures by --data.",
        )  # fmt: skip
    if GENERATED_ONLY in kinds and not generated:
        raise DataError(
            where, f"no generated picture in {len(records)} posts, for --pictures={GENERATED_ONLY}", "some",
            "Run data_prep/back_translate.py, or leave it out.",
        )  # fmt: skip


def with_pictures(records: Sequence[Record], kind: str, grey: Path, *, seed: int = 0) -> list[Record]:
    """The records with the pictures of a kind, in their order.

    grey: file of :func:`write_grey`. seed: of ``shuffled``; posts that have no other to exchange with are counted in a
    warning, and where that are all it raises ValueError.
    """
    if kind == OWN:
        return list(records)
    if kind == NONE:
        return [dataclasses.replace(_without_own(record), generated=None, generated_scores=None) for record in records]
    if kind == GENERATED_ONLY:
        return [_without_own(record) for record in records]
    if kind == GREY:
        return [_grey(record, str(grey.resolve())) for record in records]
    if kind == SHUFFLED:
        donors = donors_of(records, seed)
        stays = [donor == i for i, donor in enumerate(donors) if records[i].image or records[i].generated]
        if all(stays):
            raise ValueError(
                f"--pictures={SHUFFLED}: none of the {len(stays)} posts with a picture has another to exchange it "
                "with; leave this kind out, or take a larger split"
            )
        if any(stays):
            logger.warning(
                "shuffled: %d of %d posts keep their own pictures, too few others have the same kinds of pictures",
                sum(stays), len(stays),
            )  # fmt: skip
        return [_with_those_of(record, records[donor]) for record, donor in zip(records, donors, strict=True)]
    raise ValueError(f"the kind of pictures {kind!r}; expected one of {', '.join(PICTURES)}")


def write_grey(folder: Path) -> Path:
    """The constant picture, as a file."""
    path = folder / "grey.png"
    Image.new("RGB", (GREY_SIDE, GREY_SIDE), (GREY_VALUE,) * 3).save(path)
    return path


def donors_of(records: Sequence[Record], seed: int) -> list[int]:
    """For each record the index of the one whose pictures it gets; itself where there is none. A permutation.

    Within a group of records with the same kinds of pictures, those of one picture stand together in an order that is
    random otherwise. It is turned by the size of the largest such block, so no record meets its own. Where one picture
    is that of more than half of a group, as in a group of one, the group stays as it is.
    """
    groups: dict[tuple[bool, bool], list[int]] = {}
    for index, record in enumerate(records):
        kinds = (record.image is not None, record.generated is not None)
        groups.setdefault(kinds, []).append(index)
    donors, generator = list(range(len(records))), np.random.default_rng(seed)
    for (own, generated), indices in groups.items():
        if not (own or generated):
            continue
        picture = {i: records[i].image if own else records[i].generated.image for i in indices}
        counts = Counter(picture.values())
        largest = max(counts.values())
        if 2 * largest > len(indices):
            continue
        place = dict(zip(sorted(counts), generator.permutation(len(counts)), strict=True))
        within = generator.permutation(len(indices))
        order = sorted(range(len(indices)), key=lambda n: (place[picture[indices[n]]], within[n]))
        for position, n in enumerate(order):
            donors[indices[n]] = indices[order[(position + largest) % len(order)]]
    return donors


def _without_own(record: Record) -> Record:
    sides = {name: side for name, side in record.sides.items() if name not in (objects.SIDE, alignment.SIDE)}
    return dataclasses.replace(record, image=None, regions=(), grounding=(), scores=None, sides=sides)


def _grey(record: Record, grey: str) -> Record:
    # A region of a constant picture looks the same wherever it is; as the whole picture it is encoded once.
    changes = {"image": None if record.image is None else grey, "regions": (_WHOLE,) * len(record.regions)}
    generated = record.generated
    if generated is not None:
        generated = dataclasses.replace(generated, image=grey, regions=(_WHOLE,) * len(generated.regions), grounding=())
    found = _without_own(record)
    return dataclasses.replace(found, **changes, generated=generated, scores=record.scores)


def _with_those_of(record: Record, donor: Record) -> Record:
    if donor is record:
        return record
    sides = dict(_without_own(record).sides)
    if objects.SIDE in donor.sides:
        sides[objects.SIDE] = donor.sides[objects.SIDE]
    return dataclasses.replace(
        record, image=donor.image, regions=donor.regions, grounding=donor.grounding, generated=donor.generated,
        sides=sides,
    )  # fmt: skip
