"""Tokenizers of folders equal the slow references; inside a checkpoint they are the same, or one clear error."""

import importlib.util
import json
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tokenizer_folders import (
    CORPUS,
    HARD_WORDS,
    write_bertweet,
    write_byte_pairs,
    write_unigram,
    write_wordpiece,
)
from tmrjax.files import DataError
from tmrjax.text.marking import add_markers, encode_marked, marker_ids
from tmrjax.text.pieces import encode_phrases, encode_words, pieces_of_words
from tmrjax.text.tokenizers import load_tokenizer, tokenizer_from_json, tokenizer_to_json
from tmrjax.text.tweets import normalise


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhar\n##bour\n")
    return json.dumps(tokenizer_to_json(load_tokenizer(folder)))


def test_it_reads_what_was_saved(saved):
    tokenizer = tokenizer_from_json(json.loads(saved))
    assert tokenizer("harbour")["input_ids"] == [2, 5, 6, 3] and tokenizer.mask_token == "[MASK]"


def test_a_checkpoints_tokenizer_equals_that_of_transformers(tmp_path):
    """Ours of the same file, which asks to cut and to pad; special tokens in a text, one that the vocabulary lacks."""
    import transformers
    from tokenizers import Tokenizer

    folder = write_wordpiece(tmp_path, lower=True, tokenizer_class="BertTokenizer")
    backend = Tokenizer.from_str(load_tokenizer(folder).backend_tokenizer.to_str())
    backend.enable_truncation(4)
    backend.enable_padding(length=30)
    special = {"unk_token": "[UNK]", "sep_token": "[SEP]", "pad_token": "[PAD]", "cls_token": "[CLS]"}
    special |= {"mask_token": "[GAP]"}
    ours = tokenizer_from_json({"tokenizer": backend.to_str(), "special_tokens": special})
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **special)
    assert len(ours) == len(theirs) and ours.all_special_ids == theirs.all_special_ids
    assert [getattr(ours, f"{role}_id") for role in special] == [getattr(theirs, f"{role}_id") for role in special]
    words = [*HARD_WORDS, "[SEP]", "[GAP]"]
    for options in ({}, {"add_special_tokens": False}, {"split_special_tokens": True}):
        mine, other = (one(words, is_split_into_words=True, verbose=False, **options) for one in (ours, theirs))
        assert mine["input_ids"] == other["input_ids"] and mine.word_ids() == other.word_ids(), options
        assert ours(" ".join(words), **options)["input_ids"] == theirs(" ".join(words), **options)["input_ids"]
    assert ours(words)["input_ids"] == theirs(words)["input_ids"]
    tokens = ["harbour", "[GAP]", "nowhere to be found"]
    assert ours.convert_tokens_to_ids(tokens) == theirs.convert_tokens_to_ids(tokens)
    assert ours.convert_tokens_to_ids("[CLS]") == ours.cls_token_id
    assert ours.convert_ids_to_tokens(ours.all_special_ids) == theirs.convert_ids_to_tokens(theirs.all_special_ids)
    with pytest.raises(ValueError, match="does not cut"):
        ours("a", truncation=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda item: item["special_tokens"].update(tokenizer_file="/etc/passwd"), "special tokens 'tokenizer_file'"),
        (lambda item: item["special_tokens"].update(auto_map="x"), "special tokens 'auto_map'"),
        (lambda item: item["special_tokens"].update(pad_token=["x"]), "a special token of no text"),
        (lambda item: item.update(special_tokens=None), "other types"),
        (lambda item: item.update(tokenizer=7), "other types"),
        (lambda item: item.pop("tokenizer"), "another object"),
        (lambda item: item.update(tokenizer=item["tokenizer"][:-9]), "a damaged tokenizer"),
        (lambda item: item.update(tokenizer=item["tokenizer"].replace("WordPiece", "WordPiecf")), "a damaged tokeniz"),
    ],
)
def test_damage_and_foreign_names_are_clear_errors(saved, change, message):
    item = json.loads(saved)
    change(item)
    with pytest.raises(DataError, match=message):
        tokenizer_from_json(item)
    with pytest.raises(DataError, match="another object"):
        tokenizer_from_json([])


