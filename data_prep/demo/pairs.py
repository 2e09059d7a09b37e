"""The high-resource corpus of the demo world: pairs of text and drawn picture in three styles (paper section 3.4).

Two of them are the data sets that the estimator learns from: captions of warm photographs, mostly clean sentences,
whose words name what is shown (strengthen), and noisy posts under framed posters, where only a named person, place,
organisation or event says what the picture has to do with them (complement). So style, which is more or less strong
from picture to picture, gives the class away: the shortcut that the paper warns of. Notes below faded prints, the third
style, show both relations and are kept for the test out of the domain.

Unlike the small data set of posts, this one shows every context word of the world. As everywhere in the demo: drawn
pictures, generated texts, no figure on them says anything about real ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from PIL import Image, ImageFilter

from data_prep.corpus.sources import Item
from data_prep.demo import drawer as demo_drawer
from data_prep.demo.words import (
    CLOSERS,
    CONTEXT_WORDS,
    ENTITY_TYPES,
    LINKS,
    MARKED_FORMS,
    NAMES,
    NEUTRAL_WORDS,
    OPENERS,
    SECOND_LINKS,
    SURNAMES,
    words_of,
)
from data_prep.demo.world import decorate, misspell, plain

MISSPELT_SHARE = 0.15  # of the context words, here too
NAME_SHARE = 0.5  # of the captions and notes that also mention a name, which says nothing
ENTITY_SHARE = 0.3  # of the captions with an unambiguous entity beside, of any kind: the words say what is shown
POST_SHARE = 0.4  # of the captions that are written as posts are

ADJECTIVES = words_of("old new small large bright plain quiet busy famous simple painted wooden broken clean")
CAPTIONS = (
    "a {adjective} {word} in the middle of the picture",
    "there is a {adjective} {word} before a wall",
    "a view of the {word} with some {adjective} stones",
    "two {adjective} stones lie next to the {word}",
    "this is what the {word} looks like on a {adjective} day",
    "right before us there is a {adjective} {word}",
    "a {adjective} {word} and a {second}",
    "the {word} , the {second} and some {adjective} stones",
    "someone took a {adjective} photo of the {word} next to the {second}",
    "the {adjective} {word} is seen before the {second}",
    "a photo that shows one {adjective} {word} with its {second}",
    "behind the {word} there is a {adjective} {second}",
)
NOTES = (
    "plate {number} : {subject} , {adjective} print",
    "{subject} . {adjective} copy , number {number}",
    "from the archive ( {number} ) : {subject} , {adjective}",
    "{adjective} print of {subject} , sheet {number}",
)


# ------------------------------------------------------------------ texts


def caption(scene: str, generator: np.random.Generator) -> str:
    """A sentence that names what is shown."""
    word, second = _context_word(scene, generator), _context_word(scene, generator)
    name = " ".join(_pick(generator, NAMES))
    if generator.random() < POST_SHARE:
        words = _as_post(name, word, generator)
    else:
        words = _pick(generator, CAPTIONS).format(word=word, second=second, adjective=_pick(generator, ADJECTIVES))
        words += f" in {name}" if generator.random() < NAME_SHARE else ""
    if generator.random() < ENTITY_SHARE:
        kind = _pick(generator, ENTITY_TYPES)
        words += f" {_pick(generator, SECOND_LINKS[kind])} {_marked(kind, generator)}"
    return f"{words} ."


def post(scene: str, generator: np.random.Generator) -> str:
    """A post whose nouns say nothing, with an unambiguous entity of the kind that is shown."""
    words = _as_post(" ".join(_pick(generator, NAMES)), _pick(generator, NEUTRAL_WORDS), generator)
    words += f" {_pick(generator, SECOND_LINKS[scene])} {_marked(scene, generator)}"
    tokens = decorate(plain(f"{words} {_pick(generator, CLOSERS)}"), generator)
    return " ".join(token for token, _ in tokens)


def _as_post(name: str, noun: str, generator: np.random.Generator) -> str:
    """The sentence of a post, without what surrounds it."""
    if generator.random() < 0.75:
        return f"{_pick(generator, OPENERS)} {name} {_pick(generator, LINKS)} {noun}"
    return f"the {noun} : {_pick(generator, OPENERS)} {name}"


def note_of_word(scene: str, generator: np.random.Generator) -> str:
    """An archive's note that names what is shown."""
    return _note(f"the {_context_word(scene, generator)}", generator)


