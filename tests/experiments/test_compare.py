"""Tables of runs: figures against sums by hand, what may be compared, and what the files say."""

import csv
import html
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.analysis.runs import read_run, require_comparable, rows_of
from experiments.analysis.study_tables import tables_of
from experiments.analysis.tables import make_table
from experiments.analysis.writing import as_csv, latex, markdown, write_tables
from experiments.compare import compare
from experiments.lib.study import Places, Study, Training
from experiments.lib.study_rows import METHODS, PUBLISHED
from experiments.studies import figure4, table1, table2
from tests.experiments.fabricated_runs import entity_rows, write_run
from tmrjax.files import DataError
from tmrjax.records import DatasetInfo, Record, read_dataset, write_dataset
from tmrjax.tasks.comparison import paired_bootstrap
from tmrjax.training.checkpoints import CheckpointError

ROOT = Path(__file__).resolve().parents[2]
GOOD, FAIR = [2, 2, 1, 2, 2, 2, 1, 2] * 5, [1, 2, 0, 1, 1, 2, 0, 1] * 5


@pytest.fixture
def runs(tmp_path) -> list[Path]:
    return [
        write_run(tmp_path / "a0", entity_rows(GOOD)),
        write_run(tmp_path / "a1", entity_rows(GOOD[::-1]), seed=1),
        write_run(tmp_path / "b0", entity_rows(FAIR), method="umt"),
        write_run(tmp_path / "b1", entity_rows([0, *FAIR[1:]]), method="umt", seed=1),
    ]


def test_a_table_has_the_figures_of_its_runs(runs):
    table = compare(runs)
    column = table.columns[0]
    assert list(column.cells) == table.rows == ["tmr", "umt"] and table.reference == "tmr"
    umt = column.cells["umt"]
    expected = [100 * 2 * sum(found) / (sum(found) + 80) for found in (FAIR, [0, *FAIR[1:]])]
    np.testing.assert_allclose(umt.scores["f1"], expected)
    np.testing.assert_allclose(umt.scores["precision"], 100)
    np.testing.assert_allclose(umt.scores["recall"], [100 * sum(FAIR) / 80, 100 * (sum(FAIR) - 1) / 80])
    np.testing.assert_allclose(umt.scores["lenient_f1"], 50)
    locations = sum(count > 0 for count in FAIR)
    assert umt.per_label["LOC"][0] == pytest.approx(100 * 2 * locations / (locations + 40))
    assert umt.support == {"LOC": 40, "PER": 40} and umt.seeds == [0, 1]
    counts = [np.stack([read_run(path).counts() for path in pair]) for pair in (runs[2:], runs[:2])]
    assert umt.comparison == paired_bootstrap(*counts)
    assert umt.corrected == umt.comparison.p_value < 0.05 and column.cells["tmr"].comparison is None
    assert [mark.partition(":")[0] for mark in column.marks] == ["SYNTHETIC DATA"]


def test_p_values_are_corrected_over_the_whole_table(runs, tmp_path):
    runs.append(write_run(tmp_path / "c0", entity_rows(FAIR), method="mega"))
    cells = compare(runs).columns[0].cells
    assert cells["umt"].corrected == pytest.approx(2 * min(cells[name].comparison.p_value for name in ("umt", "mega")))


def test_rows_are_told_apart_by_what_differs(tmp_path):
    paths = [
        write_run(tmp_path / "1", [], changes={"model": {"size": 1}, "epochs": 3}),
        write_run(tmp_path / "2", [], changes={"model": {"size": 2}, "epochs": 3}),
        write_run(tmp_path / "3", [], changes={"model": {"size": 2}, "epochs": 3}, seed=1),
        write_run(tmp_path / "4", [], changes={"epochs": 9}, ablation="back-translation"),
    ]
    rows = rows_of(map(read_run, paths))
    assert {name: len(found) for name, found in rows.items()} == {
        "tmr, model.size=1": 1, "tmr, model.size=2": 2, "tmr without back-translation": 1,
    }  # fmt: skip
    with pytest.raises(CheckpointError, match="same run"):
        rows_of([read_run(paths[0]), read_run(paths[0])])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"labels": "cc" * 32, "version": "TMR's"}, "labels of test"),
        ({"rows": entity_rows([1, 1, 1])}, "test set"),
        ({"task": "re", "rows": [{"id": "p0", "gold": "None", "predicted": "None"}]}, "task"),
    ],
)
def test_runs_of_different_data_are_refused_with_both_named(runs, tmp_path, changes, said):
    other = write_run(tmp_path / "other", changes.pop("rows", entity_rows(FAIR)), method="mega", **changes)
    with pytest.raises(CheckpointError, match=said) as error:
        require_comparable([read_run(runs[0]), read_run(runs[1]), read_run(other)])
    assert str(runs[0]) in str(error.value) and str(other) in str(error.value)


