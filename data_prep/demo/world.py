"""The grammar of the demo world: tweet-like posts with ambiguous names, and what pictures they meet.

It copies the situation of the paper (sections 1 and 3.4) in the small. A post's name may be a person, a place, an
organisation or something else; the context word that says which is often one that the training split never shows. The
original picture is aligned, complementary or misleading; the generated one is drawn by somebody who reads the text
and knows every context word. How many phrases a post has, which of its parts are missing and how many boxes its
pictures have does not depend on its labels: :mod:`data_prep.audit_leaks` finds nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_prep.demo.words import (
    CLOSERS,
    CONTEXT_WORDS,
    EMOJI,
    ENTITY_TYPES,
    FILLERS,
    HASHTAGS,
    INVISIBLE,
    LINKS,
    MARKED_FORMS,
    NAMES,
    NEUTRAL_WORDS,
    NO_ENTITY,
    OPENERS,
    RELATING_LINKS,
    RELATION_OF_TYPE,
    SECOND_LINKS,
    SURNAMES,
    UNRELATED_LINKS,
)
from tmrjax.records.schema import NO_RELATION, Span
from tmrjax.text.tags import spans_from_tags

RELATIONS = ("weaken", "complement", "strengthen")  # the order of the scores
SCENES = (*ENTITY_TYPES, "NEUTRAL")

SEEN_CONTEXT_SHARE = 0.4  # of the context words of a type, the share that the training split shows
NEUTRAL_SHARE = 0.25  # of the posts with a name, those whose text hints at no type
MISSPELT_SHARE = 0.3  # of the context words; a slip turns a word into letters that a small text encoder cannot read
NO_ENTITY_SHARE = 0.05
UNRELATED_SHARE = 0.35  # of the posts of the relation world, those with the relation None
UNSEEN_NAMES = 10  # names that only dev and test show
SECOND_ENTITY_SHARE = 1 / 3
DRAWER_ACCURACY = 0.9  # how often the drawer draws what the context word means
UNFOUNDED_SHARE = 0.25  # how often the drawer draws some type although the text hints at none
NO_PHRASES_SHARE = 0.02
NO_PICTURE_SHARE = 0.04
NO_GENERATED_SHARE = 0.03
SCORE_GAIN = 2.15  # distance of the right logit from the wrong ones, in standard deviations of the noise
SCORE_SHARPNESS = 2.15  # equal to the gain: the scores are calibrated where the relations are equally frequent

TEXT_PICTURE = "text_picture"  # further posts: of each, whether its picture fits is known, and no other label
STREAMS = ("train", "dev", "test", TEXT_PICTURE)  # of chance, one each: their order is never changed
LEARNED = ("train", TEXT_PICTURE)  # they show the same names and context words

LENGTHS = (6, 16)  # tokens


@dataclass(frozen=True)
class Post:
    """A post and what only the world knows of it: its name's type, the context word, whether training shows them."""

    id: str
    tokens: tuple[str, ...]
    tags: tuple[str, ...]
    phrases: tuple[str, ...]
    name: str | None
    type: str | None  # None: the post has no entity
    hint: str | None  # the context word; None in a neutral post
    hint_seen: bool  # the training split shows the context word
    misspelt: bool  # the context word is written with a slip, which the drawer reads over
    name_seen: bool
    second: str | None  # the type of the unambiguous second entity
    head: Span | None = None  # of a relation: the marked person
    tail: Span | None = None  # the ambiguous name
    relation: str | None = None


@dataclass(frozen=True)
class Shown:
    """What a picture shows, its relation to the post, and the noisy scores (weaken, complement, strengthen)."""

    scene: str
    relation: str
    scores: tuple[float, float, float]


