"""What the repository says about itself and about the paper: no private codes, no missing files, right citations."""

import ast
import functools
import re
import runpy
import textwrap
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from experiments.configs import mde, mner, mre
from tmrjax import divergence, models
from tmrjax.files import parse_json
from tmrjax.inputs.base import Reading
from tmrjax.inputs.collate import Collator
from tmrjax.inputs.labels import Relation, Tags
from tmrjax.inputs.marked import Marked
from tmrjax.inputs.phrases import Phrases
from tmrjax.inputs.pictures import Pictures, PixelSource
from tmrjax.inputs.pieces import Pieces
from tmrjax.inputs.scores import Scores
from tmrjax.inputs.settings import TextSettings
from tmrjax.methods import known_methods
from tmrjax.methods import tmr_release as release
from tmrjax.pictures.preprocessing import PictureSettings
from tmrjax.records import DatasetInfo, read_dataset
from tmrjax.records import schema as record_schema

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("tmrjax", "experiments", "data_prep", "benchmarks", "docs", "tests")
SELF = Path(__file__).resolve()
PYTHON = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if path != SELF)
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *(ROOT / name / "README.md" for name in ("data_prep", "experiments")),
    ROOT / "Makefile",
]
FILES = [*PYTHON, *PAGES]
NAMES = {path.relative_to(ROOT).as_posix() for path in FILES} | {f"tests/{SELF.name}"}

SECTIONS = {"1", "2", "3", "4", "5", "3.1", "3.2", "3.3", "3.4", "3.5", "4.1", "4.2", "4.3", "4.4"}
# What each part of the house implements; 1 (the problem) may be cited anywhere.
SECTIONS_OF = {
    r"tmrjax/encoders/(text|picture)/.*\.py": {"3.2"},
    r"tmrjax/encoders/(joint/.*|__init__|base)\.py": {"3.2", "3.4"},
    r"tmrjax/inputs/.*\.py": {"3.2", "3.3", "3.4", "3.5", "4.1", "4.4"},
    r"tmrjax/(models|fusion|attention)\.py": {"3.2", "3.4", "3.5"},
    r"tmrjax/methods/.*\.py": {"3.2", "3.4", "3.5"},
    r"tmrjax/heads/.*\.py": {"3.5"},
    r"tmrjax/(divergence/.*|contrastive)\.py": {"3.4"},
    r"tmrjax/(text/marking|crf.*)\.py": {"3.5"},
    r"tmrjax/text/(tags|pieces)\.py": {"3.5", "4.1"},
    r"tmrjax/text/__init__\.py": {"3.2", "4.1"},
    r"tmrjax/(tasks/metrics|records/(dataset|__init__))\.py": {"4.1"},
    r"tmrjax/(training|pictures)/.*\.py": set(),
    r"tmrjax/records/schema\.py": {"3.2", "3.3", "3.4"},
    r"experiments/(configs/mde|lib/pairs)\.py": {"3.4"},
    r"experiments/configs/(mner|mre)\.py": {"4.1"},
    r"data_prep/(import.*|importing/.*)\.py": {"4.1"},
    r"data_prep/(extract_phrases|phrases/.*)\.py": {"3.2"},
    r"data_prep/(ground_regions|regions/.*)\.py": {"3.2"},
    r"data_prep/(back_translate|diffusion/.*|make_tiny_diffusion|demo/drawer)\.py": {"3.3"},
    r"data_prep/(build_divergence_corpus|corpus/.*|demo/(pairs|world)|score_divergence|inspection/.*)\.py": {"3.4"},
    r"data_prep/stages/.*\.py": {"3.2", "3.4"},
}


def name(path):
    return path.relative_to(ROOT).as_posix()


def lines_with(pattern, paths):
    """(file:line, match, the line with its neighbours) of each hit."""
    for path in paths:
        lines = path.read_text(encoding="utf-8").split("\n")
        for number, line in enumerate(lines):
            for match in re.finditer(pattern, line):
                yield f"{name(path)}:{number + 1}", match, " ".join(lines[max(0, number - 1) : number + 2])


