"""Makes the demo's divergence corpus: two styles to learn from, a third for the test out of the domain.

    python data_prep/make_divergence_demo.py --out=runs/demo/corpus --pairs=8000 --seed=0

A corpus as data_prep/build_divergence_corpus.py builds it, from pairs that data_prep/demo/pairs.py draws: `pairs`
strengthen, as many complement, twice as many weaken pairs to train on. Beside it lies `text_encoder/`, the vocabulary
for an estimator trained from random weights. The same options give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

if __package__ in (None, ""):  # run as a script from the repository's root
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data_prep.build_divergence_corpus import build_corpus
from data_prep.corpus.mixture import WEAKEN_FROM, Counts
from data_prep.corpus.options import Options
from data_prep.demo import pairs as demo_pairs
from data_prep.demo.pairs import DemoSource
from data_prep.make_demo import NOTICE, vocabulary
from tmrjax.divergence.corpus import CorpusInfo, corpus_table
from tmrjax.files import DataError, write_atomic

SHARES = {"dev": 0.1, "test": 0.2, "out_of_domain": 0.2}
SPARE = 1.1  # drawn for one that is used: a text may come twice and is dropped


def make_divergence_demo(
    out: str | Path, *, pairs: int = 8000, seed: int = 0, weaken_from: str = "source", progress: bool = True
) -> CorpusInfo:
    """Writes the corpus to `out` (resumed where it was stopped, returned where it is whole); returns its info."""
    if pairs < 50 or seed < 0:
        raise ValueError(f"pairs={pairs}, seed={seed}: expected pairs >= 50 and seed >= 0")
    out = Path(out)
    inside = round(SPARE * pairs * (1 + SHARES["dev"] + SHARES["test"]))
    outside = round(SPARE * pairs * SHARES["out_of_domain"])
    captions = DemoSource("captions", demo_pairs.caption, demo_pairs.photograph, inside, seed)
    posts = DemoSource("posts", demo_pairs.post, demo_pairs.poster, inside, seed)
    notes = DemoSource("notes", demo_pairs.note_of_word, demo_pairs.faded_print, outside, seed)
    entity_notes = DemoSource("entity_notes", demo_pairs.note_of_entity, demo_pairs.faded_print, outside, seed)
    info = build_corpus(
        Options(
            out=out,
            strengthen=(captions,),
            complement=(posts,),
            out_of_domain_strengthen=(notes,),
            out_of_domain_complement=(entity_notes,),
            counts=Counts(2 * pairs, pairs, pairs),
            # a random other picture that happens to show the same would be no weaken
            apart=tuple(f"{source.name}:scene" for source in (captions, posts, notes, entity_notes)),
            weaken_from=weaken_from,
            **SHARES,
            seed=seed,
            name="divergence demo",
            synthetic=True,
            progress=progress,
        )
    )
    _write_text_encoder(out / "text_encoder")
    return info


def _write_text_encoder(folder: Path) -> None:
    known = vocabulary()
    pieces = [*known, *(word for word in demo_pairs.vocabulary_of_pairs() if word not in known)]
    folder.mkdir(exist_ok=True)
    write_atomic(folder / "vocab.txt", ("\n".join(pieces) + "\n").encode("utf-8"))
    for name, content in (
        ("tokenizer_config.json", {"tokenizer_class": "BertTokenizer", "do_lower_case": True}),
        ("config.json", {"model_type": "bert", "vocab_size": len(pieces)}),
    ):
        write_atomic(folder / name, (json.dumps(content, indent=2) + "\n").encode("utf-8"))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0], epilog=NOTICE)
    parser.add_argument("--out", required=True, type=Path, help="folder of the corpus")
    parser.add_argument("--pairs", type=int, default=8000, help="strengthen pairs of train (default: %(default)s)")
    parser.add_argument("--weaken-from", choices=WEAKEN_FROM, default=WEAKEN_FROM[0], help="as of the builder")
    parser.add_argument("--seed", type=int, default=0, help="same seed, same bytes (default: %(default)s)")
    options = parser.parse_args()
    print(f"{NOTICE}\n")
    try:
        info = make_divergence_demo(**vars(options))
    except (DataError, ValueError, OSError) as error:
        sys.exit(f"make_divergence_demo: {error}")
    print(f"{corpus_table(info)}\n\n{NOTICE}\nwritten to {options.out}")


if __name__ == "__main__":
    main()