def test_an_unfinished_run_and_changed_predictions_are_errors(runs):
    path = runs[0] / "predictions" / "test.jsonl"
    path.write_bytes(path.read_bytes().replace(b"LOC", b"PER"))
    with pytest.raises(CheckpointError, match="SHA-256"):
        compare(runs)
    (runs[0] / "report.json").unlink()
    with pytest.raises(CheckpointError, match="not finished"):
        compare(runs)
    with pytest.raises(CheckpointError, match=r"no config\.json"):
        compare([runs[0].parent / "nowhere"])
    with pytest.raises(ValueError, match=r"'hvpnet'.*umt"):
        compare(runs[1:], reference="hvpnet")


def test_markdown_latex_and_csv_say_the_same(runs):
    table = compare(runs, title="A & B_1")
    text = markdown([table])
    cell = table.columns[0].cells["umt"]
    shown = f"{cell.scores['f1'].mean():.1f} ± {cell.scores['f1'].std():.1f}"
    assert f"| {shown} *" in text and "SYNTHETIC DATA" in text and "aaaaaaaaaaaa…" in text and "seeds 0, 1" in text
    assert "Holm" in text and "LOC" in text
    tex = latex([table])
    assert "\\toprule" in tex and "A \\& B\\_1" in tex and f"{shown.replace('±', '$' + chr(92) + 'pm$')} *" in tex
    assert tex.count("\\begin{tabular}") == tex.count("\\end{tabular}") == 3 and "SYNTHETIC DATA" in tex
    lines = list(csv.DictReader(io.StringIO(as_csv([table]))))
    assert [(line["row"], line["seed"]) for line in lines] == [(r, s) for r in ("tmr", "umt") for s in "01"]
    np.testing.assert_allclose([float(line["f1"]) for line in lines[2:]], cell.scores["f1"])
    assert float(lines[2]["p_holm"]) == cell.corrected and lines[0]["p"] == "" and lines[0]["marks"] == "SYNTHETIC DATA"


def test_the_page_holds_its_plots_and_escapes_names(runs, tmp_path):
    table = compare(runs, title="<script>alert(1)</script>")
    paths = write_tables([table], tmp_path / "out" / "table", "A title")
    assert [path.suffix for path in paths] == [".md", ".tex", ".csv", ".html"]
    page = paths[-1].read_text()
    assert "<script" not in page and html.escape("<script>") in page and page.count("<svg") == 2
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    assert "LEAKY REGIONS" not in page and "SYNTHETIC DATA" in page
    again = write_tables([table], tmp_path / "again" / "table", "A title")
    assert [path.read_bytes() for path in paths] == [
        path.read_bytes() for path in again
    ]  # the same runs, the same bytes


def test_leak_marks_follow_the_runs(tmp_path):
    paths = [write_run(tmp_path / name, entity_rows(GOOD), method=name, synthetic=name == "b") for name in "ab"]
    assert "LEAKY REGIONS" in markdown([compare(paths[:1])]) and "SYNTHETIC" not in markdown([compare(paths[:1])])
    both = compare(paths)
    leak, drawn = sorted(both.columns[0].marks)
    assert leak.startswith("LEAKY REGIONS") and leak.endswith("(rows: a)") and drawn.endswith("(rows: b)")
    assert [line["marks"] for line in csv.DictReader(io.StringIO(as_csv([both])))] == [
        "LEAKY REGIONS",
        "SYNTHETIC DATA",
    ]


