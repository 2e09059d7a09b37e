"""Makes the demo data: a synthetic, fully labelled world with drawn pictures, for entities or for relations.

    python data_prep/make_demo.py --out=DIR --posts=2400 --misalignment=0.6 --seed=0 [--task=re]

Misalignment 0.6 is what the paper (section 1) reports for Twitter. Beside the data set (:mod:`tmrjax.records`) the
folder gets `text_encoder/`, `picture_encoder/` and `clip_encoder/` (configs and a vocabulary for models trained from
random weights), `posts.jsonl` (a few posts without labels, to predict) and `world.jsonl`: the truth behind every post,
for oracles and tests; training never reads it. Some methods ask for more: objects of the posts' pictures and their
alignment with the words (`sides` of the records, `arrays/`), `word_vectors/vectors.txt`, made from the training text,
and `text_picture.jsonl`, further posts of which only is known whether the picture fits. The same options give the same
bytes.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import string
import sys
import tempfile
from pathlib import Path

import numpy as np

if __package__ in (None, ""):  # run as a script from the repository's root
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_prep.demo import drawer as demo_drawer
from data_prep.demo import vectors as demo_vectors
from data_prep.demo import words as demo_words
from data_prep.demo import world as demo_world
from data_prep.demo.detector import DemoDetector, Detected, sides_of
from data_prep.demo.world import TEXT_PICTURE, Post, Shown, World
from tmrjax import __version__
from tmrjax.records import (
    DATASET_FILE,
    NO_RELATION,
    TASKS,
    DataError,
    Dataset,
    DatasetInfo,
    Generated,
    Record,
    completeness_table,
    jsonl_bytes,
    read_dataset,
    write_dataset,
)
from tmrjax.records.arrays import table_path
from tmrjax.text.splitting import join_words, split_words

SHARES = {"train": 0.70, "dev": 0.15, "test": 0.15}
NO_REGIONS_SHARE = 0.08  # of the pictures, those whose objects nobody boxed
LABELS = {"ner": demo_words.ENTITY_TYPES, "re": (NO_RELATION, *demo_words.RELATION_OF_TYPE.values())}
TEXT_PICTURE_SHARE = 0.25  # of --posts, how many there are in text_picture.jsonl
RAW_POSTS = 5  # of test, once more without labels, to predict
NOTICE = (
    "SYNTHETIC DATA: a generated world with drawn pictures. Figures on it show that the program works, nothing more."
)
OWN_FILES = {
    *(f"{split}.jsonl" for split in SHARES),
    *(DATASET_FILE, "skipped.jsonl", "world.jsonl", "posts.jsonl"),
    *(
        "images",
        "generated",
        "text_encoder",
        "picture_encoder",
        "clip_encoder",
        "arrays",
        "word_vectors",
        TEXT_PICTURE,
        f"{TEXT_PICTURE}.jsonl",
        "features",
    ),  # features: a cache that training may leave
}

ENCODER_CONFIG = {
    "architectures": ["BertModel"],
    "model_type": "bert",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "max_position_embeddings": 128,
    "type_vocab_size": 2,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
PICTURE_ENCODER_CONFIG = {
    "architectures": ["ResNetModel"],
    "model_type": "resnet",
    "num_channels": 3,
    "embedding_size": 16,
    "hidden_sizes": [32, 48, 64, 96],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "hidden_act": "relu",
    "downsample_in_first_stage": False,
    "image_size": demo_drawer.SIZE,
}
CLIP_CONFIG = {
    "architectures": ["CLIPVisionModel"],
    "model_type": "clip_vision_model",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
    "num_channels": 3,
    "patch_size": 16,
    "image_size": demo_drawer.SIZE,
    "hidden_act": "quick_gelu",
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "layer_norm_eps": 1e-5,
}
CLIP_PICTURES = {
    "image_processor_type": "CLIPImageProcessor",
    "do_resize": True,
    "size": {"shortest_edge": demo_drawer.SIZE},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": demo_drawer.SIZE, "width": demo_drawer.SIZE},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "do_convert_rgb": True,
}


def make_demo(
    out: str | Path, *, posts: int = 2400, misalignment: float = 0.6, seed: int = 0, task: str = "ner"
) -> Dataset:
    """Writes the demo world to the folder `out` and returns it as read back; a demo that lies there is replaced.

    `posts` are split 70/15/15 into train, dev and test; `misalignment` in [0, 1] is the share of misleading original
    pictures; `task` is "ner" or "re". Raises ValueError for options out of range and :class:`DataError` if `out` holds
    anything that is not a demo's.
    """
    if posts < 20 or not 0 <= misalignment <= 1 or seed < 0 or task not in TASKS:
        raise ValueError(
            f"posts={posts}, misalignment={misalignment}, seed={seed}, task={task!r}: "
            f"expected posts >= 20, 0 <= misalignment <= 1, seed >= 0 and a task out of {TASKS}"
        )
    out = Path(out)
    foreign = sorted(entry.name for entry in out.iterdir() if entry.name not in OWN_FILES) if out.is_dir() else []
    if foreign or (out.is_dir() and any(out.iterdir()) and not _is_demo(out)):
        found = ", ".join(foreign[:5]) or "another data set"
        raise DataError(out, found, "an empty folder or an older demo", "Name another --out, or clear this one.")
    out.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(dir=out.parent, prefix=f".{out.name}."))
    try:
        _build(building, posts, misalignment, seed, task)
        read_dataset(building)
        building.chmod(0o755)
        if out.is_dir():
            shutil.rmtree(out)
        building.rename(out)
    except BaseException:
        shutil.rmtree(building, ignore_errors=True)
        raise
    return read_dataset(out)


def _is_demo(folder: Path) -> bool:
    try:
        return (
            json.loads((folder / DATASET_FILE).read_text())["stages"]["make_demo"]["tool"] == "data_prep/make_demo.py"
        )
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _build(folder: Path, posts: int, misalignment: float, seed: int, task: str) -> None:
    for name in ("images", "generated", "arrays", "word_vectors", TEXT_PICTURE):
        (folder / name).mkdir()
    world, detector = World(seed), DemoDetector(seed)
    counts = {split: round(share * posts) for split, share in SHARES.items()}
    counts["train"] = posts - counts["dev"] - counts["test"]
    splits, truths, features, raw, rows = {}, [], [], [], 0
    for number, (split, count) in enumerate(counts.items()):
        records = []
        for index, post in enumerate(world.posts(split, count, task)):
            generator = np.random.default_rng([seed, 3 if task == "ner" else 5, number, index])
            original = demo_world.original_picture(post, misalignment, generator)
            image, regions, frame = _draw(folder, f"images/{post.id}.jpg", original, generator)
            drawn = demo_world.generated_picture(post, generator)
            drawn_file = _draw(folder, f"generated/{post.id}.jpg", drawn, generator)[:2]
            record = _record(post, seed, original, (image, regions), drawn, drawn_file)
            found = None
            if original is not None:  # a stream of its own: what stood there before objects did stays as it was
                chance = np.random.default_rng([seed, 6 if task == "ner" else 7, number, index])
                found = detector(original.scene, frame, chance)
                features.append(found.features)
                record = dataclasses.replace(record, sides=sides_of(len(post.tokens), found, rows))
                rows += len(found.labels)
            records.append(record)
            if split == "test" and index < RAW_POSTS:
                raw.append((record, found))
            truths.append(_truth(post, original, drawn))
        splits[split] = records
    np.save(table_path(folder, "objects"), np.concatenate(features))
    (folder / "world.jsonl").write_bytes(jsonl_bytes(truths))
    (folder / "posts.jsonl").write_bytes(jsonl_bytes(_raw_posts(raw)))
    further = _text_picture(folder, world, round(TEXT_PICTURE_SHARE * posts), misalignment, task)
    (folder / f"{TEXT_PICTURE}.jsonl").write_bytes(jsonl_bytes(further))
    text = demo_vectors.glove_text(*demo_vectors.word_vectors([record.tokens for record in splits["train"]]))
    (folder / "word_vectors" / "vectors.txt").write_text(text, encoding="utf-8")
    _write_encoders(folder, task)
    options = {"posts": posts, "misalignment": misalignment, "seed": seed, "task": task}
    stage = {"tool": "data_prep/make_demo.py", "version": __version__, "options": options, "counts": counts}
    info = DatasetInfo(
        name="demo" if task == "ner" else "demo-relations",
        task=task,
        labels=LABELS[task],
        synthetic=True,
        stages={"make_demo": {**stage, "notice": NOTICE}},
    )
    write_dataset(folder, info, splits)


def _draw(folder: Path, path: str, picture: Shown | None, generator: np.random.Generator):
    """The path of the drawn picture, the boxes of its objects, the frame of its main one; nothing without a picture."""
    if picture is None:
        return None, (), None
    drawing = demo_drawer.draw(picture.scene, generator)
    (folder / path).write_bytes(demo_drawer.encode(drawing.picture))
    return path, () if generator.random() < NO_REGIONS_SHARE else drawing.regions, drawing.regions[0]


def _text_picture(folder: Path, world: World, count: int, misalignment: float, task: str) -> list[dict]:
    """Further posts, all with a picture, that say whether it fits: the world's truth (not "weaken")."""
    posts = []
    for index, post in enumerate(world.posts(TEXT_PICTURE, count, task)):
        generator = np.random.default_rng([world.seed, 9 if task == "ner" else 10, index])
        picture = None
        while picture is None:
            picture = demo_world.original_picture(post, misalignment, generator)
        image, regions, _ = _draw(folder, f"{TEXT_PICTURE}/{post.id}.jpg", picture, generator)
        adds = picture.relation != "weaken"
        entry = {"id": post.id, "tokens": post.tokens, "image": image, "regions": regions, "picture_adds": adds}
        posts.append(entry)
    return posts