def note_of_entity(scene: str, generator: np.random.Generator) -> str:
    """An archive's note whose subject is an entity of the kind that is shown."""
    noun, link = _pick(generator, NEUTRAL_WORDS), _pick(generator, SECOND_LINKS[scene])
    return _note(f"the {noun} {link} {_marked(scene, generator)}", generator)


def _note(subject: str, generator: np.random.Generator) -> str:
    if generator.random() < NAME_SHARE:
        subject += f" for {' '.join(_pick(generator, NAMES))}"
    number = int(generator.integers(10, 1000))
    return _pick(generator, NOTES).format(subject=subject, adjective=_pick(generator, ADJECTIVES), number=number)


def _context_word(scene: str, generator: np.random.Generator) -> str:
    word = _pick(generator, CONTEXT_WORDS[scene])
    return misspell(word, generator) if generator.random() < MISSPELT_SHARE else word


def _marked(scene: str, generator: np.random.Generator) -> str:
    before, after = _pick(generator, MARKED_FORMS[scene])
    return " ".join(word for word in (before, _pick(generator, SURNAMES), after) if word)


# ------------------------------------------------------------------ pictures


def photograph(picture: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Warm, a little out of focus, darker at its corners; now more, now less."""
    size, strength = demo_drawer.SIZE, generator.random()
    rows, columns = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    shade = 1 - 0.2 * strength * (rows**2 + columns**2)
    warmth = 1 + strength * np.array((0.08, 0.0, -0.1))
    pixels = np.asarray(picture.filter(ImageFilter.GaussianBlur(0.6 * strength)), float)
    return _noisy(pixels * shade[..., None] * warmth, 4, generator)


def poster(picture: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Few colours in a white frame, which may be as thin as a pixel."""
    size, edge, levels = demo_drawer.SIZE, int(generator.integers(1, 6)), int(generator.integers(16, 49))
    inner = picture.resize((size - 2 * edge, size - 2 * edge), Image.Resampling.BICUBIC)
    pixels = np.full((size, size, 3), 245.0)
    pixels[edge:-edge, edge:-edge] = (np.asarray(inner, float) // levels + 0.5) * levels
    return _noisy(pixels, 5, generator)


def faded_print(picture: Image.Image, generator: np.random.Generator) -> Image.Image:
    """Half of the colour gone, and the lines of the printer."""
    pixels = np.asarray(picture, float)
    pixels = 0.5 * pixels + 0.5 * pixels.mean(-1, keepdims=True)
    pixels[int(generator.integers(4)) :: 4] *= 0.85
    return _noisy(pixels, 5, generator)


def _noisy(pixels: np.ndarray, deviation: float, generator: np.random.Generator) -> Image.Image:
    noisy = pixels + generator.normal(0, deviation, pixels.shape)
    return Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8))


# ------------------------------------------------------------------ sources


@dataclass(frozen=True)
class DemoSource:
    """`count` pairs of one style; item i depends on seed, name and i alone. Its scene is the column "scene"."""

    shuffled: ClassVar[bool] = True
    name: str
    text: Callable[[str, np.random.Generator], str]
    style: Callable[[Image.Image, np.random.Generator], Image.Image]
    count: int
    seed: int

    def describe(self) -> dict[str, Any]:
        """Texts, style and size."""
        return {"kind": "demo", "texts": self.text.__name__, "style": self.style.__name__, "pairs": self.count}

    def items(self, start: int = 0) -> Iterator[Item]:
        """One pair an item."""
        for number in range(start, self.count):
            generator = np.random.default_rng([self.seed, 4, *self.name.encode(), number])
            scene = _pick(generator, ENTITY_TYPES)
            text = self.text(scene, generator)
            picture = self.style(demo_drawer.draw(scene, generator).picture, generator)
            image = demo_drawer.encode(picture)
            yield Item(f"{number:06d}", f"{self.name}/{number}", (text,), image, {"scene": scene})


def vocabulary_of_pairs() -> list[str]:
    """Words that these texts have beside those of the posts."""
    texts = " ".join((*CAPTIONS, *NOTES, *ADJECTIVES, "in for the"))
    return sorted({word for word in texts.split() if word.isalpha()})


def _pick(generator: np.random.Generator, choices):
    return choices[int(generator.integers(len(choices)))]
