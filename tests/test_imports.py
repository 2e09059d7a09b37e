"""Imports run one way: a lower room never imports a higher one, and each package keeps to what it may know."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# From the ground up. A module belongs to the longest name that begins its own.
ROOMS = (
    "tmrjax.files",
    "tmrjax.compilation",
    "tmrjax.crf_arguments",
    "tmrjax.crf_parallel",
    "tmrjax.crf_fast",
    "tmrjax.crf",
    "tmrjax.attention",
    "tmrjax.contrastive",
    "tmrjax.text",
    "tmrjax.records",
    "tmrjax.pictures",
    "tmrjax.encoders",
    "tmrjax.fusion",
    "tmrjax.heads",
    "tmrjax.inputs",
    "tmrjax.methods",
    "tmrjax.models",
    "tmrjax.training",
    "tmrjax.tasks",
    "tmrjax.divergence",
    "tmrjax.convert",
    "tmrjax.prediction",
    "tmrjax.serving",
    "tmrjax.predict",
    "tmrjax.explain",
)
# What a package may import of the others; nothing imports a test.
MAY_IMPORT = {
    "tmrjax": {"tmrjax"},
    "experiments": {"tmrjax", "experiments"},
    "data_prep": {"tmrjax", "data_prep"},
    "benchmarks": {"tmrjax", "experiments", "data_prep", "benchmarks"},
}
# Flags, configs, PyTorch and what draws pictures have no place in the library.
NEVER_IN_TMRJAX = {"absl", "ml_collections", "torch", "diffusers", "stanza", "tensorflow_datasets", "argparse"}
# Seconds each; by far the most of what a first answer would wait for.
SLOW_TO_IMPORT = ("transformers", "grain", "orbax", "optax", "huggingface_hub", "torch", "tensorflow")


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def modules(package):
    return {module_name(path): path for path in sorted((ROOT / package).rglob("*.py"))}


def typing_only(tree):
    """Nodes below ``if TYPE_CHECKING:``, which are not imported when the program runs."""
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    return {id(inner) for block in blocks for inner in ast.walk(block)}


def imports(path, known=(), *, at_start=False):
    """(line, module) of every import; ``from package import submodule`` is one of the submodule."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if at_start else ast.walk(tree)
    skipped = typing_only(tree) if at_start else set()
    for node in nodes:
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield node.lineno, inner if inner in known else node.module


def room_of(module):
    fitting = [room for room in ROOMS if module == room or module.startswith(f"{room}.")]
    return max(fitting, key=len, default=None)


def test_every_module_has_a_room():
    homeless = [name for name in modules("tmrjax") if name != "tmrjax" and room_of(name) is None]
    assert homeless == []
    assert [room for room in ROOMS if not any(room_of(name) == room for name in modules("tmrjax"))] == []


def test_a_lower_room_never_imports_a_higher_one():
    known, wrong, seen = modules("tmrjax"), [], 0
    for name, path in known.items():
        for line, module in imports(path, known):
            if room_of(name) is None or room_of(module) is None:
                continue
            seen += 1
            if ROOMS.index(room_of(module)) > ROOMS.index(room_of(name)):
                wrong.append(f"{name}:{line} imports {module}")
    assert seen > 200
    assert wrong == []


def test_no_module_imports_itself_by_way_of_others():
    known = modules("tmrjax")
    graph = {name: {m for _, m in imports(path, known, at_start=True) if m in known} for name, path in known.items()}
    packages = {name for name, path in known.items() if path.name == "__init__.py"}
    done: set[str] = set()

    def visit(name, above):
        assert name not in above, " -> ".join([*above[above.index(name) :], name])
        if name not in done:
            for module in graph[name] - packages:
                visit(module, [*above, name])
            done.add(name)

    for name in graph:
        visit(name, [])


def test_prediction_waits_for_no_import_that_it_can_do_without():
    """What takes long to import is imported where it is used, in no module that ``tmrjax.predict`` needs to start."""
    known, slow, waiting, seen = modules("tmrjax"), set(SLOW_TO_IMPORT), ["tmrjax.predict"], set()
    found = []
    while waiting:
        name = waiting.pop()
        for line, module in imports(known[name], known, at_start=True):
            if module.split(".")[0] in slow:
                found.append(f"{name}:{line} imports {module}")
            parts = module.split(".")
            above = [".".join(parts[: size + 1]) for size in range(len(parts))]  # a package's __init__ runs too
            new = {one for one in above if one in known} - seen
            seen |= new
            waiting += new
    assert len(seen) > 40 and found == []


def test_packages_keep_to_what_they_may_know():
    wrong = []
    for package, allowed in MAY_IMPORT.items():
        for name, path in modules(package).items():
            for line, module in imports(path):
                top = module.split(".")[0]
                ours = top in MAY_IMPORT or top == "tests"
                if (ours and top not in allowed) or (package == "tmrjax" and top in NEVER_IN_TMRJAX):
                    wrong.append(f"{name}:{line} imports {module}")
    assert wrong == []


def test_the_names_that_scripts_rely_on_are_where_they_were():
    from tmrjax.attention import cross_modal_attention
    from tmrjax.contrastive import supervised_contrastive_loss
    from tmrjax.convert import (
        bert_params,
        mde_from_release,
        ner_from_release,
        re_from_release,
        resnet_params,
        vilt_params,
    )
    from tmrjax.crf import CRFParams, log_likelihood, log_normalizer, marginals, sequence_score, viterbi_decode
    from tmrjax.divergence import DivergenceEstimator
    from tmrjax.fusion import weight_grains
    from tmrjax.models import TMRForNER, TMRForRE
    from tmrjax.predict import Predictor
    from tmrjax.records import DatasetInfo, Record, read_dataset, write_dataset

    assert CRFParams._fields == ("transitions", "start_transitions", "end_transitions")
    names = [
        cross_modal_attention, supervised_contrastive_loss, bert_params, resnet_params, vilt_params, ner_from_release,
        re_from_release, mde_from_release, log_likelihood, log_normalizer, marginals, sequence_score, viterbi_decode,
        DivergenceEstimator, weight_grains, TMRForNER, TMRForRE, Predictor.load, Predictor.entities,
        Predictor.relations, DatasetInfo, Record, read_dataset, write_dataset,
    ]  # fmt: skip
    assert all(callable(name) for name in names)
    assert {"variant", "bert", "resnet"} <= set(TMRForNER.__dataclass_fields__) & set(TMRForRE.__dataclass_fields__)
