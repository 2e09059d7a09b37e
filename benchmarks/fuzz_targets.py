"""What :mod:`benchmarks.fuzz` damages: per target a sound input, which of its files are damaged, and how it is read."""

from __future__ import annotations

import ast
import dataclasses
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from PIL import Image

from data_prep.import_mnre import Options as MnreOptions
from data_prep.import_mnre import import_mnre
from data_prep.import_twitter import Options as TwitterOptions
from data_prep.import_twitter import import_twitter
from data_prep.stages.frame import Outcome, Selection, Stage, run_stage
from tmrjax.divergence.corpus import Pair, open_corpus, verify_corpus, write_corpus
from tmrjax.files import DataError, jsonl_bytes, parse_json, read_bytes, sha256
from tmrjax.pictures.cache import FeatureCache, PictureRequest
from tmrjax.pictures.decode import load_picture
from tmrjax.pictures.preprocessing import PictureSettings, square_of
from tmrjax.prediction.posts import PostOptions, read_post
from tmrjax.records import DatasetInfo, Generated, Grounding, Record, read_dataset, write_dataset
from tmrjax.training.checkpoints import BEST, CheckpointError, CheckpointStore, load_best

POSTS = 12  # of each split

Read = Callable[[Path, bool], tuple[Any, int]]  # (folder, skip) -> (a result that can be compared, records skipped)


@dataclass(frozen=True)
class Target:
    """One kind of input.

    inputs: how many are damaged. make: writes a sound one, given the folder of released data. read: reads it.
    is_damaged: which files are. is_recognisable: whether a hash or a checksum tells any damage. after_damage: what a
    person who edits by hand does.
    """

    name: str
    inputs: int
    make: Callable[[Path, Path], None]
    read: Read
    is_damaged: Callable[[Path], bool] = lambda path: True
    is_recognisable: bool = False
    after_damage: Callable[[Path], None] = lambda folder: None
    errors: tuple[type[Exception], ...] = (DataError,)


