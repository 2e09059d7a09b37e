"""Which version of the labels a data set has: the same name can stand for different gold tags (paper section 4.1).

Twitter-2015 is handed around in two versions: its test split has 5,119 B- tags in TMR's and HVPNeT's files and 5,072 in
those of UMT and UMGF, so figures on them do not compare. Every data set therefore keeps the SHA-256 of its labels per
split, and every report names the version.

The hash of a split is that of one line of JSON per record, in the order of the file, without blanks, non-ASCII
characters as they are (UTF-8), each line ended by LF:

    NER  ["O","B-PER","I-PER"]                   the tags, as the importer writes them (OTHER is MISC)
    RE   [[head start,head end],[tail start,tail end],"relation"]      null for what a record does not have

So words, pictures and ids do not change it; a record more or less, or in another order, does.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tmrjax.records.schema import Record

UNKNOWN = "unknown version"

# {name: {split: SHA-256}}, of all records of the released files as the importers of data_prep write them.
KNOWN: dict[str, dict[str, str]] = {
    "Twitter-2015 (TMR, HVPNeT)": {
        "train": "4c0cbb551158146563c4d838a9d3e593a7c5446eefd69d9983f09332418a004c",
        "dev": "c2c47c2ee1441d6e5cb17b18039f2b53fb95a91b0e86b6bbd6ad2f85ece11d85",
        "test": "75c05a32cf6355e97c822d89edac26fd2a938bbb6b3a23a625ca1b4a72d8d9bd",
    },
    "Twitter-2017": {
        "train": "476f3244340b2e6ac13200b95fb6280b8479d0d5b098e74731ca9e38eb51d630",
        "dev": "27da09b0604c0e5890da5f44382fed1551f1e33d39b4f29bbcb699953181c625",
        "test": "95a8cfe821cc29d92ef91f76b2d8ffcb6c6f3a330b1aed2f34a9ad248067a2b6",
    },
    "MNRE": {
        "train": "3071a12208609ca7a600bbc54ec4f10e4d5bf7f4555aedf4f8add2c204275640",
        "dev": "6a5fe9dbf19edd57d2534e2379f80c8c8ea651282037e0f4b9227ff359689c8c",
        "test": "6c654fe3fe51be22b2cccf75e094bdfbf33e1212ced07605a59034f143239169",
    },
}

# Versions whose files were not at hand: {name: {split: (posts, B- tags)}}.
KNOWN_BY_COUNTS: dict[str, dict[str, tuple[int, int]]] = {
    "Twitter-2015 (UMT, UMGF)": {"train": (4000, 6166), "dev": (1000, 1541), "test": (3257, 5072)},
}


def hash_labels(records: Iterable[Record], task: str) -> str:
    """The SHA-256 of the labels of a split, see the module's docstring. task: "ner" or "re"."""
    digest = hashlib.sha256()
    for record in records:
        labels: Any = record.tags if task == "ner" else (record.head, record.tail, record.relation)
        digest.update(json.dumps(labels, ensure_ascii=False, separators=(",", ":")).encode("utf-8") + b"\n")
    return digest.hexdigest()


def label_version(hashes: Mapping[str, str], splits: Mapping[str, Sequence[Record]] | None = None) -> str:
    """The name of a known version, or ``unknown version``, with what can be said of single splits.

    Args:
        hashes: `labels_sha256` of a data set, by split.
        splits: its records; they tell versions that are known by their counts only.
    """
    for name, known in KNOWN.items():
        if hashes and all(known.get(split) == digest for split, digest in hashes.items()):
            return name if hashes.keys() == known.keys() else f"{name}, {' and '.join(hashes)} only"
    for name, counts in KNOWN_BY_COUNTS.items():
        found = {split: _counts(records) for split, records in (splits or {}).items()}
        if "test" in found and all(counts.get(split) == count for split, count in found.items()):
            return f"{name}, by its counts of posts and B- tags"
    known_splits = [
        f"{split} is that of {name}"
        for name, known in KNOWN.items()
        for split, digest in hashes.items()
        if known.get(split) == digest
    ]
    return f"{UNKNOWN} ({', '.join(known_splits)})" if known_splits else UNKNOWN


def _counts(records: Sequence[Record]) -> tuple[int, int]:
    return len(records), sum(tag.startswith("B-") for record in records for tag in record.tags or ())
