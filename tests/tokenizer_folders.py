"""Folders with tiny vocabularies of every kind of tokenizer, and words that are hard to cut."""

import collections
import itertools
import json
from pathlib import Path

_TEXT = (
    "Rosa and Ben sail from the harbour at noon . They 're late , do n't miss it ! RT #MeToo @USER HTTPURL naïve café "
    "Ünïcödé super cali fragilistic U.S. p.m. :-) 100% 1st can't 北京 大学 你 好 مرحبا :face_with_tears_of_joy: "
    "hello world the in of a to b c d e f g h i j k l m n o p q r s t u v w x y z"
)
CORPUS = _TEXT.split()

# fmt: off
HARD_WORDS = [
    "Rosa", "harbour", "don't", "can't", "cannot", "I'm", "they're", "it’s", "’s", "…wow", "…", "a...b", "......",
    "@rosa_b:", "@", "https://t.co/xY9?a=b", "HTTPS://X.Y", "www.a.org", "a@b.com", "#MeToo", "#", ":-)", "<3", "-->",
    "😂", "👩‍👩‍👧", "🧑‍💻", "👍🏽", "❤️", "🇬🇧", "你好", "北京大学", "日本", "naïve", "cafe\u0301", "Ünïcödé", "İ", "ß",
    "ﬁ", "①", "Ⅷ", "𝓗𝓮𝓵𝓵𝓸", "مرحبا", "สวัสดี", "\u200b", "\u200d", "\ufeff", "\u00ad", "a\u200bb", "x" * 150,
    "supercalifragilistic" * 8, "U.S.", "p.m.", "$1,000.50", "100%", "1st", "+1-555-123-4567", "''", '"', "RT", "&amp;",
    "&#39;s", "&lt;b&gt;", "&#x80;", "&nonsense;", "!!!!!!!", "[unused0]", "@@", "</w>", "▁", "Ġ", "Ã©",
]
# fmt: on


def write_wordpiece(folder: Path, *, lower: bool, tokenizer_class: str) -> Path:
    """vocab.txt with tokenizer_config.json."""
    from tokenizers import BertWordPieceTokenizer

    trained = BertWordPieceTokenizer(lowercase=lower)
    trained.train_from_iterator(CORPUS * 3, vocab_size=250, min_frequency=1, show_progress=False)
    trained.save_model(str(folder))
    settings = {"do_lower_case": lower, "tokenizer_class": tokenizer_class}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def write_byte_pairs(folder: Path) -> Path:
    """vocab.json and merges.txt."""
    from tokenizers import ByteLevelBPETokenizer

    trained = ByteLevelBPETokenizer(add_prefix_space=True)
    trained.train_from_iterator(
        CORPUS * 3,
        330,
        min_frequency=2,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
        show_progress=False,
    )
    trained.save_model(str(folder))
    return folder


def write_bertweet(folder: Path, merges: int = 120) -> Path:
    """vocab.txt and bpe.codes, as fastBPE learns them; pieces that occur in no word are not in the vocabulary."""
    words = collections.Counter([*CORPUS, *["@USER", "HTTPURL", ":face_with_tears_of_joy:"] * 9])
    pieces = {word: [*word[:-1], word[-1] + "</w>"] for word in words}
    codes = []
    for _ in range(merges):
        pairs = collections.Counter()
        for word, parts in pieces.items():
            for pair in itertools.pairwise(parts):
                pairs[pair] += words[word]
        best = max(pairs, key=lambda pair: (pairs[pair], pair))
        codes.append(f"{best[0]} {best[1]} {pairs[best]}\n")
        for parts in pieces.values():
            for index in range(len(parts) - 1, 0, -1):
                if (parts[index - 1], parts[index]) == best:
                    parts[index - 1 : index + 1] = ["".join(best)]
    seen = collections.Counter()
    for word, parts in pieces.items():
        for part in parts:
            seen[part.removesuffix("</w>") if part.endswith("</w>") else part + "@@"] += words[word]
    (folder / "vocab.txt").write_text("".join(f"{piece} {n}\n" for piece, n in seen.items()), encoding="utf-8")
    (folder / "bpe.codes").write_text("".join(codes), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": "roberta", "tokenizer_class": "BertweetTokenizer"}))
    return folder


def write_unigram(folder: Path, names: tuple[str, ...]) -> Path:
    """tokenizer.json of a SentencePiece unigram model; ``names``: of cls, pad, sep, unk, mask."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " ")])
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    trainer = trainers.UnigramTrainer(
        vocab_size=150, special_tokens=list(names), unk_token=names[3], show_progress=False
    )
    backend.train_from_iterator([" ".join(CORPUS), *CORPUS] * 3, trainer)
    backend.save(str(folder / "tokenizer.json"))
    return folder