def _picture(path: Path, seed: int, size: tuple[int, int] = (24, 20), **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(noise).save(path, **options)


# ------------------------------------------------------------------ the importers


def _thin_twitter(folder: Path, data: Path) -> None:
    source = data / "tmr-release" / "TMR-NER" / "data" / "twitter2017"
    for split, text in (("train", "train.txt"), ("val", "valid.txt"), ("test", "test.txt")):
        blocks = (source / text).read_text(encoding="utf-8").split("\n\n")[:POSTS]
        names = [block.split("\n", 1)[0].removeprefix("IMGID:") for block in blocks]
        (folder / text).write_text("\n\n".join(blocks) + "\n\n", encoding="utf-8")
        for pattern in ("ner_{}_weight_{}.txt", "diff_ner_{}_weight_{}.txt"):
            for weight in ("weak", "strong"):
                _thin_scores(source, folder, pattern.format(split, weight), names)
        phrases = json.loads((source / f"ner17_grounding_text_{split}.json").read_text(encoding="utf-8"))
        chosen = {f"{name}.jpg": phrases[f"{name}.jpg"] for name in names if f"{name}.jpg" in phrases}
        (folder / f"ner17_grounding_text_{split}.json").write_text(json.dumps(chosen))
        for number, name in enumerate(names[:3]):
            _picture(folder / "images" / f"{name}.jpg", number)


def _thin_scores(source: Path, folder: Path, name: str, pictures: list[str]) -> None:
    lines = (source / name).read_text(encoding="utf-8").splitlines(keepends=True)
    kept = [line for line in lines if line.split("\t")[0].removesuffix(".jpg") in pictures]
    (folder / name).write_text("".join(kept), encoding="utf-8")


def _thin_mnre(folder: Path, data: Path) -> None:
    source = data / "tmr-release" / "TMR-RE" / "data"
    (folder / "txt").mkdir()
    (folder / "ours_rel2id.json").write_bytes((source / "ours_rel2id.json").read_bytes())
    for split in ("train", "val", "test"):
        lines = [
            line for line in (source / "txt" / f"ours_{split}.txt").read_text(encoding="utf-8").split("\n") if line
        ]
        pictures = [Path(ast.literal_eval(line)["img_id"]).stem for line in lines]
        chosen = list(dict.fromkeys(pictures))[: POSTS // 3]
        rows = [row for row, picture in enumerate(pictures) if picture in chosen]
        (folder / "txt" / f"ours_{split}.txt").write_text("".join(f"{lines[row]}\n" for row in rows), encoding="utf-8")
        for prefix in ("", "dif_"):
            for weight in ("weak", "strong"):
                _thin_scores(source, folder, f"txt/{prefix}{split}_weight_{weight}.txt", chosen)
        phrases = json.loads((source / "txt" / f"phrase_text_{split}.json").read_text(encoding="utf-8"))
        renumbered = {str(number): phrases[str(row)] for number, row in enumerate(rows)}
        (folder / "txt" / f"phrase_text_{split}.json").write_text(json.dumps(renumbered))
        for number, name in enumerate(chosen[:3]):
            _picture(folder / "images" / f"{name}.jpg", number)


def _read_import(run: Callable[..., Any], options: Any) -> Read:
    def read(folder: Path, skip: bool) -> tuple[Any, int]:
        shared = {"images": folder / "images", "generated": folder / "images", "progress": False}
        on_error = "skip" if skip else "raise"
        dataset = run(
            options(folder, folder / "out", **shared, phrases="released", generated_boxes="none", on_error=on_error)
        )
        return dataset.splits, len(dataset.skipped)

    return read


# ------------------------------------------------------------------ records, posts


_INFO = DatasetInfo("posts", "ner", ("PER", "LOC"))


def _records() -> list[Record]:
    box = (0.1, 0.2, 0.5, 0.9)
    return [
        Record(
            id=f"p{number}",
            tokens=("Ada", "in", "Köln", "👩\u200d🚀"),
            tags=("B-PER", "O", "B-LOC", "I-LOC"),
            image=f"images/{number}.png",
            regions=(box,),
            phrases=("ada in köln",),
            generated=Generated(f"images/{number}.png", (box,), "a prompt", number, "model", (Grounding("ada", 0.5),)),
            scores=(0.5, 0.25, 0.25),
            generated_scores=(0.0, 0.5, 0.5),
        )
        for number in range(4)
    ]


def _make_set(folder: Path, _: Path) -> None:
    for number in range(4):
        _picture(folder / "images" / f"{number}.png", number)
    records = _records()
    write_dataset(folder, _INFO, {"train": records[:2], "dev": records[2:3], "test": records[3:]})


def _read_set(verify: bool) -> Read:
    def read(folder: Path, skip: bool) -> tuple[Any, int]:
        dataset = read_dataset(folder, verify_hashes=verify, on_error="skip" if skip and not verify else "raise")
        return dataset.splits, len(dataset.skipped)

    return read


def _renew_hashes(folder: Path) -> None:
    """As one does who edits a split by hand; dataset.json stays damaged where it is."""
    try:
        info = json.loads((folder / "dataset.json").read_text())
        info["files"] = {name: sha256((folder / name).read_bytes()) for name in info["files"]}
        (folder / "dataset.json").write_text(json.dumps(info))
    except Exception:  # damaged so that nobody could
        return


def _make_next(folder: Path, data: Path) -> None:
    """An interrupted write: every file of the new set lies beside the old one."""
    _make_set(folder, data)
    for path in [*folder.glob("*.jsonl"), folder / "dataset.json"]:
        path.with_name(path.name + ".next").write_bytes(path.read_bytes())


_POSTS = (
    {
        "text": "Ada Byron in Köln 👩\u200d🚀",
        "id": 1,
        "image": "1.png",
        "regions": [[0, 0, 0.5, 1]],
        "phrases": ["ada"],
    },
    {
        "tokens": ["Ada", "in", "Köln"],
        "id": "b",
        "scores": [0.5, 0.25, 0.25],
        "generated_image": "2.png",
        "extra": {"a": 1},
    },
    {"text": "Ada met Bob", "head": [0, 3], "tail": [8, 11], "generated_scores": [0.1, 0.2, 0.7], "created_at": 5},
    {"tokens": ["Ada", "met", "Bob"], "head": [0, 1], "tail": [2, 3], "generated_regions": [[0.1, 0, 1, 1]]},
)


def _make_posts(folder: Path, _: Path) -> None:
    (folder / "posts.jsonl").write_bytes(jsonl_bytes(_POSTS))


def _read_posts(folder: Path, skip: bool) -> tuple[Any, int]:
    info = DatasetInfo("posts", "re", ("None", "/per/per/peer"))
    posts, skipped = [], 0
    for number, line in enumerate(read_bytes(folder / "posts.jsonl").split(b"\n"), 1):
        where = f"posts.jsonl:{number}"
        if not line.strip():
            continue
        try:
            post = read_post(parse_json(line, where), info, where=where, options=PostOptions(root=folder))
            posts.append(post._replace(pictures={}))
            jsonl_bytes([{"id": post.id, **post.carried}])  # what the result will hold
        except DataError:
            if not skip:
                raise
            skipped += 1
    return posts, skipped


# ------------------------------------------------------------------ pictures


_KINDS = {"jpg": {}, "png": {}, "gif": {}, "webp": {}, "bmp": {}, "tiff": {"compression": "tiff_lzw"}}


def _make_pictures(folder: Path, _: Path) -> None:
    for number, (kind, options) in enumerate(_KINDS.items()):
        _picture(folder / f"a.{kind}", number, (40, 60), **options)
    noise = np.random.default_rng(9).integers(0, 256, (40, 60, 4), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(noise).save(folder / "b.png", exif=exif)
    Image.fromarray(noise[..., 0].astype(np.uint16) * 200).save(folder / "c.png")
    Image.fromarray(noise[..., :3]).convert("P").save(folder / "d.png", transparency=3)
    Image.fromarray(noise).convert("CMYK").save(folder / "e.jpg")


def _read_pictures(folder: Path, _: bool) -> tuple[Any, int]:
    return [square_of(load_picture(path), 16, 18).tobytes() for path in sorted(folder.iterdir())], 0


# ------------------------------------------------------------------ checkpoints, caches, journals, the corpus


def _make_checkpoint(folder: Path, _: Path) -> None:
    arrays = {"params": {"a": jax.random.normal(jax.random.key(0), (40, 20)), "b": np.arange(9)}}
    store = CheckpointStore(folder / BEST)
    store.save(3, {**arrays, "batch_stats": {"c": np.ones(3)}}, {"config": {"rate": 0.1}, "tokenizer": "x" * 300})
    store.close()


def _read_checkpoint(folder: Path, _: bool) -> tuple[Any, int]:
    variables, meta = load_best(folder)
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    arrays = {jax.tree_util.keystr(path): (str(leaf.dtype), leaf.shape, leaf.tobytes()) for path, leaf in leaves}
    return (arrays, meta), 0


def _features(folder: Path) -> list[bytes]:
    pictures = sorted((folder / "pictures").iterdir())
    requests = [PictureRequest(path, box) for path in pictures for box in (None, (0.1, 0.2, 0.7, 0.9))]
    cache = FeatureCache.build(
        folder / "cache", requests, lambda pixels: {"tokens": pixels.reshape(len(pixels), 4, -1)[..., :5]},
        encoder_identity={"weights": "w"}, settings=PictureSettings(8, 10), batch_size=4, progress=False,
    )  # fmt: skip
    return [cache[request]["tokens"].tobytes() for request in requests]


def _make_cache(folder: Path, _: Path) -> None:
    for number in range(8):
        _picture(folder / "pictures" / f"{number}.png", number)
    _features(folder)


def _stage() -> Stage:
    def work(batch):
        return [Outcome([" ".join(record.tokens)], {"words": len(record.tokens)}) for record in batch]

    def apply(record, value):
        return dataclasses.replace(record, phrases=tuple(value))

    return Stage("shout", "benchmarks/fuzz.py", work, apply, lambda record: record.tokens, options={"mark": "!"})


def _make_journal(folder: Path, data: Path) -> None:
    _make_set(folder, data)
    run_stage(folder, _stage(), Selection(progress=False))


def _read_journal(folder: Path, skip: bool) -> tuple[Any, int]:
    dataset = run_stage(folder, _stage(), Selection(progress=False, on_error="skip" if skip else "raise"))
    return dataset.splits, 0


def _make_corpus(folder: Path, _: Path) -> None:
    def pairs(split: str, count: int):
        for number in range(count):
            buffer = io.BytesIO()
            Image.new("RGB", (9, 7), (number, 0, 0)).save(buffer, "JPEG")
            yield Pair(f"{split}-{number}", f"text {number}", number % 3, "captions", "in", buffer.getvalue(), 7, 9)

    splits = {"train": pairs("train", 9), "test": pairs("test", 4)}
    write_corpus(folder, splits, name="tiny", source_names=("captions",), shard_records=4)


def _read_corpus(opened: Callable[[Path], Any]) -> Read:
    def read(folder: Path, _: bool) -> tuple[Any, int]:
        corpus = opened(folder)
        return {name: list(corpus[name]) for name in corpus.info.splits}, 0

    return read


def _is_data(path: Path) -> bool:
    return path.suffix not in (".jpg", ".png", ".lock")


TARGETS = (
    Target("import_twitter", 320, _thin_twitter, _read_import(import_twitter, TwitterOptions)),
    Target("import_mnre", 320, _thin_mnre, _read_import(import_mnre, MnreOptions)),
    Target("read_dataset, hashes renewed", 400, _make_set, _read_set(False), _is_data, after_damage=_renew_hashes),
    Target("read_dataset, splits", 120, _make_set, _read_set(True), lambda path: path.suffix == ".jsonl", True),
    Target("interrupted write", 120, _make_next, _read_set(True), lambda path: path.name.endswith(".jsonl.next"), True),
    Target("posts for predict", 400, _make_posts, _read_posts),
    Target("pictures", 300, _make_pictures, _read_pictures),
    Target("checkpoint files", 120, _make_checkpoint, _read_checkpoint, is_recognisable=True,
           errors=(CheckpointError,)),
    Target("feature cache files", 240, _make_cache, lambda folder, _: (_features(folder), 0),
           lambda path: path.parts[0] == "cache" and _is_data(path), True),
    Target("stage journals", 100, _make_journal, _read_journal,
           lambda path: path.parts[0] == "journals" and _is_data(path)),
    Target("corpus.json, shards, index; read", 160, _make_corpus, _read_corpus(open_corpus)),
    Target("corpus, verify", 80, _make_corpus, _read_corpus(verify_corpus), lambda path: path.suffix != ".json", True),
)  # fmt: skip
