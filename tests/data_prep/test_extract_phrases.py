"""Phrases as a stage, and stanza's trees: real tokens, real trees, no models (none can be fetched where tests run)."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from data_prep import extract_phrases as command
from data_prep.extract_phrases import extract_phrases, load_parser, phrase_stage
from data_prep.phrases import constituency
from data_prep.phrases import pattern as noun_phrases
from data_prep.phrases.constituency import ConstituencyParser, tree_spans
from data_prep.stages import frame as stages
from data_prep.stages.frame import Selection, folder_digest
from tmrjax.files import DataError
from tmrjax.records import Record, read_dataset, write_dataset

ROOT = Path(__file__).resolve().parents[2]
QUIET = Selection(progress=False)


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "set"
    posts = ["RT @user : Kevin Love joins the Cleveland Cavaliers in Ohio with 3 dogs", "👍 !", "new dog"]
    train = [
        Record(str(number), tuple(post.split()), ("O",) * len(post.split()), phrases=("kevin love person",))
        for number, post in enumerate(posts)
    ]
    write_dataset(folder, {"name": "x", "task": "ner", "labels": ("PER",), "leaky_phrases": True}, {"train": train})
    return folder


def test_phrases_replace_what_leaked(root):
    dataset = extract_phrases(root, Selection(limit=1, progress=False))
    assert dataset.info.leaky_phrases  # the other posts still hold what leaked
    dataset = extract_phrases(root, QUIET)
    first, second, third = dataset.splits["train"]
    assert first.phrases == ("Kevin Love", "Cleveland Cavaliers", "3 dogs") and second.phrases == ()
    assert third.phrases == ("new dog",) and not dataset.info.leaky_phrases
    manifest = dataset.info.stages["phrases"]
    assert manifest["counts"] == {"noun phrases": 5, "phrases chosen": 4, "posts without a phrase": 1}
    assert manifest["options"] == {"parser": "pattern", "maximum": 3} and set(manifest["versions"]) == {"textblob"}
    with pytest.raises(DataError, match="--restart"):
        extract_phrases(root, QUIET, maximum=2)
    with pytest.raises(ValueError, match="at least 1"):
        phrase_stage(maximum=0)


def test_the_command(root):
    run = [sys.executable, "data_prep/extract_phrases.py", str(root)]
    done = subprocess.run([*run, "--maximum=1"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "without phrases                       1" in done.stdout and "posts without a phrase" in done.stdout
    assert "done                                3" in done.stdout and "s a post" in done.stdout
    assert read_dataset(root).splits["train"][0].phrases == ("Kevin Love",)
    done = subprocess.run([*run, "--parser=stanza"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith("extract_phrases: --parser=stanza: found no --models")
    assert "Traceback" not in done.stderr


# ------------------------------------------------------------------ other scripts


def write_posts(folder, texts):
    train = [Record(str(i), tuple(text.split()), ("O",) * len(text.split())) for i, text in enumerate(texts)]
    write_dataset(folder, {"name": "x", "task": "ner", "labels": ("PER",)}, {"train": train})


def test_a_set_in_another_script_is_refused_before_anything_is_written(tmp_path):
    write_posts(tmp_path, ["徐 悲 鸿 绘 马 https://t.co/abcdefghijk", "новый дом", "new dog"])
    message = r"found 68% of all letters outside of the Latin script \(2 of 3 posts mostly\); .* --stages=regions"
    with pytest.raises(DataError, match=message):
        extract_phrases(tmp_path, QUIET)
    assert not (tmp_path / "journals").exists()
    run = [sys.executable, "data_prep/prepare.py", str(tmp_path)]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and done.stderr.startswith(f"prepare: {tmp_path}: found 68% of all letters")
    assert done.stderr.count("\n") == 1 and read_dataset(tmp_path).splits["train"][0].phrases == ()


def test_single_posts_in_another_script_get_no_phrases_and_are_listed(tmp_path, caplog):
    texts = ["the new dog barks at Kevin Love in Ohio", "新 的 狗 叫 Bob", "新 的 狗 Bob", "𝓗𝓲 big dog", "été bleu"]
    write_posts(tmp_path, texts)
    records = read_dataset(tmp_path).splits["train"]
    assert [noun_phrases.in_another_script(record.tokens) for record in records] == [False, True, False, False, False]
    # A journal from before, with whole clauses as phrases, is not believed.
    stage = dataclasses.replace(phrase_stage(), inputs=lambda record: record.tokens)
    stages.run_stage(tmp_path, stage, Selection(limit=1, progress=False))
    journal = tmp_path / "journals/phrases/shard-1-of-1.jsonl"
    old = {
        "id": "1",
        "input": stages._digest(stage, records[1]),
        "value": ["新 的 狗 叫"],
        "counts": {},
        "seconds": 0.0,
    }
    journal.write_text(journal.read_text() + json.dumps(old) + "\n")
    dataset = extract_phrases(tmp_path, QUIET)
    assert dataset.splits["train"][1].phrases == () and dataset.splits["train"][0].phrases
    assert dataset.info.stages["phrases"]["counts"]["posts in another script"] == 1
    listing = tmp_path / "journals/phrases/other_script.jsonl"
    assert json.loads(listing.read_text()) == {"split": "train", "id": "1"}
    assert "1 posts are in another script: no phrases" in caplog.text


# ------------------------------------------------------------------ stanza

TREES = {  # what a parser could say, and the phrases
    "(ROOT (S (NP (NP (DT The) (JJ latest) (NN expansion)) (PP (IN in) (NP (PRP$ our) (NN town))))"
    " (VP (VBD was) (VP (VBN released)))))": ["latest expansion", "town"],
    "(ROOT (S (NP (NP (NNP Bill) (POS 's)) (NN dog)) (VP (VBZ barks) (PP (IN at) (NP (PRP me))))))": ["Bill 's dog"],
    "(ROOT (NP (NP (NNP University)) (PP (IN of) (NP (NNP Swat)))))": ["University of Swat"],
    "(ROOT (NP (NP (DT a) (NN number)) (PP (IN of) (NP (NNS events)))))": ["number", "events"],
    "(ROOT (NP (NP (NNP Seth) (NNP Gilliam)) (CC and) (NP (NNP Al))))": ["Seth Gilliam", "Al"],
    "(ROOT (FRAG (NP (NN RT) (NN @user)) (: :) (NP (JJ big) (NN dog) (NN 👍🏽) (NN #cat) (NN http://t.co/x))))": [
        "big dog",
        "#cat",
    ],
    "(ROOT (S (NP-SBJ (NP (DT the) (NN man)) (SBAR (WHNP (WP who)) (S (VP (VBD saw)"
    " (NP (NNP Ada)))))) (VP (VBD ran))))": ["man", "Ada"],
    "(ROOT (S (NP (EX There)) (VP (VBZ is) (NP (DT no)))))": [],
    "(ROOT (NP (NP (NNP Köln) (POS 's))))": ["Köln"],
}  # fmt: skip


@pytest.fixture(scope="module")
def read_trees():
    return pytest.importorskip("stanza.models.constituency.tree_reader").read_trees


@pytest.mark.parametrize("text", TREES)
def test_phrases_of_trees(read_trees, text):
    (tree,) = read_trees(text)
    tokens = tree.leaf_labels()
    assert [" ".join(tokens[start:end]) for start, end in tree_spans(tokens, tree)] == TREES[text]


def test_a_tree_of_other_words_is_an_error(read_trees):
    with pytest.raises(ValueError, match=r"made 1 words out of 2 tokens: 'a b'"):
        tree_spans(["a", "b"], read_trees("(ROOT (NP (NN a)))")[0])


class Trees:
    """In the place of stanza's constituency processor, whose model is not here: each sentence one noun phrase."""

    def __init__(self, read_trees):
        self.read_trees, self.seen = read_trees, []

    def bulk_process(self, documents):
        for document in documents:
            for sentence in document.sentences:
                words = [word.text for word in sentence.words]
                self.seen.append(words)
                leaves = " ".join(f"(NN w{number})" for number in range(len(words)))
                sentence.constituency = self.read_trees(f"(ROOT (NP {leaves}))")[0]
        return documents

    def process(self, document):
        return self.bulk_process([document])[0]


