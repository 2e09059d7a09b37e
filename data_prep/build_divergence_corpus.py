"""Builds the divergence estimator's corpus: strengthen, complement and weaken pairs (paper section 3.4, appendix B.3).

    python data_prep/build_divergence_corpus.py --out=DIR \\
        --strengthen=coco=TFDS/coco_captions/2014/1.1.0 --complement=laion=TFDS/laion400m/images/1.0.0 \\
        --out-of-domain-strengthen=sbu=SHARDS

The mixture is 100k/100k/200k by default; less where the sources have less, in the same proportions. Sources are
tensorflow-datasets folders, tar shards, JSONL files or folders of pictures: see data_prep/corpus/sources.py.

Every picture is decoded, counted where it can't be, laid down as JPEG with a short side of at most 384 pixels, and
kept once; so is every text: train, dev, test and test_out_of_domain share neither pictures (nearly equal ones
included) nor texts. What was left out is counted in corpus.json and listed in dropped.jsonl.

A build that was stopped, by whatever, is resumed by the same command, and ends with the same bytes. Memory does not
grow with the corpus; the disk holds each picture up to three times meanwhile (DIR/pool.sqlite, removed at the end).
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

if __package__ in (None, ""):  # run as a script from the repository's root
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_prep.corpus.mixture import IN_DOMAIN, OUT_OF_DOMAIN, draft_labelled, draft_plan, order_plan
from data_prep.corpus.options import MAX_PIECES, Options, Part, manifest_of, parse_options, resolve, split_counts
from data_prep.corpus.pool import Pool
from tmrjax import __version__
from tmrjax.divergence.corpus import (
    CLASSES,
    CORPUS_FILE,
    INDEX_TYPE,
    SPLITS,
    CorpusInfo,
    Pair,
    corpus_table,
    finish_split,
    read_corpus_info,
    shard_name,
    write_info,
    write_shard,
)
from tmrjax.files import DataError

TOOL = "data_prep/build_divergence_corpus.py"
POOL_FILE, DROPPED_FILE = "pool.sqlite", "dropped.jsonl"
DUPLICATES = (
    "picture that is there already",
    "nearly the same picture is there already",
    "text that is there already",
)


def build_corpus(options: Options) -> CorpusInfo:
    """Builds a corpus, or goes on with one, or returns the one that is there. Raises :class:`DataError`."""
    parts = resolve(options)
    manifest = manifest_of(options, parts)
    out = options.out
    if options.restart:
        _clear(out)
    finished = _finished(out, manifest)
    if finished is not None:
        return finished
    out.mkdir(parents=True, exist_ok=True)
    pool = Pool(out / POOL_FILE, manifest)
    try:
        for part in parts:
            pool.add_source(part.number, part.source, part.role, part.domain)
        for part in parts:
            _fill(pool, part, options)
        _plan(pool, options)
        splits = _write_splits(pool, options, parts)
        info = _describe(pool, options, parts, manifest, splits)
    finally:
        pool.close()
    write_info(out, info)
    if not options.keep_pool:
        _remove_pool(out)
    return info


# ------------------------------------------------------------------ the folder


def _finished(out: Path, manifest: Mapping[str, Any]) -> CorpusInfo | None:
    if (out / CORPUS_FILE).is_file():
        info = read_corpus_info(out)
        if info.options != json.loads(json.dumps(manifest)):
            raise DataError(
                out / CORPUS_FILE, "a corpus of other options", "a new folder", "Name another, or --restart."
            )
        if (out / POOL_FILE).exists():  # killed in its last act
            _remove_pool(out)
        return info
    foreign = [entry.name for entry in os.scandir(out)] if out.is_dir() and not (out / POOL_FILE).exists() else []
    if foreign:
        raise DataError(out, ", ".join(sorted(foreign)[:4]), "an empty folder or a corpus", "Name another --out.")
    return None


def _clear(out: Path) -> None:
    """Remove what a build writes, and nothing else."""
    if not out.is_dir():
        return
    for path in out.iterdir():
        own = path.name in (CORPUS_FILE, DROPPED_FILE) or path.suffix in (".array_record", ".partial")
        if own or path.name.endswith(".index.npy") or path.name.startswith(POOL_FILE):
            path.unlink()


def _remove_pool(out: Path) -> None:
    for path in out.glob(f"{POOL_FILE}*"):
        path.unlink()


# ------------------------------------------------------------------ the three acts


def _fill(pool: Pool, part: Part, options: Options) -> None:
    counts = split_counts(options)
    label = CLASSES.index(part.role) if part.role in CLASSES else None
    # A source in random order is read until it gave enough; of another the beginning would be no fair sample.
    stops = label is not None and part.source.shuffled
    splits = ("train", "dev", "test") if part.domain == IN_DOMAIN else ("test_out_of_domain",)
    wanted = sum(counts[split][label] for split in splits if split in counts) if stops else sys.maxsize
    with _bar(options, f"read {part.source.name}", None) as bar:
        pool.fill(
            part.number, part.source, part.rules, wanted=wanted, limit=options.limit, seed=options.seed,
            workers=options.workers, on_error=options.on_error, progress=bar.update,
        )  # fmt: skip


def _plan(pool: Pool, options: Options) -> None:
    if pool.one("SELECT 1 FROM plan LIMIT 1"):
        return
    counts = split_counts(options)
    with pool.database:
        pool.database.execute("BEGIN IMMEDIATE")
        inside = {split: value for split, value in counts.items() if split != "test_out_of_domain"}
        draft_plan(pool, inside, IN_DOMAIN, options.seed, options.weaken_from)
        if "test_out_of_domain" in counts:
            outside = {"test_out_of_domain": counts["test_out_of_domain"]}
            draft_plan(pool, outside, OUT_OF_DOMAIN, options.seed, options.weaken_from)
        draft_labelled(pool, "test_out_of_domain", options.seed)
        order_plan(pool)


def _write_splits(pool: Pool, options: Options, parts: Sequence[Part]) -> dict[str, Any]:
    names = sorted(part.source.name for part in parts)
    splits = {}
    for split in SPLITS:
        (total,) = pool.one("SELECT COUNT(*) FROM plan WHERE split = ?", split)
        if not total:
            continue
        count = -(-total // options.shard_records)
        with _bar(options, f"write {split}", total) as bar:
            for number in range(count):
                path = options.out / shard_name(split, number, count)
                known = pool.one("SELECT records FROM shards WHERE split = ? AND number = ?", split, number)
                if known is None or not path.exists():
                    first = number * options.shard_records
                    pairs = _pairs(pool, split, first, first + options.shard_records)
                    part, digest = write_shard(path, pairs, names)
                    row = (split, number, len(part), digest, part.tobytes())
                    pool.database.execute("INSERT OR REPLACE INTO shards VALUES (?, ?, ?, ?, ?)", row)
                    known = (len(part),)
                bar.update(known[0])
        shards = pool.database.execute(
            "SELECT number, records, digest FROM shards WHERE split = ? ORDER BY number", (split,)
        ).fetchall()
        entries = [
            {"file": shard_name(split, number, count), "records": records, "sha256": digest}
            for number, records, digest in shards
        ]
        index = pool.database.execute("SELECT part FROM shards WHERE split = ? ORDER BY number", (split,))
        splits[split] = finish_split(
            options.out, split, (np.frombuffer(part, INDEX_TYPE) for (part,) in index), entries, names
        )
    return splits


def _pairs(pool: Pool, split: str, first: int, last: int) -> Iterator[Pair]:
    query = (
        "SELECT n.label, s.name, s.domain, q.name, o.key, t.place, t.text, p.key, p.height, p.width, f.data "
        "FROM plan n JOIN pictures p ON p.number = n.picture JOIN files f ON f.picture = n.picture "
        "JOIN sources s ON s.number = p.source JOIN pictures o ON o.number = n.text_picture "
        "JOIN sources q ON q.number = o.source "
        "JOIN texts t ON t.picture = n.text_picture AND t.place = n.text_place "
        "WHERE n.split = ? AND n.number >= ? AND n.number < ? ORDER BY n.number"
    )
    for label, source, domain, text_source, owner, place, text, key, height, width, data in pool.database.execute(
        query, (split, first, last)
    ):
        identifier = f"{text_source}:{owner}#{place}"
        if source != text_source:
            identifier += f"|{source}:{key}"
        elif key != owner:
            identifier += f"|{key}"
        yield Pair(identifier, text, label, source, domain, data, height, width)


def _describe(
    pool: Pool, options: Options, parts: Sequence[Part], manifest: dict[str, Any], splits: dict[str, Any]
) -> CorpusInfo:
    dropped = pool.dropped_counts()
    with open(options.out / f".{DROPPED_FILE}", "w", encoding="utf-8") as file:
        for line in pool.dropped_lines():
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    os.replace(options.out / f".{DROPPED_FILE}", options.out / DROPPED_FILE)
    sources = {}
    for part in parts:
        (read,) = pool.one("SELECT position FROM sources WHERE number = ?", part.number)
        (pictures,) = pool.one("SELECT COUNT(*) FROM pictures WHERE source = ?", part.number)
        sources[part.source.name] = {**manifest["sources"][part.source.name], "read": read, "pictures": pictures}
    if options.tokenizer is not None:
        for name, number in _long_texts(pool, options.tokenizer).items():
            sources[name][f"pairs with texts over {MAX_PIECES} pieces"] = number
    return CorpusInfo(
        name=manifest["name"],
        splits=splits,
        source_names=tuple(sorted(sources)),
        sources=sources,
        options=json.loads(json.dumps(manifest)),
        seed=options.seed,
        tool=TOOL,
        version=__version__,
        synthetic=options.synthetic,
        skipped={reason: counts for reason, counts in dropped.items() if reason not in DUPLICATES},
        duplicates={reason: counts for reason, counts in dropped.items() if reason in DUPLICATES},
    )


def _long_texts(pool: Pool, folder: Path) -> dict[str, int]:
    """Pairs per source whose text has more than MAX_PIECES word pieces; the estimator cuts them."""
    from tmrjax.text.tokenizers import load_tokenizer

    tokenizer = load_tokenizer(folder)
    counts: dict[str, int] = {name: 0 for (name,) in pool.database.execute("SELECT name FROM sources")}
    query = (
        "SELECT s.name, t.text FROM plan n JOIN texts t ON t.picture = n.text_picture AND t.place = n.text_place "
        "JOIN pictures p ON p.number = n.text_picture JOIN sources s ON s.number = p.source"
    )
    for name, text in pool.database.execute(query):
        counts[name] += len(tokenizer(text, truncation=False, verbose=False)["input_ids"]) > MAX_PIECES
    return counts


def _bar(options: Options, description: str, total: int | None) -> tqdm:
    return tqdm(desc=description, total=total, unit="pair", disable=None if options.progress else True)


# ------------------------------------------------------------------ the command


def main() -> None:
    """The command line."""
    options = parse_options(__doc__.split("\n", 1)[0])
    try:
        info = build_corpus(options)
    except (DataError, OSError) as error:
        sys.exit(f"build_divergence_corpus: {error}")
    except KeyboardInterrupt:
        sys.exit("build_divergence_corpus: interrupted; the same command goes on")
    print(corpus_table(info))


if __name__ == "__main__":
    main()
