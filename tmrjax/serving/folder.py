"""A folder that serves a model without this package: programs, weights, preprocessing, and a command that runs them.

    serving.json           task, labels, tags, buckets, settings of text and pictures, the inputs with their
                           vocabularies, names, shapes and dtypes of what the programs read and
                           give; SHA-256 of all other files
    model_48.stablehlo     one program a bucket (:mod:`tmrjax.serving.programs`), for CPU and CUDA
    decode.stablehlo, probability.stablehlo    the CRF with an open length (NER)
    model.safetensors      the weights, an argument of the programs
    tokenizer.json         where the method reads word pieces
    run.py, preprocessing/ the command, and the modules of this package that it needs, copied under another name

``preprocessing/`` is this package's own code, not a second version of it: the modules that
:mod:`tmrjax.serving.reader` and the method's inputs import, found by their import statements, with the package's name
changed. No method, encoder or layer is among them (:data:`LEFT_OUT`).
"""

from __future__ import annotations

import ast
import dataclasses
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
from safetensors.flax import save as safetensors_bytes

from tmrjax import __version__
from tmrjax.files import sha256, write_atomic
from tmrjax.inputs.vocabulary import Vocabulary
from tmrjax.prediction.folder import flat
from tmrjax.serving.programs import PLATFORMS, export_programs
from tmrjax.serving.reader import FORMAT, MANIFEST, TOKENIZER, WEIGHTS, check_packages
from tmrjax.text.tokenizers import tokenizer_to_json

COPIED = "preprocessing"  # the name of the package's copy
LEFT_OUT = ("methods", "encoders", "heads", "tasks", "training", "models", "fusion", "attention", "crf", "predict")
"""Modules that a folder never holds: the model itself."""
_PACKAGE = re.compile(r"\btmrjax(?=[. ])")


def write_serving(folder: Path, predictor: Any, command: str, platforms: tuple[str, ...] = PLATFORMS) -> dict[str, int]:
    """Write a predictor's model; returns the size of every file in bytes. The manifest comes last.

    Args:
        folder: new, or written by this function before.
        predictor: a :class:`tmrjax.predict.Predictor`.
        command: the source of run.py, which imports the reader.
        platforms: that the programs are lowered for.

    Raises:
        ValueError: flatbuffers is not installed; a folder that holds something else; an input of a method from outside,
            which has no place in the copy; BERTweet's tokenizer, whose emoji and URLs need code of transformers.
    """
    check_packages()
    system = predictor.system
    if folder.is_dir() and not (folder / MANIFEST).is_file() and any(folder.iterdir()):
        raise ValueError(f"{folder}: holds other files; name a new folder, or one that was exported before")
    modules = [type(one).__module__ for one in system.fitted]
    outside = [name for name in modules if not name.startswith("tmrjax.")]
    if outside:
        raise ValueError(
            f"the input of {outside[0]} is not of tmrjax, so it cannot be copied into the folder: export the model in "
            "the default format"
        )
    contents = copied_modules(["tmrjax.serving.reader", *modules])
    contents["run.py"] = renamed(command).encode()
    special = None
    if system.tokenizer is not None:
        tokenizer = tokenizer_to_json(system.tokenizer)
        if "merges" in tokenizer:
            raise ValueError("BERTweet's tokenizer needs code of transformers: export the model in the default format")
        contents[TOKENIZER], special = tokenizer["tokenizer"].encode(), tokenizer["special_tokens"]
    weights = flat(jax.device_get(predictor.variables))
    contents[WEIGHTS] = safetensors_bytes(weights)
    programs = {}
    for name, program in export_programs(system, weights, platforms):
        contents[f"{name}.stablehlo"] = bytes(program.serialize())
        programs[name] = _described_program(program)
    manifest = {
        "serving_format": FORMAT, "version": __version__, "jax": jax.__version__, "platforms": list(platforms),
        "task": system.task, "labels": list(system.labels), "tags": list(getattr(system, "tags", ())),
        "buckets": list(system.buckets), "temperature": predictor.meta.get("temperature"), "joiner": predictor.joiner,
        "text": dataclasses.asdict(system.text), "pictures": dataclasses.asdict(system.pictures),
        "special_tokens": special, "inputs": [described_input(one) for one in system.fitted],
        "programs": programs,
        "files": {name: sha256(content) for name, content in sorted(contents.items())},
    }  # fmt: skip
    contents[MANIFEST] = (json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()
    (folder / MANIFEST).unlink(missing_ok=True)  # a folder that is half written has none
    for name, content in contents.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / name, content)
    return {name: len(content) for name, content in contents.items()}


def described_input(one: Any) -> dict[str, Any]:
    """An input as JSON: module and class, its options, and what it learned of the training text."""
    options = {field.name: getattr(one, field.name) for field in dataclasses.fields(one)}
    return {
        "module": type(one).__module__.removeprefix("tmrjax."),
        "class": type(one).__name__,
        "options": {name: value for name, value in options.items() if not isinstance(value, Vocabulary)},
        "fitted": one.to_meta(),
    }


def copied_modules(names: Iterable[str]) -> dict[str, bytes]:
    """The source of these modules of the package and of all that they import of it, by their files in the folder.

    Raises ValueError where they import a part of the model (:data:`LEFT_OUT`).
    """
    root = Path(__file__).resolve().parent.parent
    waiting, found = list(names), {}
    while waiting:
        name = waiting.pop()
        path = root.joinpath(*name.split(".")[1:])
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        relative = path.relative_to(root)
        key = f"{COPIED}/{relative.as_posix()}"
        if key in found or not path.is_file():  # a name inside of a module
            continue
        if relative.parts[0].removesuffix(".py") in LEFT_OUT:
            raise ValueError(f"{name} is a part of the model, which an exported folder must not need")
        source = path.read_text(encoding="utf-8")
        found[key] = renamed(source).encode()
        parts = name.split(".")
        waiting += [".".join(parts[:end]) for end in range(1, len(parts))]  # the packages around it
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                waiting += [alias.name for alias in node.names if alias.name.partition(".")[0] == "tmrjax"]
            elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "tmrjax":
                waiting += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return found


def renamed(source: str) -> str:
    """Source that imports the copy instead of the package."""
    return _PACKAGE.sub(COPIED, source)


def _described_program(program: Any) -> dict[str, Any]:
    """Names, shapes and dtypes of what a program reads and gives; the weights stand in their own file."""
    arguments, _ = jax.tree_util.tree_unflatten(program.in_tree, program.in_avals)
    result = jax.tree_util.tree_unflatten(program.out_tree, program.out_avals)
    if isinstance(arguments[0], Mapping):  # a model's weights and batch
        return {"batch": _shapes(arguments[1]), "outputs": _shapes(result)}
    arrays, chain = arguments[:-1], arguments[-1]
    names = ("emissions", "mask", "allowed")
    return {"arguments": _shapes(dict(zip(names, arrays, strict=False))), "crf": _shapes(chain),
            "outputs": _shapes({"result": result})}  # fmt: skip


def _shapes(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Shapes and dtypes by name; an open axis is a letter."""
    return {
        name: {
            "shape": [size if isinstance(size, int) else str(size) for size in value.shape],
            "dtype": str(value.dtype),
        }
        for name, value in arrays.items()
    }