@pytest.fixture
def models(tmp_path, monkeypatch):
    """A folder in which stanza finds all that its pretokenized input needs."""
    folder = tmp_path / "models"
    (folder / "en/tokenize").mkdir(parents=True)
    (folder / "en/tokenize/combined.pt").write_bytes(b"never read")
    english = {"packages": {"default": {"tokenize": "combined"}}, "tokenize": {"combined": {"md5": "0"}}}
    (folder / "resources.json").write_text(json.dumps({"en": {"lang_name": "English", **english}}))
    monkeypatch.setattr(constituency, "PROCESSORS", "tokenize")
    return folder


def test_stanza_keeps_the_tokens_as_they_are(models, read_trees):
    parser = ConstituencyParser(models, use_gpu=False)
    trees = parser.pipeline.processors["constituency"] = Trees(read_trees)
    posts = [["New", "York", "!", "👍🏽", "a b", "\u200d", "can't"], ["one"], ["!"]]
    assert parser(posts) == [[(0, 2), (4, 5), (6, 7)], [(0, 1)], []]
    assert trees.seen == [["New", "York", "!"], ["👍🏽", "a b", "\u200d", "can't"], ["one"], ["!"]]


def test_the_stage_with_stanza(root, models, read_trees, monkeypatch):
    def build(folder, **options):
        parser = ConstituencyParser(folder, use_gpu=False, **options)
        parser.pipeline.processors["constituency"] = Trees(read_trees)
        return parser

    monkeypatch.setattr(command, "constituency", SimpleNamespace(ConstituencyParser=build, LANGUAGE="en"))
    dataset = extract_phrases(root, QUIET, parser="stanza", models=models)
    assert dataset.splits["train"][0].phrases[0] == "Kevin Love joins the Cleveland Cavaliers in Ohio with 3 dogs"
    manifest = dataset.info.stages["phrases"]
    assert manifest["model"] == f"stanza en {folder_digest(models / 'en')}"
    (models / "en/tokenize/combined.pt").write_bytes(b"another")
    with pytest.raises(DataError, match="--restart"):
        extract_phrases(root, QUIET, parser="stanza", models=models)


def test_missing_models_say_how_to_get_them(tmp_path, models, read_trees, monkeypatch):
    with pytest.raises(DataError, match=r"no resources.json.*stanza.download\('en', model_dir='DIR', processors="):
        ConstituencyParser(tmp_path)
    monkeypatch.undo()  # the real processors
    with pytest.raises(DataError, match=r"no whole set of models.*stanza.download"):
        ConstituencyParser(models, use_gpu=False)
    monkeypatch.setitem(sys.modules, "stanza", None)
    with pytest.raises(DataError, match=r"pip install 'tmrjax\[phrases\]'"):
        ConstituencyParser(models)
    with pytest.raises(ValueError, match="expected one of"):
        load_parser("spacy")
