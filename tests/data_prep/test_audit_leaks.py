"""The audit: it finds a leak that is put in, in each side input, and none where there is none."""

import dataclasses

import numpy as np
import pytest
from sklearn.naive_bayes import MultinomialNB

from data_prep.audit_leaks import audit, audit_table, label_of
from data_prep.inspection.leak_predictors import NaiveBayes
from tmrjax.records import Dataset, DatasetInfo, Generated, Record

RELATIONS = ("None", "/a", "/b")


def dataset(change, task="re", size=300, seed=0):
    """Records whose label is random, and which ``change`` may betray."""
    generator = np.random.default_rng(seed)
    splits = {}
    for split in ("train", "test"):
        records = []
        for index in range(size):
            label = generator.integers(3)
            words = tuple(generator.choice(["one", "two", "three", "four"], 5))
            labels = {"head": (0, 1), "tail": (1, 2), "relation": RELATIONS[label]}
            if task == "ner":
                labels = {"tags": (("O", "B-a", "B-b")[label], "O", "O", "O", "O")}
            record = Record(f"{split}-{index}", words, phrases=words[:2], **labels)
            records.append(change(record, RELATIONS[label], generator))
        splits[split] = tuple(records)
    return Dataset(None, DatasetInfo("x", task, RELATIONS if task == "re" else ("a", "b")), splits)


def plain(record, label, generator):
    return record


def with_(**fields):
    def change(record, label, generator):
        return Record(**{**record.__dict__, **{name: make(label, generator) for name, make in fields.items()}})

    return change


def boxes(count, generator):
    """Boxes anywhere."""
    corners = generator.uniform(0, 0.5, (count, 2))
    return tuple((x, y, x + 0.5, y + 0.5) for x, y in corners.tolist())


def objects(labels):
    return {"objects": {"labels": labels, "scores": [1.0] * len(labels), "boxes": [[0, 0, 1, 1]] * len(labels)}}


def aligned(label, generator):
    weights = generator.uniform(RELATIONS.index(label) / 3, RELATIONS.index(label) / 3 + 0.3, (5, 2))
    return objects(["dog", "cat"]) | {"alignment": weights.tolist()}


LEAKS = {
    "number of objects (of the first 10)": with_(
        sides=lambda label, g: objects(["dog"] * (1 + RELATIONS.index(label)))
    ),
    "labels of objects": with_(sides=lambda label, g: objects([f"thing{RELATIONS.index(label)}", "dog"])),
    "alignment of words and objects": with_(sides=aligned),
    "phrase words that the post lacks": with_(phrases=lambda label, g: ("one", f"{label}-word")),
    "last phrase words that the post lacks": with_(phrases=lambda label, g: ("one " + label,)),
    "scores, in tenths": with_(
        scores=lambda label, g: (0.0, s := RELATIONS.index(label) / 3 + g.uniform(0, 0.2), 1 - s)
    ),
    "number of phrases": with_(phrases=lambda label, g: ("one",) * (1 + RELATIONS.index(label))),
    "number of regions (of the first 3)": with_(regions=lambda label, g: boxes(1 + RELATIONS.index(label), g)),
    "number of generated regions (of the first 3)": with_(
        generated=lambda label, g: Generated("g.png", boxes(RELATIONS.index(label), g))
    ),
    "places of regions": with_(regions=lambda label, g: ((0.0, 0.0, 0.5, (1 + RELATIONS.index(label)) / 4),)),
    "places of generated regions": with_(
        generated=lambda label, g: Generated("g.png", ((0.0, 0.0, 0.5, (1 + RELATIONS.index(label)) / 4),))
    ),
    "file names of pictures": with_(image=lambda label, g: f"images/{label[-1]}_{g.integers(1e6)}.jpg"),
    "which parts are missing": with_(generated=lambda label, g: Generated("g.png") if label == "/a" else None),
}


@pytest.mark.parametrize("reads", LEAKS)
@pytest.mark.parametrize("task", ["re", "ner"])
def test_a_leak_is_found_where_it_is(reads, task):
    rows = {row.reads: row for row in audit(dataset(LEAKS[reads], task))}
    assert rows[reads].leak and rows[reads].f1 > rows["nothing"].f1 + 0.2
    assert reads in audit_table(list(rows.values())).partition("labels can be read from: ")[2]
    named = {row.reads for row in rows.values() if row.leak}
    assert named == {reads} or ("phrase" in reads and all("phrase" in other for other in named))


def test_words_of_the_post_are_no_leak():
    def told_by_text(record, label, generator):
        words = (label, *record.tokens[1:])
        return Record(**{**record.__dict__, "tokens": words, "phrases": words[:2]})

    rows = {row.reads: row for row in audit(dataset(told_by_text))}
    assert rows["phrase words"].f1 > 0.9 and not any(row.leak for row in rows.values())
    assert audit_table(list(rows.values())).splitlines()[-1] == "  no side input tells labels"
    assert not any(row.leak for row in audit(dataset(plain)))


def test_a_blind_guess_is_no_leak():
    def noise(record, label, generator):
        fields = {"image": f"{record.id.split('-')[1]}.jpg"}  # numbered anew in every split: a number says nothing
        if label == "/b" and generator.random() < 0.9:  # most posts have no relation, as in MNRE
            fields["relation"] = "None"
        return Record(**{**record.__dict__, **fields})

    rows = {row.reads: row for row in audit(dataset(noise))}
    assert rows["nothing"].f1 == 0 and rows["file names of pictures"].f1 > 0.1
    assert not any(row.leak for row in rows.values())