class World:
    """The choices for a whole data set: which context words and which names the training split shows."""

    def __init__(self, seed: int):
        self.seed = seed
        generator = np.random.default_rng([seed, 1])
        self.seen_words = {}
        for entity_type, words in CONTEXT_WORDS.items():
            order = generator.permutation(len(words))
            self.seen_words[entity_type] = tuple(
                words[index] for index in order[: round(SEEN_CONTEXT_SHARE * len(words))]
            )
        order = generator.permutation(len(NAMES))
        self.unseen_names = {NAMES[index] for index in order[:UNSEEN_NAMES]}

    def posts(self, split: str, count: int, task: str = "ner") -> list[Post]:
        """`count` posts of one of STREAMS; every name takes every type equally often, up to the deck's last round."""
        stream = STREAMS.index(split)
        generator = np.random.default_rng([self.seed, 2, stream] if task == "ner" else [self.seed, 4, stream])
        names = [name for name in NAMES if split not in LEARNED or name not in self.unseen_names]
        deck: list[tuple[tuple[str, ...], str]] = []
        posts = []
        for index in range(count):
            identifier = f"{split}-{index:05d}"
            if task == "ner" and generator.random() < NO_ENTITY_SHARE:
                posts.append(self._without_entity(identifier, generator))
                continue
            if not deck:
                pairs = [(name, entity_type) for name in names for entity_type in ENTITY_TYPES]
                deck = [pairs[position] for position in generator.permutation(len(pairs))]
            name, entity_type = deck.pop()
            make = self._with_name if task == "ner" else self._with_pair
            posts.append(make(identifier, split, name, entity_type, generator))
        return posts

    def _without_entity(self, identifier: str, generator: np.random.Generator) -> Post:
        words = _pick(generator, NO_ENTITY).split()
        phrases = tuple(" ".join(words[start : start + 2]) for start in (0, 2, 4))
        tokens, tags = zip(*decorate([(word, "O") for word in words], generator), strict=True)
        return Post(identifier, tokens, tags, _found(phrases, generator), None, None, None, False, False, False, None)

    def _with_name(
        self, identifier: str, split: str, name: tuple[str, ...], entity_type: str, generator: np.random.Generator
    ) -> Post:
        hint, noun, misspelt = self._noun(split, entity_type, generator)
        spelling = _spelling(name, generator)
        named = _marked(spelling, entity_type)
        name_first = generator.random() < 0.75
        opener = _pick(generator, OPENERS)
        if name_first:
            words_and_tags = [*plain(opener), *named, *plain(_pick(generator, LINKS)), (noun, "O")]
        else:
            words_and_tags = [*plain(f"the {noun} :"), *plain(opener), *named]
        phrases = [" ".join(spelling).lower(), f"the {noun}", opener]
        second = None
        if generator.random() < SECOND_ENTITY_SHARE:
            second = _pick(generator, ENTITY_TYPES)
            before, after = _pick(generator, MARKED_FORMS[second])
            marked = [word for word in (before, _pick(generator, SURNAMES), after) if word]
            words_and_tags += plain(_pick(generator, SECOND_LINKS[second]))
            words_and_tags += _marked(marked, second)
            phrases[-1] = " ".join(marked).lower()
        words_and_tags += plain(_pick(generator, CLOSERS))
        tokens, tags = zip(*decorate(words_and_tags, generator), strict=True)
        return Post(
            identifier,
            tokens,
            tags,
            _found(tuple(phrases), generator),
            " ".join(name),
            entity_type,
            hint,
            hint in self.seen_words[entity_type],
            misspelt,
            name not in self.unseen_names,
            second,
        )

    def _noun(self, split: str, entity_type: str, generator: np.random.Generator) -> tuple[str | None, str, bool]:
        """The context word, how it is written, whether with a slip; a word that betrays nothing in a neutral post."""
        neutral = generator.random() < NEUTRAL_SHARE
        words = self.seen_words[entity_type] if split in LEARNED else CONTEXT_WORDS[entity_type]
        hint = None if neutral else _pick(generator, words)
        noun = _pick(generator, NEUTRAL_WORDS) if hint is None else hint
        misspelt = hint is not None and generator.random() < MISSPELT_SHARE
        return hint, misspell(hint, generator) if misspelt else noun, misspelt

    def _with_pair(
        self, identifier: str, split: str, name: tuple[str, ...], entity_type: str, generator: np.random.Generator
    ) -> Post:
        """A post of the relation world: who is unambiguous, what the name is decides which relation they have."""
        hint, noun, misspelt = self._noun(split, entity_type, generator)
        spelling = _spelling(name, generator)
        before, after = _pick(generator, MARKED_FORMS["PER"])
        person = [word for word in (before, _pick(generator, SURNAMES), after) if word]
        unrelated = generator.random() < UNRELATED_SHARE
        link = plain(_pick(generator, UNRELATED_LINKS if unrelated else RELATING_LINKS))
        head, tail = _marked(person, "HEAD"), _marked(spelling, "TAIL")
        opener = plain(_pick(generator, OPENERS))
        if generator.random() < 0.75:
            about = [*opener, *tail, *plain(_pick(generator, LINKS)), (noun, "O")]
        else:
            about = [*plain(f"the {noun} :"), *opener, *tail]
        words = [*about, *link, *head, *plain(_pick(generator, CLOSERS))]
        tokens, marks = zip(*decorate(words, generator), strict=True)
        spans = {label: (start, end) for start, end, label in spans_from_tags(marks, strict=True)}
        phrases = (" ".join(spelling).lower(), f"the {noun}", " ".join(person).lower())
        return Post(
            identifier,
            tokens,
            (),
            _found(phrases, generator),
            " ".join(name),
            entity_type,
            hint,
            hint in self.seen_words[entity_type],
            misspelt,
            name not in self.unseen_names,
            "PER",
            spans["HEAD"],
            spans["TAIL"],
            NO_RELATION if unrelated else RELATION_OF_TYPE[entity_type],
        )