def test_there_is_something_to_read():
    assert len(PYTHON) > 100
    assert {"README.md", "CONTRIBUTING.md", "data_prep/README.md", "Makefile"} <= NAMES


def test_no_code_that_only_a_private_page_explains():
    private = r"\b[PR](?:[1-9]|1[01])\b|\bDESIGN\b|/work/"
    assert [f"{where}: {match.group()}" for where, match, _ in lines_with(private, FILES)] == []


def test_every_file_that_is_named_is_there():
    """A name of a .py or .md file is one of the repository's, by its whole path or by its end."""
    ends = {"/".join(parts[i:]) for file in NAMES for parts in [file.split("/")] for i in range(len(parts))}
    pattern = r"(?<![\w./{}*<>-])[\w./-]*\w\.(?:py|md)\b"
    found = [(where, match.group()) for where, match, _ in lines_with(pattern, FILES)]
    assert len(found) > 100
    # A test may run what is missing on purpose, which it calls so, or write modules of its own.
    own = ("tests/experiments/test_outside.py", "tests/experiments/test_study.py")
    missing = [(where, file) for where, file in found if file not in ends and "absent" not in file]
    assert [f"{where}: {file}" for where, file in missing if not where.startswith(own)] == []


@functools.cache
def defined(path):
    """The names that a module defines or imports, and those that its classes define."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top, members = {"__version__"}, set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            top |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            (top if node in tree.body else members).add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names = {leaf.id for target in targets for leaf in ast.walk(target) if isinstance(leaf, ast.Name)}
            (top if node in tree.body else members).update(names)
    return top, members


def resolves(dotted):
    """Whether package.module.Name.member is there; members of a class are not looked up."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        module = ROOT.joinpath(*parts[:count])
        file = module / "__init__.py" if module.is_dir() else module.with_suffix(".py")
        if file.is_file():
            return count == len(parts) or parts[count] in defined(file)[0]
        if module.is_dir():
            return count == len(parts)
    return False


def test_every_module_and_name_that_is_referred_to_is_there():
    dotted = r"(?<![\w./\"'-])(?:tmrjax|data_prep|experiments|benchmarks)(?:\.[A-Za-z_]\w*)+"
    found = [(where, match.group()) for where, match, _ in lines_with(dotted, FILES) if "NAME" not in match.group()]
    assert len(found) > 100
    assert [f"{where}: {target}" for where, target in found if not resolves(target)] == []
    # Members of classes may be inherited, and a class that is raised may be another module's.
    members = set().union(*(defined(path)[1] for path in PYTHON))
    top = set().union(*(defined(path)[0] for path in PYTHON))
    missing = []
    for where, match, _ in lines_with(r":(class|func|meth|data|attr):`([A-Za-z_][\w.]*)`", PYTHON):
        role, target = match.groups()
        first, *rest = target.split(".")
        elsewhere = {"meth": members, "class": top}.get(role, set())
        here = set().union(*defined(ROOT / where.rsplit(":", 1)[0]), elsewhere)
        there = resolves(target) if first in PACKAGES else first in here and members >= set(rest)
        if not there:
            missing.append(f"{where}: {target}")
    assert missing == []


def sections(paths):
    number = r"(\d(?:\.\d)?)(?!\d|\.\d)"
    for pattern in (rf"§ ?{number}", rf"[Ss]ections? {number}", rf"[Ss]ections [\d.]+ (?:and|to) {number}"):
        for where, match, _ in lines_with(pattern, paths):
            yield where, match.group(1)


def test_sections_are_the_papers():
    found = list(sections(FILES))
    assert len(found) > 40
    assert [f"{where}: {section}" for where, section in found if section not in SECTIONS] == []
    wrong = []
    for where, section in found:
        for pattern, allowed in SECTIONS_OF.items():
            if re.fullmatch(pattern, where.rsplit(":", 1)[0]) and section not in {"1", *allowed}:
                wrong.append(f"{where}: {section}, expected one of {sorted(allowed)}")
    assert wrong == []