# --- the kinds of tokenizers -----------------------------------------------------------------------------------------


def slow(name, *arguments, **keywords):
    """transformers' own tokenizer in Python, the reference; its version 5 has none."""
    import transformers

    if int(transformers.__version__.split(".")[0]) >= 5:
        pytest.skip("transformers 5 has no tokenizers in Python")
    return getattr(transformers, name)(*map(str, arguments), **keywords)


def assert_same_pieces(ours, theirs, words, but=()):
    """Each word's pieces and the special ids; the JSON form gives the same."""
    again = tokenizer_from_json(json.loads(json.dumps(tokenizer_to_json(ours))))
    pieces = pieces_of_words(ours, words)
    assert pieces_of_words(again, words) == pieces and len(again) == len(ours)
    for word, found in zip(words, pieces, strict=True):
        expected = theirs.convert_tokens_to_ids(theirs.tokenize(word, is_split_into_words=True))
        if word not in but:
            assert found == expected, (word, ours.convert_ids_to_tokens(found), theirs.tokenize(word))
    for role in ("cls", "sep", "unk", "pad", "mask"):
        assert getattr(again, f"{role}_token") == getattr(theirs, f"{role}_token"), role
        assert getattr(again, f"{role}_token_id") == getattr(theirs, f"{role}_token_id"), role


@pytest.mark.parametrize(
    ("kind", "lower"), [("BertTokenizer", True), ("ElectraTokenizer", True), ("DistilBertTokenizer", False)]
)
def test_wordpiece_equals_the_slow_reference(tmp_path, kind, lower):
    folder = write_wordpiece(tmp_path, lower=lower, tokenizer_class=kind)
    # The fast one of a cased vocabulary does not compose accents.
    but = () if lower else ("cafe\u0301",)
    assert_same_pieces(load_tokenizer(folder), slow(kind, folder / "vocab.txt", do_lower_case=lower), HARD_WORDS, but)


def test_byte_pairs_equal_the_slow_reference_from_both_kinds_of_files(tmp_path):
    folder = write_byte_pairs(tmp_path)
    reference = slow("RobertaTokenizer", folder / "vocab.json", folder / "merges.txt")
    ours = load_tokenizer(folder)
    assert_same_pieces(ours, reference, HARD_WORDS)
    text = "Rosa sails  at noon"
    assert ours(text)["input_ids"] == reference(text, add_prefix_space=True)["input_ids"]
    # As on the hub: a tokenizer.json whose first word has no blank before it.
    import transformers

    transformers.RobertaTokenizerFast(str(folder / "vocab.json"), str(folder / "merges.txt")).save_pretrained(folder)
    for name in ("vocab.json", "merges.txt", "special_tokens_map.json"):
        (folder / name).unlink()
    assert_same_pieces(load_tokenizer(folder), reference, HARD_WORDS)


@pytest.fixture(scope="module")
def bertweet(tmp_path_factory):
    return write_bertweet(tmp_path_factory.mktemp("bertweet"))


def test_bertweet_equals_the_slow_reference(bertweet):
    reference = slow("BertweetTokenizer", bertweet / "vocab.txt", bertweet / "bpe.codes", normalization=True)
    ours = load_tokenizer(bertweet)
    assert_same_pieces(ours, reference, HARD_WORDS)
    text = "RT @rosa_b: Don't miss it… they're late!!!!!! 😂 https://t.co/xY9?a=b (see a.org) &amp; it’s 5 p.m. :-)"
    assert ours(text)["input_ids"] == reference(text)["input_ids"]
    assert ours([text, "Rosa"])["input_ids"] == [reference(text)["input_ids"], reference("Rosa")["input_ids"]]
    pieces = pieces_of_words(ours, ["@rosa", "https://t.co/x", "😂"])
    emoji = ":face_with_tears_of_joy:" if importlib.util.find_spec("emoji") else "<unk>"
    assert [ours.convert_ids_to_tokens(ids) for ids in pieces] == [["@USER"], ["HTTPURL"], [emoji]]
    with pytest.raises(TypeError, match="no offsets of characters"):
        ours(text, return_offsets_mapping=True)