def original_picture(post: Post, misalignment: float, generator: np.random.Generator) -> Shown | None:
    """The picture posted with the text: misleading at rate `misalignment`, else of the right type; sometimes none."""
    if generator.random() < NO_PICTURE_SHARE:
        return None
    if post.type is None:
        return shown(post, _pick(generator, SCENES), generator)
    if generator.random() < misalignment:
        return shown(post, _pick(generator, [scene for scene in ENTITY_TYPES if scene != post.type]), generator)
    return shown(post, post.type, generator)


def generated_picture(post: Post, generator: np.random.Generator) -> Shown | None:
    """The drawer's picture: it knows every context word, and nothing of a post without one; sometimes none."""
    if generator.random() < NO_GENERATED_SHARE:
        return None
    if post.hint is None:
        scene = _pick(generator, ENTITY_TYPES) if generator.random() < UNFOUNDED_SHARE else "NEUTRAL"
    elif generator.random() < DRAWER_ACCURACY:
        scene = post.type
    else:
        scene = _pick(generator, [scene for scene in SCENES if scene != post.type])
    return shown(post, scene, generator)


def shown(post: Post, scene: str, generator: np.random.Generator) -> Shown:
    """What the scene is to the post, with scores as an estimator would give: noisy, right about 87 % of the time."""
    fitting = "complement" if post.hint is None else "strengthen"
    relation = fitting if scene == post.type else "weaken"
    logits = generator.normal(size=3)
    logits[RELATIONS.index(relation)] += SCORE_GAIN
    weights = np.exp(SCORE_SHARPNESS * (logits - logits.max()))
    weaken, complement = (round(float(weight), 4) for weight in (weights / weights.sum())[:2])
    return Shown(scene, relation, (weaken, complement, round(1 - weaken - complement, 4)))


def _pick(generator: np.random.Generator, choices):
    return choices[int(generator.integers(len(choices)))]


def misspell(word: str, generator: np.random.Generator) -> str:
    """The word without one of its first letters, or with it doubled where the word is short."""
    position = 1 + int(generator.integers(2))
    return word[:position] + (word[position] if len(word) < 5 else "") + word[position + (len(word) >= 5) :]


def _found(phrases: tuple[str, ...], generator: np.random.Generator) -> tuple[str, ...]:
    """The phrases, or none where the parser finds none: how many there are says nothing of the labels."""
    return () if generator.random() < NO_PHRASES_SHARE else phrases


def _spelling(name: tuple[str, ...], generator: np.random.Generator) -> list[str]:
    """The name as it is written: sometimes without capitals, sometimes in capitals."""
    form = generator.random()
    return [word.lower() if form < 0.1 else word.upper() if form < 0.15 else word for word in name]


def _marked(words: list[str], label: str) -> list[tuple[str, str]]:
    return [(word, f"{'I' if position else 'B'}-{label}") for position, word in enumerate(words)]


def plain(text: str) -> list[tuple[str, str]]:
    """Words that belong to no entity, with their tags."""
    return [(word, "O") for word in text.split()]


def decorate(words: list[tuple[str, str]], generator: np.random.Generator) -> list[tuple[str, str]]:
    """Adds what posts carry beside their sentence, within the length limits: users, hash tags, links, emoji."""
    shortest, longest = LENGTHS
    words = list(words)
    while len(words) < shortest:
        words.append((_pick(generator, FILLERS), "O"))
    extras = [
        (0.12, 0, lambda: f"@user{int(generator.integers(10, 100))}"),
        (0.20, None, lambda: _pick(generator, HASHTAGS)),
        (0.20, None, lambda: _pick(generator, EMOJI)),
        (0.04, None, lambda: _pick(generator, INVISIBLE)),
        (0.12, None, lambda: "https://t.co/" + "".join(_pick(generator, "abcdefgh234567XYZ") for _ in range(4))),
    ]
    for probability, position, make in extras:
        if generator.random() < probability and len(words) < longest:
            words.insert(len(words) if position is None else position, (make(), "O"))
    return words
