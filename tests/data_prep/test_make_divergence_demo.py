"""The demo's corpus: styles that give the class away, a third that does not; texts and pictures that agree or not."""

import numpy as np
import pytest
from transformers import BertTokenizerFast

from data_prep.demo import pairs as demo_pairs
from data_prep.demo.words import CONTEXT_WORDS, MARKED_FORMS, NAMES
from data_prep.make_divergence_demo import make_divergence_demo
from tmrjax.divergence.corpus import CLASSES, verify_corpus
from tmrjax.pictures.decode import decode_picture

COUNT = 120


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo") / "corpus"
    make_divergence_demo(root, pairs=COUNT, progress=False)
    return root


def scene_of(text, source):
    """The kind of thing that a text speaks of, read off its words: None where they are misspelt."""
    for name in NAMES:  # which say nothing, though one is called Silver Lake
        text = text.replace(" ".join(name), "")
    if source in ("captions", "notes"):
        marks = CONTEXT_WORDS
    else:
        marks = {scene: {part for form in forms for part in form if part} for scene, forms in MARKED_FORMS.items()}
    found = {scene for scene in marks if set(text.split()) & set(marks[scene])}
    assert len(found) <= 1, text
    return found.pop() if found else None


def drawn_scenes(name):
    """Scene by number of item, from the source itself."""
    kinds = {
        "captions": (demo_pairs.caption, demo_pairs.photograph), "posts": (demo_pairs.post, demo_pairs.poster),
        "notes": (demo_pairs.note_of_word, demo_pairs.faded_print),
        "entity_notes": (demo_pairs.note_of_entity, demo_pairs.faded_print),
    }  # fmt: skip
    source = demo_pairs.DemoSource(name, *kinds[name], count=200, seed=0)
    return {item.key: item.columns["scene"] for item in source.items()}


def test_style_gives_the_class_away_in_the_domain_and_not_out_of_it(root):
    info = verify_corpus(root).info
    assert info.synthetic
    train = info.splits["train"].counts
    assert train["captions"] == {"weaken": COUNT, "complement": 0, "strengthen": COUNT}
    assert train["posts"] == {"weaken": COUNT, "complement": COUNT, "strengthen": 0}
    outside = info.splits["test_out_of_domain"].counts
    assert set(outside) == {"notes", "entity_notes"}
    assert all(count > 0 for count in info.splits["test_out_of_domain"].class_counts().values())


def test_texts_and_pictures_agree_where_they_should(root):
    corpus = verify_corpus(root)
    scenes = {name: drawn_scenes(name) for name in corpus.info.source_names}
    told, misspelt = 0, 0
    for split in corpus.info.splits:
        for pair in corpus[split]:
            picture_key = pair.id.split("|")[-1].split(":")[-1].split("#")[0]
            shown, said = scenes[pair.source][picture_key], scene_of(pair.text, pair.source)
            if said is None:
                misspelt += 1
                continue
            told += 1
            assert (shown == said) == (CLASSES[pair.label] != "weaken"), pair.text
    assert told > 5 * misspelt > 0


def test_same_options_same_bytes_and_nothing_twice(root, tmp_path):
    make_divergence_demo(tmp_path / "corpus", pairs=COUNT, progress=False)
    ours = {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
    again = tmp_path / "corpus"
    assert ours == {path.relative_to(again): path.read_bytes() for path in again.rglob("*") if path.is_file()}
    assert make_divergence_demo(root, pairs=COUNT, progress=False).name == "divergence demo"


def test_the_vocabulary_knows_every_text(root):
    tokenizer = BertTokenizerFast.from_pretrained(str(root / "text_encoder"))
    corpus = verify_corpus(root)
    for split in ("train", "test_out_of_domain"):
        for pair in corpus[split]:
            assert tokenizer.unk_token_id not in tokenizer(pair.text)["input_ids"], pair.text


def test_styles_differ_and_keep_their_size():
    sources = [
        demo_pairs.DemoSource(name, demo_pairs.caption, style, 3, 0)
        for name, style in (("a", demo_pairs.photograph), ("b", demo_pairs.poster), ("c", demo_pairs.faded_print))
    ]
    pictures = [decode_picture(next(source.items()).image, "x") for source in sources]
    assert all(picture.size == (64, 64) for picture in pictures)
    edges = [np.asarray(picture)[0].mean() for picture in pictures]
    assert edges[1] > 225 > max(edges[0], edges[2])  # the poster's white frame
    with pytest.raises(ValueError, match="pairs >= 50"):
        make_divergence_demo("x", pairs=3)