@given(text=st.text(alphabet="ab1@#.:;/-_()[]<>'’…!?&;=8oD3 \n\u200b😂é你nwtshp", max_size=30))
def test_posts_are_normalised_as_bertweets_authors_do(bertweet, text):
    reference = slow("BertweetTokenizer", bertweet / "vocab.txt", bertweet / "bpe.codes", normalization=True)
    assert normalise(text) == reference.normalizeTweet(text).split()


def test_damaged_files_of_bertweet_are_named_with_their_line(bertweet, tmp_path):
    for name, text, message in (
        ("vocab.txt", "the 5\nharbour\n", r"vocab.txt:2: found 'harbour'"),
        ("bpe.codes", "t h 5\ne\n", r"bpe.codes:2: found 'e'"),
    ):
        for file in ("vocab.txt", "bpe.codes"):
            (tmp_path / file).write_bytes((bertweet / file).read_bytes())
        (tmp_path / name).write_text(text)
        with pytest.raises(DataError, match=message):
            load_tokenizer(tmp_path)


def best_unigrams(scores, text, unknown):
    """The cut of ``text`` with the largest sum of scores, by trying every end of every beginning."""
    best = [(0.0, [])] + [None] * len(text)
    for end in range(1, len(text) + 1):
        for start in range(end):
            piece = text[start:end]
            score = scores.get(piece, unknown if end == start + 1 else None)
            if best[start] is not None and score is not None:
                candidate = best[start][0] + score, [*best[start][1], piece]
                if best[end] is None or candidate[0] > best[end][0]:
                    best[end] = candidate
    return best[-1][1]


NAMES = {"xlm": ("<s>", "<pad>", "</s>", "<unk>", "<mask>"), "deberta": ("[CLS]", "[PAD]", "[SEP]", "[UNK]", "[MASK]")}


@pytest.mark.parametrize("kind", NAMES)
def test_unigrams_are_the_best_cut_of_every_word(tmp_path, kind):
    ours = load_tokenizer(write_unigram(tmp_path, NAMES[kind]))
    assert [ours.cls_token, ours.pad_token, ours.sep_token, ours.unk_token, ours.mask_token] == list(NAMES[kind])
    model = json.loads(ours.backend_tokenizer.to_str())["model"]
    scores = {piece: score for piece, score in model["vocab"] if piece not in NAMES[kind]}
    words = [word for word in HARD_WORDS if word.isascii() or word.isalpha()]
    for word, ids in zip(words, pieces_of_words(ours, words), strict=True):
        cut = best_unigrams(scores, "▁" + unicodedata.normalize("NFKC", word), min(s for _, s in model["vocab"]) - 10)
        found = [token for token in ours.convert_ids_to_tokens(ids) if token != ours.unk_token]
        assert found == [piece for piece in cut if piece in scores], word
    # Invisible words have no pieces, and the text of a special token is not the token.
    assert pieces_of_words(ours, ["\u3000", "Rosa"])[0] == []
    assert not {ours.cls_token_id, ours.sep_token_id} & set(pieces_of_words(ours, [ours.sep_token, "a"])[0])
    assert encode_phrases(ours, [ours.sep_token], 9)[0].count(ours.sep_token_id) == 1


@pytest.mark.parametrize(
    ("kind", "file", "names"),
    [
        ("XLMRobertaTokenizer", "sentencepiece.bpe.model", {}),
        (
            "DebertaV2Tokenizer",
            "spm.model",
            dict(zip(("pad", "bos", "eos", "unk"), ("[PAD]", "[CLS]", "[SEP]", "[UNK]"), strict=True)),
        ),
    ],
)
def test_sentencepiece_models_equal_the_slow_reference(tmp_path, kind, file, names):
    sentencepiece = pytest.importorskip("sentencepiece")
    ids = {f"{name}_id": index for index, name in enumerate(names)}
    with (tmp_path / file).open("wb") as model:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter([" ".join(CORPUS), *CORPUS] * 10), model_writer=model, vocab_size=130, minloglevel=2,
            hard_vocab_limit=False, **ids, **{f"{name}_piece": piece for name, piece in names.items()},
        )  # fmt: skip
    assert_same_pieces(load_tokenizer(tmp_path), slow(kind, tmp_path / file), HARD_WORDS)


