"""Torch modules by the name of what makes them: "package.module:factory".

Importing a module runs its code: a name is as trusted as a command.
"""

import contextlib
import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from common.errors import ModelError

_NAME = re.compile(r"([A-Za-z_][\w.]*):([A-Za-z_]\w*)")


def is_factory(name: str) -> bool:
    """Whether a name is one of a factory, and not of a file or of something else."""
    return _NAME.fullmatch(name) is not None


def build_module(name: str) -> nn.Module:
    """Import and call a factory; its module in eval mode, always with the same initial weights.

    The current folder is looked in first.

    Args:
        name: "package.module:factory", whose factory takes no arguments.

    Raises:
        ModelError: If it cannot be imported or called, or makes no module.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        raise ModelError(f"{name}: expected package.module:factory")
    with _current_folder(), torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        factory = _factory_in(_imported(name, found[1]), found[2], name)
        torch.manual_seed(0)  # again: a module is imported only once
        made = _called(name, factory)
    if not isinstance(made, nn.Module):
        raise ModelError(f"{name} makes a {type(made).__name__}: expected a torch.nn.Module")
    return made.eval()


@contextlib.contextmanager
def _current_folder() -> Iterator[None]:
    """Let imports look in the current folder first."""
    folder = str(Path.cwd())
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _imported(name: str, module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and module.startswith(error.name or module):
            raise ModelError(
                f"{name}: there is no module {error.name} in the current folder, nor is it "
                "installed"
            ) from error
        raise ModelError(f"{name}: {module} cannot be imported: {_in_words(error)}") from error


def _factory_in(module: ModuleType, factory: str, name: str) -> Callable[..., Any]:
    made = getattr(module, factory, None)
    if made is None:
        raise ModelError(f"{name}: {module.__name__} has no {factory}")
    if not callable(made):
        raise ModelError(f"{name}: {factory} is a {type(made).__name__}, and no function")
    return made  # type: ignore[no-any-return]


def _called(name: str, factory: Callable[..., Any]) -> Any:
    if isinstance(factory, nn.Module):
        return factory
    with contextlib.suppress(TypeError, ValueError):  # not every callable has a signature
        needed = [
            parameter.name
            for parameter in inspect.signature(factory).parameters.values()
            if parameter.default is parameter.empty
            and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        ]
        if needed:
            raise ModelError(
                f"{name} needs arguments ({', '.join(needed)}): name a function that needs none"
            )
    try:
        return factory()
    except (Exception, SystemExit) as error:
        raise ModelError(f"{name} fails: {_in_words(error)}") from error


def _in_words(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