def test_a_subset_counts_its_posts_alone(tmp_path):
    data = tmp_path / "data"
    scores = [(0.1, 0.8, 0.1), (0.8, 0.1, 0.1), None, (0.2, 0.6, 0.2)]
    records = [
        Record(f"p{index}", ("w", "w"), tags=("B-LOC", "B-PER"), scores=score) for index, score in enumerate(scores)
    ]
    info = DatasetInfo(name="small", task="ner", labels=("LOC", "PER"))
    write_dataset(data, info, {"train": [], "dev": [], "test": records})
    run = write_run(tmp_path / "run", entity_rows([2, 0, 0, 1]), root=data)
    report = json.loads((run / "report.json").read_text())
    with pytest.raises(DataError, match=r"another test\.jsonl"):
        compare([run], subset="complementary")
    report["data"]["files"] = dict(read_dataset(data).info.files)
    (run / "report.json").write_text(json.dumps(report))
    cell = compare([run], subset="complementary").columns[0].cells["tmr"]
    assert cell.scores["f1"] == pytest.approx(100 * 2 * 3 / (3 + 4)) and cell.support == {"LOC": 2, "PER": 2}
    assert "lenient_f1" not in cell.scores
    with pytest.raises(DataError, match="no post"):
        make_table("t", {"c": {"tmr": [read_run(run)]}}, keep=lambda record: False)


def test_tables_of_a_study_name_what_is_missing(tmp_path):
    trainings = tuple(
        Training(row, column, "mner.py:demo", {}, seed)
        for seed in (0, 1) for row in ("TMR", "UMT") for column in ("demo, 5 %", "demo, 10 %")
    )  # fmt: skip
    for training in trainings[:-1]:
        found = GOOD if training.row == "TMR" else FAIR
        write_run(tmp_path / training.name, entity_rows(found), method=training.row, seed=training.seed)
    published = {("TMR", "5 %"): 12.34}
    study = Study("Few posts", trainings, reference="TMR", view="curve", published=published)
    (table,) = tables_of(study, tmp_path)
    assert [column.name for column in table.columns] == ["5 %", "10 %"] and table.title == "Few posts: demo"
    assert table.missing == ("UMT on demo, 10 %, seeds [1]",) and "UMT on demo, 10 %" in markdown([table])
    assert table.columns[0].cells["TMR"].published == 12.34 and "12.34" in markdown([table])
    assert table.columns[0].cells["UMT"].seeds == [0, 1] and table.columns[1].cells["UMT"].seeds == [0]
    page = write_tables([table], tmp_path / "page", "t")[-1].read_text()
    assert page.count("<svg") == 1 and "training data, per cent" in page


def test_shipped_studies_cover_the_paper(tmp_path):
    places = Places(tmp_path, text_encoder="BERT", picture_encoder="RESNET", clip_encoder="CLIP")
    with pytest.raises(ValueError, match="twitter2015"):
        table1.get_study(places)
    for name in ("twitter2015", "mnre"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "dataset.json").write_text("{}")
    study = table1.get_study(places)
    rows = {column: {t.row for t in study.trainings if t.column == column} for column in ("Twitter-2015", "MNRE")}
    assert rows["Twitter-2015"] == METHODS.keys() - {"PCNN", "MTB"} and {"PCNN", "MTB", "UMT", "TMR"} <= rows["MNRE"]
    assert {row for row, column in PUBLISHED if column in rows} <= rows["Twitter-2015"] | rows["MNRE"]
    by_name = {(t.row, t.column, t.seed): t.settings for t in study.trainings}
    clip = by_name["MKGformer", "MNRE", 2]
    assert clip["picture_encoder.folder"] == "CLIP" and clip["data.root"] == str(tmp_path / "mnre")
    assert by_name["HVPNeT", "MNRE", 0]["picture_encoder.folder"] == "RESNET"
    assert len({t.name for t in study.trainings}) == len(study.trainings)
    shared = {t.name: t for t in study.trainings}
    assert all(shared[t.name] == t for t in table2.get_study(places).trainings)  # trained once for both tables
    curve = figure4.get_study(places)
    assert {t.settings["data.fraction"] for t in curve.trainings} == {0.05, 0.1, 0.2, 0.3, 0.4, 0.5}
    assert {t.row for t in curve.trainings if t.column.startswith("MNRE")} == {"MTB", "MEGA", "HVPNeT", "TMR"}


def test_the_command_prints_and_writes(runs, tmp_path):
    command = [sys.executable, str(ROOT / "experiments" / "compare.py"), *map(str, runs), f"--out={tmp_path / 'x'}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "## Comparison" in done.stdout and (tmp_path / "x.html").exists() and not done.stderr
    done = subprocess.run(command[:2], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("compare: name the workdirs")