def test_equations_tables_and_figures_are_the_papers():
    wrong = [where for where, match, _ in lines_with(r"Eqs?\. ?(\d+)", FILES) if not 1 <= int(match.group(1)) <= 11]
    wrong += [where for where, _, near in lines_with(r"Eqs?\. ?5\b", FILES) if "L_self" not in near]
    wrong += [where for where, _, near in lines_with(r"Table (?!1\b)\d", FILES) if re.search("[Aa]blation", near)]
    figures = lines_with(r"76\.36|88\.64", FILES)
    wrong += [where for where, _, near in figures if "released README" not in near]
    assert wrong == []


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("no_pictures")


def batch_keys():
    """Name → shape in letters, as the docstring of tmrjax.models lists them."""
    keys = {}
    for line in models.__doc__.split("The batch\n")[1].splitlines():
        if match := re.match(r"    ([a-z_, ]+?) +(\[[^\]]*\])", line):
            keys |= dict.fromkeys(match.group(1).split(", "), match.group(2))
    return keys


@pytest.mark.parametrize("task", ["ner", "re"])
def test_the_batch_keys_are_written_down(task, root):
    keys, pictures = batch_keys(), Pictures("tokens", "pooled", generated=True)
    source = PixelSource(root, pictures, PictureSettings(size=8, resize=8))
    own = (Pieces(), Tags(("PER",))) if task == "ner" else (Marked(), Relation(("None", "in")))
    reading = Reading(None, TextSettings(max_pieces=10, max_phrase_pieces=3), source)
    collator = Collator((*own, Phrases(), pictures, Scores()), reading)
    sizes = {"B": 2, "T": 10, "W": 8, "P": 5, "S": 8, "3": 3}
    batch = collator([None, None], sizes["T"])
    for key, value in batch.items():
        letters = keys[key.removeprefix("generated_")].strip("[]").split(", ")
        assert value.shape == tuple(sizes[letter] for letter in letters), key
    needed = {"ner": {"word_starts", "word_mask", "tags"}, "re": {"head_start", "tail_start", "relation"}}
    other = needed["re" if task == "ner" else "ner"]
    assert set(keys) - set(batch) == other | {"image_features", "region_features", "region_pooled"}


def test_the_estimators_batch_keys_are_written_down():
    keys = ("input_ids", "attention_mask", "pixel_values", "pixel_mask", "labels", "sources", "row_mask")
    assert all(f"``{key}``" in divergence.model.__doc__ for key in keys)


@pytest.mark.parametrize("task", ["ner", "re"])
def test_the_record_format_is_written_down(task):
    """The object in the docstring of tmrjax.records.schema, without its remarks, is a record with every key there
    is."""
    text = record_schema.__doc__.split("::\n\n", 1)[1].split("\n\n", 1)[0]
    columns = [re.split(" {2,}|(?<=,) (?=[a-z])", line.strip(), maxsplit=1)[0] for line in text.splitlines()]
    json_lines = [column for column in columns if column.startswith(('{"', '"'))]
    value = parse_json("\n".join(json_lines).encode(), "docstring")
    labels = {"ner": ("tags",), "re": ("head", "tail", "relation")}
    known = {*record_schema._SHARED_KEYS, record_schema._GROUNDING, record_schema._SIDES, *labels["ner"], *labels["re"]}
    assert set(value) == known
    assert set(value["generated"]) == set(record_schema._GENERATED_KEYS)
    own = {key: value[key] for key in value if key not in labels["re" if task == "ner" else "ner"]}
    info = DatasetInfo("example", task, ("PER",) if task == "ner" else ("None", value["relation"]))
    record = record_schema.record_from_json(own, info, where="docstring")
    assert record_schema.record_to_json(record, task) == own


def test_the_released_formulas_name_the_sizes_of_the_code():
    assert f"(max_seq, {release.EXTENDED_SIZE})" in release.__doc__
    assert str(release.COMBINED_SIZE) in release.__doc__
    tags = re.sub(r"\s+", " ", release.__doc__)
    assert "PAD 0, O 1" in tags
    assert np.all([label in tags for label in ("MISC", "PER", "ORG", "LOC", "X 10", "[CLS] 11", "[SEP] 12")])