def test_a_sentencepiece_model_without_its_packages_is_a_clear_error(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    (tmp_path / "spm.model").write_bytes(b"")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "DebertaV2Tokenizer"}))
    with pytest.raises(ValueError, match=r"sentencepiece and protobuf.*tokenizer\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    ("files", "error", "message"),
    [
        ({}, FileNotFoundError, "no vocab.txt and no tokenizer.json"),
        (
            {"config.json": {"tokenizer_class": "PhobertTokenizer"}, "vocab.txt": "a 1"},
            ValueError,
            "its tokenizer PhobertTokenizer has no fast version here; supported are BertTokenizer, ",
        ),
        (
            {"tokenizer_config.json": {"tokenizer_class": "RobertaTokenizer"}, "vocab.json": {}},
            FileNotFoundError,
            "no merges.txt and no tokenizer.json",
        ),
        ({"tokenizer.json": {"model": 1}}, DataError, "tokenizer.json: found a damaged tokenizer"),
        ({"tokenizer_config.json": "{", "vocab.txt": "a"}, DataError, "tokenizer_config.json: found no valid JSON"),
        (
            {"vocab.json": {"a": 0}, "merges.txt": ""},
            ValueError,
            "its vocabulary has no unk_token, sep_token, cls_token",
        ),
        ({"vocab.json": "[", "merges.txt": ""}, DataError, "vocab.json and merges.txt: found a damaged vocabulary"),
    ],
)
def test_folders_without_a_tokenizer_say_what_is_missing(tmp_path, files, error, message):
    for name, content in files.items():
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(error, match=message):
        load_tokenizer(tmp_path)


# --- what reads them -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["byte pairs", "bertweet", "unigrams"])
def without_markers(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    writers = {"byte pairs": write_byte_pairs, "bertweet": write_bertweet}
    return load_tokenizer(
        writers[request.param](folder) if request.param in writers else write_unigram(folder, NAMES["xlm"])
    )


def test_words_begin_at_their_first_piece_wherever_they_stand(without_markers):
    words = ["harbour", "Rosa", "harbour", "\ufeff", "x" * 40, "harbour"]
    pieces = pieces_of_words(without_markers, words)
    assert pieces[0] == pieces[2] == pieces[5]
    encoded = encode_words(without_markers, words, 400)
    assert (
        encoded.input_ids[0] == without_markers.cls_token_id and encoded.input_ids[-1] == without_markers.sep_token_id
    )
    starts = dict(zip(encoded.words, encoded.word_starts, strict=True))
    for word, ids in enumerate(pieces):
        assert word in (encoded.empty if not ids else encoded.words)
        if ids:
            assert encoded.input_ids[starts[word] : starts[word] + len(ids)] == ids
    # Phrases are texts of the same words.
    phrase, _ = encode_phrases(without_markers, ["harbour Rosa", "harbour"], 100)
    assert phrase[1:-1] == [*pieces[0], *pieces[1], *pieces[0]]


def test_markers_are_added_where_the_vocabulary_has_none(without_markers):
    with pytest.raises(ValueError, match=r"vocabulary lacks.*add_markers"):
        marker_ids(without_markers)
    size = len(without_markers)
    tokenizer, added = add_markers(without_markers)
    assert added == 4 and len(tokenizer) == size + 4 and len(without_markers) == size
    assert marker_ids(tokenizer) == tuple(range(size, size + 4))
    assert add_markers(tokenizer) == (tokenizer, 0)
    again = tokenizer_from_json(json.loads(json.dumps(tokenizer_to_json(tokenizer))))
    # A word that reads like a marker is none.
    words = ["[unused0]", "Rosa", "at", "harbour"]
    assert pieces_of_words(tokenizer, words) == pieces_of_words(without_markers, words)
    for reader in (tokenizer, again):
        marked = encode_marked(reader, words, (3, 4), (1, 2), 60)
        assert [marked.input_ids.count(i) for i in marker_ids(tokenizer)] == [1, 1, 1, 1]
        assert marked.input_ids[marked.head_start] == size and marked.input_ids[marked.tail_start] == size + 2