def _record(post: Post, seed: int, original: Shown | None, file, drawn: Shown | None, drawn_file) -> Record:
    image, regions = file
    return Record(
        id=post.id,
        tokens=post.tokens,
        tags=post.tags or None,
        head=post.head,
        tail=post.tail,
        relation=post.relation,
        image=image,
        regions=regions,
        phrases=post.phrases,
        generated=None if drawn is None else Generated(*drawn_file, " ".join(post.tokens), seed, "demo drawer"),
        scores=None if original is None else original.scores,
        generated_scores=None if drawn is None else drawn.scores,
    )


def _raw_posts(records: list[tuple[Record, Detected | None]]) -> list[dict]:
    """Posts as a user would hand them to experiments/predict.py: raw text, no labels; the last one without pictures."""
    posts = []
    for record, found in records:
        text, words = join_words(record.tokens)
        post = {"id": record.id, "text": text}
        if record.relation is not None:
            pair = {"head": record.head, "tail": record.tail}
            post |= {key: [words[start].start, words[end - 1].end] for key, (start, end) in pair.items()}
        if record.image is not None:
            post |= {"image": record.image, "regions": record.regions, "scores": record.scores}
            post["sides"] = sides_of(len(split_words(text)), found, None)  # the words that will be read
        if record.generated is not None:
            post |= {"generated_image": record.generated.image, "generated_regions": record.generated.regions}
            post["generated_scores"] = record.generated_scores
        posts.append(post | {"phrases": record.phrases})
    posts[-1] = {key: posts[-1][key] for key in ("id", "text", "head", "tail") if key in posts[-1]}
    return posts