def test_the_map_of_the_house_names_every_module():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    modules = [path for path in PYTHON if name(path).split("/")[0] in ("tmrjax", "data_prep", "experiments")]
    modules = [path for path in modules if path.stem != "__init__" and "configs" not in path.parts]
    assert len(modules) > 120
    assert [name(path) for path in modules if not re.search(rf"`(?:\w+/)*{path.name}`", page)] == []


def test_the_example_of_a_data_set_runs(tmp_path, monkeypatch):
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    blocks = re.findall(r" *```python\n(.*?)```", page, re.DOTALL)
    code = textwrap.dedent(next(block for block in blocks if "write_dataset" in block))
    monkeypatch.chdir(tmp_path)
    picture = tmp_path / "data/mine/images/1.jpg"
    picture.parent.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(picture)
    exec(compile(code, "CONTRIBUTING.md", "exec"), {})
    dataset = read_dataset("data/mine")
    first = dataset.splits["train"][0]
    assert (first.head, first.tail, first.relation) == ((0, 1), (3, 4), "lives_in") and len(dataset.splits) == 3


def test_every_config_and_key_that_is_named_is_there():
    keys, names = set(), set()
    for module in (mde, mner, mre):
        task = {mner: "ner", mre: "re"}.get(module)
        methods = [name for name, tasks in known_methods().items() if task in tasks] or [None]
        for config_name, method in ((name, method) for name in module.NAMES for method in methods):
            config = module.get_config(config_name, method) if method else module.get_config(config_name)
            keys |= {
                *config.keys(),
                *(f"{group}.{key}" for group in config for key in getattr(config[group], "keys", list)()),
            }
            names.add(f"{module.__name__.rsplit('.', 1)[1]}.py:{config_name}")
    found = [(where, match.group(1)) for where, match, _ in lines_with(r"--config\.(\w+(?:\.\w+)?)\b", FILES)]
    assert len(found) > 20
    assert [f"{where}: {key}" for where, key in found if key not in keys and not where.startswith("tests/")] == []
    called = [(where, match.group(1)) for where, match, _ in lines_with(r"configs/(m\w+\.py:\w+)", FILES)]
    assert len(called) > 10
    assert [
        f"{where}: {config}" for where, config in called if config not in names and not where.startswith("tests/")
    ] == []


def test_every_command_is_one_of_the_wheel_and_every_folder_and_file_of_it_is_packed():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    given = settings["project"]["scripts"]
    commands = [path for package in ("experiments", "data_prep") for path in (ROOT / package).glob("*.py")]
    starts = [path for path in commands if 'if __name__ == "__main__":' in path.read_text()]
    assert len(starts) > 25
    assert given == {
        f"tmrjax-{path.stem.replace('_', '-')}": f"{path.parent.name}.{path.stem}:"
        + ("cli" if path.parent.name == "experiments" else "main")
        for path in starts
    }
    for path in starts:
        functions = {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}
        assert given[f"tmrjax-{path.stem.replace('_', '-')}"].partition(":")[2] in functions
    packed = settings["tool"]["setuptools"]["package-data"]
    for package in ("tmrjax", "experiments", "data_prep"):
        root = ROOT / package
        assert all((path.parent / "__init__.py").exists() for path in root.rglob("*.py")), package
        others = {path for path in root.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc", ".md")}
        assert others == {path for pattern in packed[package] for path in root.glob(pattern)}


def test_the_diagram_is_what_its_script_draws_and_names_files_that_are_there():
    script = runpy.run_path(str(ROOT / "docs" / "draw_method.py"))
    assert script["draw"]() == (ROOT / "docs" / "method.svg").read_text(encoding="utf-8")
    assert len(script["files"]()) > 10
    assert all((ROOT / file).is_file() for file in script["files"]())
    assert set(re.findall(r"docs/\w+\.svg", (ROOT / "README.md").read_text())) == {"docs/method.svg", "docs/post.svg"}
