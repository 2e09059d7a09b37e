"""A noisy detector for the demo world: objects of a picture, with labels, scores, boxes and features.

It sees what the picture shows and nothing else: each label is one of the scene's with probability 0.85, else one of
another scene's. How many objects there are, and where, depends on chance alone. A feature is a fixed random vector of
its label plus noise. Stands in for the detectors behind OCSGA, VisualBERT and MEGA.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from data_prep.demo.words import OBJECT_LABELS
from data_prep.objects.graphs import box_edges, chain_edges
from data_prep.objects.structure import align
from tmrjax.records.schema import Box

RIGHT_SHARE = 0.85  # of the labels
NOTHING_SHARE = 0.03  # of the pictures, those in which nothing is found
MAXIMUM = 5  # objects of a picture
WIDTH = 32  # of a feature
NOISE = 1.0  # of a feature's numbers, which have the deviation 1 over labels

LABELS = tuple(label for labels in OBJECT_LABELS.values() for label in labels)


@dataclass(frozen=True)
class Detected:
    """The objects of a picture, the surest first. features: float32 [objects, WIDTH]."""

    labels: tuple[str, ...]
    scores: tuple[float, ...]
    boxes: tuple[Box, ...]
    features: np.ndarray


class DemoDetector:
    """Call it with a scene, the frame of its main object and a generator. seed: of the labels' vectors."""

    def __init__(self, seed: int):
        vectors = np.random.default_rng([seed, 8]).normal(size=(len(LABELS), WIDTH))
        self._vectors = dict(zip(LABELS, vectors, strict=True))

    def __call__(self, scene: str, frame: Box, generator: np.random.Generator) -> Detected:
        """The objects that are found; the frame is the same for all scenes."""
        number = 0 if generator.random() < NOTHING_SHARE else int(generator.integers(1, MAXIMUM + 1))
        others = [label for other, labels in OBJECT_LABELS.items() if other != scene for label in labels]
        found = []
        for _ in range(number):
            choices = OBJECT_LABELS[scene] if generator.random() < RIGHT_SHARE else others
            label = choices[int(generator.integers(len(choices)))]
            score, box = round(float(generator.uniform(0.3, 1)), 4), _part(frame, generator)
            found.append((score, label, box, self._vectors[label] + NOISE * generator.normal(size=WIDTH)))
        found.sort(key=lambda item: -item[0])
        features = np.array([item[3] for item in found], np.float32).reshape(number, WIDTH)
        scores, labels, boxes = (tuple(item[part] for item in found) for part in range(3))
        return Detected(labels, scores, boxes, features)


def _part(frame: Box, generator: np.random.Generator) -> Box:
    """A box inside of the frame, a fifth to all of it wide and high."""
    sides = []
    for axis in (0, 1):
        whole = frame[axis + 2] - frame[axis]
        size = whole * generator.uniform(0.2, 1)
        start = frame[axis] + (whole - size) * generator.random()
        sides.append((round(float(start), 4), round(float(start + size), 4)))
    (x1, x2), (y1, y2) = sides
    return x1, y1, min(x2, 1.0), min(y2, 1.0)


def sides_of(words: int, found: Detected, start: int | None) -> dict[str, Any]:
    """What a record of so many words has beside: its objects, and their alignment with the words.

    start: the row of the first object's features; None: the features stand in the record, as posts to predict have
    them.
    """
    number = len(found.labels)
    objects: dict[str, Any] = {
        "labels": list(found.labels),
        "scores": list(found.scores),
        "boxes": [list(box) for box in found.boxes],
    }
    if start is None:
        objects["features"] = [[round(float(value), 4) for value in row] for row in found.features]
    else:
        objects["rows"] = [start, start + number]
    if not number:
        return {"objects": objects}
    weights = align(words, chain_edges(words), number, box_edges(found.boxes))
    return {"objects": objects, "alignment": weights.round(4).tolist()}