def _truth(post: Post, original: Shown | None, drawn: Shown | None) -> dict:
    return {
        "id": post.id,
        "type": post.type,
        "name": post.name,
        "name_seen": post.name_seen,
        "hint": post.hint,
        "hint_seen": post.hint_seen,
        "misspelt": post.misspelt,
        "second": post.second,
        **({} if post.relation is None else {"pair_relation": post.relation}),
        "scene": original and original.scene,
        "relation": original and original.relation,
        "generated_scene": drawn and drawn.scene,
        "generated_relation": drawn and drawn.relation,
    }


def vocabulary(task: str = "ner") -> list[str]:
    """A word-piece vocabulary of all words and characters of a task's world, so that nothing is unknown."""
    texts = [
        *(" ".join(name) for name in demo_words.NAMES),
        *(word for words in demo_words.CONTEXT_WORDS.values() for word in words),
        *(demo_words.NEUTRAL_WORDS + demo_words.OPENERS + demo_words.LINKS + demo_words.CLOSERS),
        *(demo_words.FILLERS + demo_words.NO_ENTITY + demo_words.SURNAMES + demo_words.HASHTAGS),
        *(part for forms in demo_words.MARKED_FORMS.values() for form in forms for part in form if part),
        *(link for links in demo_words.SECOND_LINKS.values() for link in links),
        "the user https co",
        *(demo_words.RELATING_LINKS + demo_words.UNRELATED_LINKS if task == "re" else ()),
    ]
    words = sorted({word for text in texts for word in text.lower().replace("#", " ").split() if word.isalpha()})
    emoji = sorted({character for symbol in demo_words.EMOJI for character in symbol if character != "\u200d"})
    characters = [*string.digits, *string.ascii_lowercase, *string.punctuation, *emoji]
    special = ["[PAD]", "[unused0]", "[unused1]", "[unused2]", "[unused3]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [word for word in words if word not in characters]
    return [*special, *words, *characters, *(f"##{character}" for character in characters)]


def _write_encoders(folder: Path, task: str) -> None:
    pieces = vocabulary(task)
    for name in ("text_encoder", "picture_encoder", "clip_encoder"):
        (folder / name).mkdir()
    (folder / "text_encoder" / "vocab.txt").write_text("\n".join(pieces) + "\n", encoding="utf-8")
    files = {
        "text_encoder/config.json": {**ENCODER_CONFIG, "vocab_size": len(pieces)},
        "text_encoder/tokenizer_config.json": {"tokenizer_class": "BertTokenizer", "do_lower_case": True},
        "picture_encoder/config.json": PICTURE_ENCODER_CONFIG,
        "clip_encoder/config.json": CLIP_CONFIG,
        "clip_encoder/preprocessor_config.json": CLIP_PICTURES,
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0], epilog=NOTICE)
    parser.add_argument("--out", required=True, help="folder to write; an older demo in it is replaced")
    parser.add_argument(
        "--posts", type=int, default=2400, help="number of posts over all splits (default: %(default)s)"
    )
    parser.add_argument(
        "--misalignment", type=float, default=0.6, help="share of misleading pictures (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default: %(default)s)")
    parser.add_argument("--task", choices=TASKS, default="ner", help="entities or relations (default: %(default)s)")
    options = parser.parse_args()
    print(f"{NOTICE}\n")
    try:
        dataset = make_demo(**vars(options))
    except (ValueError, OSError) as error:
        sys.exit(f"make_demo: {error}")
    print(completeness_table(dataset))
    print(f"\n{NOTICE}\nwritten to {dataset.root}")


if __name__ == "__main__":
    main()
