"""A method that lies in a module of the user's own, named as ``module:Class``.

A checkpoint names its method, and to restore it the module is imported. So that a foreign checkpoint cannot have any
module imported, the source is read first: it has to define a class of that name which inherits from something.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import sys
from pathlib import Path

from tmrjax.methods.base import Method


def load_outside(name: str) -> type[Method]:
    """The class ``module:Class``.

    Raises:
        ValueError: no such module on Python's path, no such class in it, or one that is no method.
    """
    module_name, _, class_name = name.partition(":")
    if not class_name.isidentifier() or not all(part.isidentifier() for part in module_name.split(".")):
        raise ValueError(f"the method {name!r} is no module:Class, such as my_module:MyMethod")
    source = source_of(name)
    classes = [node for node in ast.parse(source.read_bytes()).body if isinstance(node, ast.ClassDef)]
    if not any(node.name == class_name and node.bases for node in classes):
        raise ValueError(
            f"{source.name} defines no class {class_name} that inherits from tmrjax.methods.base.Method; it has "
            f"{', '.join(node.name for node in classes) or 'no class'}"
        )
    kind = getattr(importlib.import_module(module_name), class_name)
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        raise ValueError(f"{name} is no method: it has to inherit from tmrjax.methods.base.Method")
    if getattr(kind, "task", None) not in ("ner", "re"):
        raise ValueError(f'{name} has no task: write task = "ner" or task = "re" into the class')
    return kind


def source_of(name: str) -> Path:
    """The file of the module of ``module:Class``; nothing is imported.

    Raises:
        ValueError: there is none on Python's path.
    """
    module_name = name.partition(":")[0]
    loaded = getattr(sys.modules.get(module_name), "__file__", None)
    if loaded:
        return Path(loaded)
    *parents, last = module_name.split(".")
    for folder in sys.path:
        below = Path(folder or ".").joinpath(*parents)
        for file in (below / f"{last}.py", below / last / "__init__.py"):
            if file.is_file():
                return file
    raise ValueError(
        f"the method {name!r}: there is no module {module_name!r} in the current folder or on PYTHONPATH. Go to its "
        "folder, or set PYTHONPATH to it"
    )


def source_sha256(name: str) -> str:
    """SHA-256 of that file: a checkpoint keeps it, so that a changed method is noticed."""
    return hashlib.sha256(source_of(name).read_bytes()).hexdigest()
