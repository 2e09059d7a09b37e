"""Methods of multimodal extraction: one file, one paper. A method is found by its module's name."""

from __future__ import annotations

import importlib
import pkgutil

from tmrjax.methods.base import Method
from tmrjax.methods.outside import load_outside

_NO_METHODS = ("base", "outside", "parts")


def _names() -> list[str]:
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if module.name not in _NO_METHODS)


def known_methods() -> dict[str, tuple[str, ...]]:
    """The names of all methods of the package, each with the tasks that it has; imports all of them."""
    return {name: tuple(kind.task for kind in _classes(name)) for name in _names()}


def _classes(name: str) -> tuple[type[Method], ...]:
    return importlib.import_module(f"{__name__}.{name}").METHODS


def find_method(name: str, task: str) -> type[Method]:
    """The class of a method for a task, "ner" or "re".

    Args:
        name: a module of this package ("tmr"), or "module:Class" of a module that Python finds.
        task: what it is to do.

    Raises:
        ValueError: there is no such method, or not for this task; the message lists those that there are.
    """
    if ":" in name:
        kind = load_outside(name)
        if kind.task != task:
            raise ValueError(f"the method {name!r} is one for {kind.task!r}, but this experiment is {task!r}")
        return kind
    if name not in _names():
        raise ValueError(
            f"there is no method {name!r}; expected one of {', '.join(_names())}, or module:Class of a module of your "
            "own"
        )
    fitting = [kind for kind in _classes(name) if kind.task == task]
    if not fitting:
        others = [other for other, tasks in known_methods().items() if task in tasks]
        raise ValueError(f"the method {name!r} has no form for {task!r}; those that have are {', '.join(others)}")
    return fitting[0]


def name_of(method: Method | type[Method]) -> str:
    """The name that :func:`find_method` finds a method by."""
    kind = method if isinstance(method, type) else type(method)
    if kind.__module__.startswith(f"{__name__}."):
        return kind.__module__.removeprefix(f"{__name__}.")
    return f"{kind.__module__}:{kind.__qualname__}"
