"""The demo world: the same bytes for the same seed, the rates it promises, the gaps that training can close."""

import collections
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from transformers import BertTokenizerFast, CLIPImageProcessor

from data_prep.audit_leaks import audit
from data_prep.demo import drawer as demo_drawer
from data_prep.demo import words as demo_words
from data_prep.demo import world as demo_world
from data_prep.demo.detector import DemoDetector
from data_prep.demo.vectors import word_vectors
from data_prep.demo.world import RELATIONS, World
from data_prep.make_demo import make_demo
from data_prep.objects.graphs import box_edges, chain_edges
from data_prep.objects.structure import align
from tmrjax.encoders.picture.clip import CLIPVisionConfig
from tmrjax.encoders.picture.resnet import ResNetConfig
from tmrjax.encoders.text.bert import BertConfig
from tmrjax.files import DataError
from tmrjax.pictures.decode import load_picture
from tmrjax.pictures.preprocessing import PictureSettings
from tmrjax.records import read_dataset
from tmrjax.text.splitting import split_words
from tmrjax.text.vectors import read_word_vectors

ROOT = Path(__file__).resolve().parents[2]
POSTS = 160


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    return make_demo(tmp_path_factory.mktemp("demo") / "data", posts=POSTS, seed=3)


def content(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_same_seed_same_bytes(demo, tmp_path):
    again = make_demo(tmp_path / "elsewhere", posts=POSTS, seed=3)
    assert content(again.root) == content(demo.root)
    other = content(make_demo(tmp_path / "other", posts=POSTS, seed=4).root)
    changed = [path for path, data in content(demo.root).items() if other.get(path) != data]
    assert {path.parts[0] for path in changed} >= {"train.jsonl", "dev.jsonl", "test.jsonl", "images", "generated"}
    more = content(make_demo(tmp_path / "more", posts=POSTS, seed=3, misalignment=0.9).root)
    assert more[Path("world.jsonl")] != content(demo.root)[Path("world.jsonl")]


def test_it_is_a_valid_data_set_that_says_what_it_is(demo):
    dataset = read_dataset(demo.root)
    assert {split: len(records) for split, records in dataset.splits.items()} == {"train": 112, "dev": 24, "test": 24}
    assert dataset.info.synthetic and dataset.info.labels == ("PER", "LOC", "ORG", "MISC")
    assert "SYNTHETIC" in dataset.info.stages["make_demo"]["notice"]
    assert dataset.info.stages["make_demo"]["options"] == {
        "posts": POSTS, "misalignment": 0.6, "seed": 3, "task": "ner",
    }  # fmt: skip
    records = [record for records in dataset.splits.values() for record in records]
    assert {len(record.generated.regions) for record in records if record.generated} == {0, 1, 2, 3}
    for record in records:
        for path in (record.image, record.generated and record.generated.image):
            assert path is None or load_picture(demo.root / path).size == (64, 64)
        assert record.generated is None or record.generated.prompt == " ".join(record.tokens)
        assert (record.image is None) == (record.scores is None)
    listed = {path.name for folder in ("images", "generated") for path in (demo.root / folder).iterdir()}
    assert len(listed) <= POSTS and any(record.image is None for record in records)


def test_the_relation_world_marks_its_pairs_and_tells_nothing_aside(tmp_path):
    dataset = make_demo(tmp_path / "data", posts=400, seed=3, task="re")
    truths = {post["id"]: post for post in map(json.loads, (tmp_path / "data" / "world.jsonl").open(encoding="utf-8"))}
    records = [record for records in dataset.splits.values() for record in records]
    markers = {before for before, _ in demo_words.MARKED_FORMS["PER"]}
    for record in records:
        head, tail = (record.tokens[slice(*span)] for span in (record.head, record.tail))
        truth = truths[record.id]
        assert head[0] in markers and " ".join(tail).lower() == truth["name"].lower()
        expected = demo_words.RELATION_OF_TYPE[truth["type"]]
        assert record.relation == truth["pair_relation"] and record.relation in ("None", expected)
        words = set(" ".join(record.tokens).lower().split()) | {"the"}
        assert set(" ".join(record.phrases).split()) <= words
    unrelated = sum(record.relation == "None" for record in records) / len(records)
    assert abs(unrelated - demo_world.UNRELATED_SHARE) < 0.08
    assert not any(row.leak for row in audit(dataset))
    posts = [json.loads(line) for line in (tmp_path / "data" / "posts.jsonl").open(encoding="utf-8")]
    for post, record in zip(posts, dataset.splits["test"], strict=False):
        assert post["text"][slice(*post["tail"])] == " ".join(record.tokens[slice(*record.tail)])


def test_every_picture_has_objects_of_what_it_shows(demo):
    truths = {post["id"]: post for post in map(json.loads, (demo.root / "world.jsonl").open(encoding="utf-8"))}
    table, right, start = np.load(demo.root / "arrays/object_features.npy"), [], 0
    by_label = collections.defaultdict(list)
    for record in (record for records in demo.splits.values() for record in records):
        if record.image is None:
            assert not record.sides
            continue
        found = record.sides["objects"]
        labels, number = found["labels"], len(found["labels"])
        assert found["rows"] == [start, start + number] and len(found["boxes"]) == len(found["scores"]) == number
        assert found["scores"] == sorted(found["scores"], reverse=True)
        assert all(0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1 for x1, y1, x2, y2 in found["boxes"])
        right += [label in demo_words.OBJECT_LABELS[truths[record.id]["scene"]] for label in labels]
        for label, feature in zip(labels, found["rows"].load(), strict=True):
            by_label[label].append(feature)
        start += number
        if number:
            boxes = [tuple(box) for box in found["boxes"]]
            weights = align(len(record.tokens), chain_edges(len(record.tokens)), number, box_edges(boxes))
            np.testing.assert_allclose(record.sides["alignment"], weights, atol=1e-4)
    assert table.shape == (start, 32) and table.dtype == np.float32
    assert np.mean(right) == pytest.approx(0.85, abs=0.05)
    spread = np.mean([np.std(rows, axis=0).mean() for rows in by_label.values() if len(rows) > 9])
    assert spread == pytest.approx(1, abs=0.15) and np.std(table) > 1.2  # noise within a label, more between labels


def test_the_number_and_the_boxes_of_objects_depend_on_chance_alone():
    frame, detector = (0.1, 0.1, 0.9, 0.95), DemoDetector(0)
    for seed in range(20):
        found = [detector(scene, frame, np.random.default_rng([7, seed])) for scene in demo_words.OBJECT_LABELS]
        assert len({len(one.labels) for one in found}) == 1


def test_posts_with_a_text_picture_label_show_what_training_shows(demo):
    posts = [json.loads(line) for line in (demo.root / "text_picture.jsonl").open(encoding="utf-8")]
    assert len(posts) == POSTS // 4 and {post["picture_adds"] for post in posts} == {True, False}
    for post in posts:
        assert post.keys() == {"id", "tokens", "image", "regions", "picture_adds"}
        assert load_picture(demo.root / post["image"]).size == (64, 64)
    world = World(0)
    further = world.posts(demo_world.TEXT_PICTURE, 2000)
    assert all(post.name_seen and (post.hint is None or post.hint_seen) for post in further if post.type)


def test_word_vectors_are_of_the_training_text(demo):
    path = demo.root / "word_vectors/vectors.txt"
    lines = [line.split(" ") for line in path.read_text(encoding="utf-8").splitlines()]
    assert {len(line) for line in lines} == {51}
    counts = collections.Counter(token.lower() for record in demo.splits["train"] for token in record.tokens)
    assert {line[0] for line in lines} == {word for word, count in counts.items() if count >= 2}
    assert read_word_vectors(path, ["the"]).width == 50


def test_word_vectors_factor_the_mutual_information():
    """With as many axes as words, products give back the positive part; counted word by word here."""
    posts = [tuple("abcab"), tuple("bcda"), tuple("ddca")]
    words, vectors = word_vectors(posts)
    together = collections.Counter(
        (post[i], post[j]) for post in posts for i in range(len(post)) for j in range(len(post)) if 0 < abs(i - j) <= 5
    )
    total = sum(together.values())
    single = {word: sum(count for (first, _), count in together.items() if first == word) for word in words}
    wanted = np.array([
        [max(0.0, np.log(together[a, b] * total / (single[a] * single[b]))) if together[a, b] else 0.0 for b in words]
        for a in words
    ])  # fmt: skip
    values, axes = np.linalg.eigh(wanted)
    np.testing.assert_allclose(vectors @ vectors.T, axes @ np.diag(np.maximum(values, 0)) @ axes.T, atol=1e-9)


def test_the_clip_encoder_is_one(demo):
    folder = demo.root / "clip_encoder"
    config = CLIPVisionConfig.from_dict(json.loads((folder / "config.json").read_text()))
    assert config.hidden_size == 64 and config.image_size == 64
    settings = PictureSettings.from_processor(json.loads((folder / "preprocessor_config.json").read_text()))
    assert settings.size == 64
    assert CLIPImageProcessor.from_pretrained(folder).crop_size == {"height": 64, "width": 64}


def test_raw_posts_for_predict(demo):
    posts = [json.loads(line) for line in (demo.root / "posts.jsonl").read_text().splitlines()]
    assert len(posts) == 5 and set(posts[-1]) == {"id", "text"} and "tags" not in posts[0]
    first = demo.splits["test"][0]
    sides = posts[0]["sides"]
    assert np.shape(sides["objects"]["features"]) == (len(sides["objects"]["labels"]), 32)
    for post in posts[:-1]:
        words = split_words(post["text"])
        assert len(post.get("sides", {}).get("alignment", words)) == len(words)
    assert posts[0]["text"] == " ".join(first.tokens) and posts[0]["generated_image"] == first.generated.image


def test_the_encoders_fit_the_words(demo):
    folder = demo.root / "text_encoder"
    tokenizer = BertTokenizerFast(str(folder / "vocab.txt"), do_lower_case=True)
    pieces = (folder / "vocab.txt").read_text(encoding="utf-8").split("\n")[:-1]
    config = BertConfig.from_dict(json.loads((folder / "config.json").read_text()))
    assert len(set(pieces)) == len(pieces) == config.vocab_size and pieces[0] == "[PAD]" and "[unused3]" in pieces
    ResNetConfig.from_dict(json.loads((demo.root / "picture_encoder" / "config.json").read_text()))
    words = [word for posts in all_posts(0).values() for post in posts for word in post.tokens]
    encoded = {word: tokenizer.tokenize(word) for word in set(words)}
    assert not [word for word, split in encoded.items() if "[UNK]" in split]
    assert {word for word, split in encoded.items() if not split} == set(demo_words.INVISIBLE)
    context = [word for group in demo_words.CONTEXT_WORDS.values() for word in group]
    assert all(tokenizer.tokenize(word) == [word] for word in context)
    longest = max(sum(len(encoded[word]) for word in post.tokens) for post in all_posts(0)["train"])
    assert longest + 2 <= 48  # the demo's config


def all_posts(seed, count=2400):
    world = World(seed)
    return {split: world.posts(split, share) for split, share in (("train", count), ("dev", count), ("test", count))}


def test_the_words_do_not_overlap():
    groups = [*demo_words.CONTEXT_WORDS.values(), demo_words.NEUTRAL_WORDS]
    words = [word for group in groups for word in group]
    assert len(set(words)) == len(words) and min(map(len, groups)) >= 20
    others = {word.lower() for name in demo_words.NAMES for word in name}
    for group in (demo_words.OPENERS, demo_words.LINKS, demo_words.CLOSERS, demo_words.NO_ENTITY, demo_words.FILLERS):
        others |= {word for text in group for word in text.split()}
    assert not others & {word for group in demo_words.CONTEXT_WORDS.values() for word in group}
    assert len(set(demo_words.NAMES)) == len(demo_words.NAMES)


@pytest.mark.parametrize("seed", [0, 1])
def test_posts_keep_the_promised_rates(seed):
    splits = all_posts(seed)
    for split, posts in splits.items():
        named = [post for post in posts if post.type]
        assert len(named) / len(posts) == pytest.approx(0.95, abs=0.02)
        assert np.mean([post.hint is None for post in named]) == pytest.approx(0.25, abs=0.03)
        assert np.mean([post.second is not None for post in named]) == pytest.approx(1 / 3, abs=0.03)
        assert all(6 <= len(post.tokens) <= 16 for post in posts)
        for post in posts:
            spans = sum(tag.startswith("B-") for tag in post.tags)
            assert spans == (post.type is not None) + (post.second is not None)
            assert not post.phrases or post.type is None or post.phrases[0] == post.name.lower()
            assert all(phrase in " ".join(post.tokens).lower() for phrase in post.phrases[2:])
        by_name = collections.defaultdict(collections.Counter)
        for post in named:
            by_name[post.name][post.type] += 1
        rest = [
            max(counts.values()) - min(counts[kind] for kind in demo_words.ENTITY_TYPES) for counts in by_name.values()
        ]
        assert max(rest) <= 1  # the name alone says nothing
        unseen = np.mean([not post.name_seen for post in named])
        assert unseen == (0 if split == "train" else pytest.approx(1 / 8, abs=0.02))
    seen = {word for words in World(seed).seen_words.values() for word in words}
    hints = {split: [post for post in posts if post.hint] for split, posts in splits.items()}
    assert {post.hint for post in hints["train"]} == seen and len(seen) == 80
    for split in ("dev", "test"):
        assert len({post.hint for post in hints[split]}) == 200
        assert np.mean([post.hint_seen for post in hints[split]]) == pytest.approx(0.4, abs=0.03)
    for post in hints["train"]:
        assert (post.hint in post.tokens) != post.misspelt


@pytest.mark.parametrize("misalignment", [0.3, 0.6, 0.8])
def test_pictures_and_scores_keep_the_promised_rates(misalignment):
    named = [post for post in all_posts(0)["test"] if post.type]
    generator = np.random.default_rng(0)
    originals = [(post, demo_world.original_picture(post, misalignment, generator)) for post in named]
    drawn = [(post, demo_world.generated_picture(post, generator)) for post in named]
    assert np.mean([picture is None for _, picture in originals]) == pytest.approx(0.04, abs=0.02)
    originals = [(post, picture) for post, picture in originals if picture]
    drawn = [(post, picture) for post, picture in drawn if picture]
    assert np.mean([picture.scene != post.type for post, picture in originals]) == pytest.approx(misalignment, abs=0.03)
    hinted = [picture.scene == post.type for post, picture in drawn if post.hint]
    assert np.mean(hinted) == pytest.approx(0.9, abs=0.02)
    for post, picture in [*originals, *drawn]:
        assert sum(picture.scores) == pytest.approx(1, abs=1e-6) and min(picture.scores) >= 0
        fits = picture.scene == post.type
        assert picture.relation == ("weaken" if not fits else "complement" if post.hint is None else "strengthen")
    for pictures in (originals, drawn):
        right = [RELATIONS[int(np.argmax(picture.scores))] == picture.relation for _, picture in pictures]
        assert 0.85 <= np.mean(right) <= 0.9


def oracle(post, original, drawn, *, text=True, scores=True):
    """The probability of the right type for an ideal reader of the truth behind a post.

    It believes a context word that it can know; then the picture that its scores say fits best, or without scores
    either picture with equal chance; else it guesses.
    """
    if text and post["hint_seen"] and not post["misspelt"]:
        return 1.0
    pictures = [picture for picture in (original, drawn) if picture and picture.scene != "NEUTRAL"]
    if not scores:
        return np.mean([picture.scene == post["type"] for picture in pictures]) if pictures else 0.25
    fitting = [picture for picture in pictures if picture.scores[0] < 0.5]
    if not fitting:
        return 0.25
    return float(min(fitting, key=lambda picture: picture.scores[0]).scene == post["type"])


@pytest.mark.parametrize(
    ("misalignment", "expected"),  # w/o any picture, w/o scores, w/o the generated picture, all
    [(0.3, (0.40, 0.81, 0.79, 0.90)), (0.6, (0.40, 0.65, 0.60, 0.83)), (0.8, (0.40, 0.56, 0.50, 0.79))],
)
def test_each_source_of_knowledge_is_worth_something(misalignment, expected):
    rows = []
    generator = np.random.default_rng(1)
    for item in [post for post in all_posts(0)["test"] if post.type]:
        post = vars(item)
        original = demo_world.original_picture(item, misalignment, generator)
        drawn = demo_world.generated_picture(item, generator)
        rows.append((
            oracle(post, None, None),
            oracle(post, original, drawn, scores=False),
            oracle(post, original, None),
            oracle(post, original, drawn),
        ))  # fmt: skip
    text, without_scores, without_drawing, full = np.mean(rows, axis=0)
    assert (text, without_scores, without_drawing, full) == pytest.approx(expected, abs=0.03)
    assert text + 0.04 < min(without_scores, without_drawing) and max(without_scores, without_drawing) + 0.04 < full
    assert full - text > 0.25  # of the ambiguous entities, which are three quarters of all


def test_a_small_linear_reader_tells_the_scenes_apart():
    """What is drawn can be seen: a least-squares reader of 8 x 8 pixels names the scene of new pictures."""
    scenes = sorted(demo_drawer.PALETTES)

    def sample(seed, count):
        generator = np.random.default_rng(seed)
        labels = generator.integers(len(scenes), size=count)
        pictures = [demo_drawer.draw(scenes[label], generator).picture for label in labels]
        pixels = [np.asarray(picture.resize((8, 8), Image.Resampling.BOX), np.float64).ravel() for picture in pictures]
        small = [values / 64 - 2 for values in pixels]
        return np.c_[np.array(small), np.ones(count)], labels

    inputs, labels = sample(0, 600)
    ridge = 10 * np.eye(inputs.shape[1])
    weights = np.linalg.solve(inputs.T @ inputs + ridge, inputs.T @ np.eye(len(scenes))[labels])
    inputs, labels = sample(1, 200)
    assert np.mean((inputs @ weights).argmax(1) == labels) > 0.93


@pytest.mark.parametrize("task", ["ner", pytest.param("re", marks=pytest.mark.slow)])
def test_nothing_beside_the_text_and_the_pictures_tells_labels(task, tmp_path):
    """The leak audit, on the world as the demo makes it."""
    rows = audit(make_demo(tmp_path / "data", posts=2400, task=task))
    assert rows and not [row.reads for row in rows if row.leak]


def test_the_main_box_is_the_same_whatever_the_scene_shows():
    for seed in range(20):
        drawings = [demo_drawer.draw(scene, np.random.default_rng([8, seed])) for scene in sorted(demo_drawer.PALETTES)]
        assert len({drawing.regions[0] for drawing in drawings}) == 1


def test_the_number_of_phrases_depends_on_chance_alone(demo):
    counts = collections.Counter(
        (len(record.phrases), any(tag != "O" for tag in record.tags))
        for records in demo.splits.values()
        for record in records
    )
    assert {number for number, _ in counts} == {0, 3} and counts[3, False] > 0
    assert counts[0, True] + counts[0, False] < 0.1 * POSTS


@pytest.mark.parametrize("scene", sorted(demo_drawer.PALETTES))
def test_the_first_box_holds_the_object(scene):
    """Outside all boxes a picture is nearly as smooth as an empty ground; inside the first it is not."""
    rough = {"inside": [], "outside": []}
    for seed in range(30):
        drawing = demo_drawer.draw(scene, np.random.default_rng([9, seed]))
        pixels = np.asarray(drawing.picture, float)
        steps = np.abs(np.diff(pixels, axis=1)).mean(-1)
        inside = np.zeros((64, 63), bool)
        for number, (x1, y1, x2, y2) in enumerate(drawing.regions):
            area = np.s_[int(y1 * 64) : int(np.ceil(y2 * 64)) + 1, max(int(x1 * 64) - 1, 0) : int(np.ceil(x2 * 64)) + 1]
            inside[area] = True
            if number == 0:
                rough["inside"].append(steps[area].mean())
        rough["outside"].append(steps[~inside].mean())
        assert all(0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1 for x1, y1, x2, y2 in drawing.regions)
    assert np.mean(rough["inside"]) > 1.1 * np.mean(rough["outside"])
    assert np.mean(rough["outside"]) < 12  # the noise alone gives about 8


def test_an_older_demo_is_replaced_and_nothing_else(tmp_path):
    out = tmp_path / "data"
    make_demo(out, posts=20)
    (out / "features").mkdir()
    assert len(make_demo(out, posts=40).splits["train"]) == 28
    assert not (out / "features").exists() and [path.name for path in tmp_path.iterdir()] == ["data"]
    (out / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match=r"found thesis.tex; expected an empty folder or an older demo"):
        make_demo(out, posts=20)
    (out / "thesis.tex").unlink()
    info = json.loads((out / "dataset.json").read_text())
    (out / "dataset.json").write_text(json.dumps(info | {"stages": {}}))
    with pytest.raises(DataError, match=r"found another data set"):
        make_demo(out, posts=20)
    assert len((out / "train.jsonl").read_text().splitlines()) == 28


@pytest.mark.parametrize(
    "options", [{"posts": 19}, {"misalignment": 1.1}, {"misalignment": float("nan")}, {"seed": -1}]
)
def test_options_out_of_range(tmp_path, options):
    with pytest.raises(ValueError, match="expected posts >= 20"):
        make_demo(tmp_path / "x", **options)


def test_the_command_is_loud(tmp_path):
    command = [sys.executable, "data_prep/make_demo.py", f"--out={tmp_path / 'x'}", "--posts=20", "--misalignment=0.3"]
    done = subprocess.run([*command, "--seed=5"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.count("SYNTHETIC DATA") == 2 and "[synthetic]" in done.stdout
    done = subprocess.run([*command, "--posts=1"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("make_demo: posts=1")