@pytest.mark.parametrize("seed", range(20))
def test_a_handful_of_posts_says_nothing(seed):
    """Of 12 posts a predictor without knowledge is far above the majority now and then."""

    def noise(record, label, generator):
        return Record(**{**record.__dict__, "image": f"images/{'abc'[generator.integers(3)]}.jpg"})

    assert not any(row.leak for row in audit(dataset(noise, size=12, seed=seed)))


def test_without_two_splits_there_is_nothing_to_say():
    whole = dataset(plain)
    assert audit(Dataset(None, whole.info, {"train": whole.splits["train"]})) == []
    assert "needs records in train" in audit_table([])


def test_labels_are_relations_or_sets_of_types():
    assert label_of(Record("a", ("x",), relation="None")) == frozenset()
    assert label_of(Record("a", ("x",) * 3, tags=("B-a", "I-a", "B-b"))) == {"a", "b"}


def test_naive_bayes_is_sklearns():
    generator = np.random.default_rng(1)
    counts = generator.poisson(1.0, (80, 6))
    labels = [frozenset([str(label)]) for label in generator.integers(0, 3, 80)]
    theirs = MultinomialNB(alpha=0.5).fit(counts[:50], [min(label) for label in labels[:50]])
    bags = [tuple(np.repeat(np.arange(6), row)) for row in counts]
    ours = NaiveBayes(bags[:50], labels[:50])
    assert [min(ours(bag)) for bag in bags[50:]] == theirs.predict(counts[50:]).tolist()


MARKED = {"leaky_phrases": "last phrase words that the post lacks", "leaky_regions": "places of regions"}


@pytest.mark.parametrize("mark", MARKED)
def test_the_verdict_names_the_mark_and_warns_where_it_is_missing(mark):
    found = dataset(LEAKS[MARKED[mark]])
    table = audit_table(audit(found), found.info)
    assert f"WARNING: NO REPORT WILL SAY SO: dataset.json has {mark} false" in table
    marked = dataclasses.replace(found.info, **{mark: True})
    table = audit_table(audit(found), marked)
    assert f"the set carries the mark for this, {mark}" in table and "WARNING" not in table
    other = dataset(LEAKS["file names of pictures"])
    assert "WARNING: no mark of dataset.json says so" in audit_table(audit(other), other.info)
    sound = dataset(plain)
    assert f"carries {mark} all the same" in audit_table(audit(sound), dataclasses.replace(sound.info, **{mark: True}))


def test_regions_are_counted_as_a_model_sees_them():
    """What stands behind the third region is never read, and so tells nothing."""
    deep = dataset(with_(regions=lambda label, g: boxes(3 + RELATIONS.index(label), g)))
    assert not any(row.leak for row in audit(deep))


def test_a_leak_of_whether_there_is_a_relation_is_one_though_it_does_not_say_which():
    """As in MNRE: with many relations, a third region gives none of them away, but tells them from None."""
    relations = ("None", *(f"/{number}" for number in range(20)))

    def third(record, label, generator):
        relation = relations[generator.integers(1, 21)] if generator.random() < 0.4 else "None"
        count = 2 if relation == "None" else 3
        return Record(**{**record.__dict__, "relation": relation, "regions": boxes(count, generator)})

    rows = {row.reads: row for row in audit(dataset(third, size=400))}
    number = rows["number of regions (of the first 3)"]
    assert number.leak and number.mark == "leaky_regions" and number.any == 1.0
    assert number.accuracy - rows["nothing"].accuracy < 0.05 and rows["nothing"].any < 0.7


def test_what_is_predicted_is_said():
    found = dataset(plain, task="ner")
    assert "predicted: the set of entity types in a post." in audit_table(audit(found), found.info)


def test_as_many_phrases_as_the_text_calls_for_are_no_leak():
    def counted(record, label, generator):
        number = 1 + RELATIONS.index(label)
        names = ("alpha", "beta", "gamma")[:number]
        return Record(**{**record.__dict__, "tokens": (*record.tokens[:1], *names), "phrases": names})

    rows = {row.reads: row for row in audit(dataset(counted))}
    assert rows["number of phrases"].f1 > 0.9 and not rows["number of phrases"].leak


def test_places_that_tell_what_the_words_say_are_no_leak():
    """A tall box is a person, and the text names one: what is seen there is no secret of the annotators."""

    def seen(record, label, generator):
        box = (0.0, 0.0, 0.5, (1 + RELATIONS.index(label)) / 4)
        return Record(**{**record.__dict__, "tokens": (label, *record.tokens[1:]), "generated": Generated("g", (box,))})

    rows = {row.reads: row for row in audit(dataset(seen))}
    assert rows["places of generated regions"].f1 > 0.9 and not any(row.leak for row in rows.values())


def test_objects_that_the_text_names_are_no_leak_and_sets_without_have_no_rows():
    def seen(record, label, generator):
        return Record(**{**record.__dict__, "tokens": (label, *record.tokens[1:]), "sides": objects([f"a {label}"])})

    rows = {row.reads: row for row in audit(dataset(seen))}
    assert rows["labels of objects"].f1 > 0.9 and not any(row.leak for row in rows.values())
    assert not any("objects" in row.reads for row in audit(dataset(plain)))


def test_objects_beyond_what_a_model_reads_tell_nothing():
    deep = dataset(with_(sides=lambda label, g: objects(["dog"] * (10 + RELATIONS.index(label)))))
    assert not any(row.leak for row in audit(deep))
