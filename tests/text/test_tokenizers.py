"""The tokenizer inside a checkpoint: whole it is the same, damaged or hostile it is one clear error."""

import json

import pytest

from tmrjax.files import DataError
from tmrjax.text.tokenizers import load_tokenizer, tokenizer_from_json, tokenizer_to_json


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    (folder / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nhar\n##bour\n")
    return json.dumps(tokenizer_to_json(load_tokenizer(folder)))


def test_it_reads_what_was_saved(saved):
    tokenizer = tokenizer_from_json(json.loads(saved))
    assert tokenizer("harbour")["input_ids"] == [2, 5, 6, 3] and tokenizer.mask_token == "[MASK]"


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
