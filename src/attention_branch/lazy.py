"""Names of a package that are imported when they are first used, so that what needs no torch runs without it."""

import sys
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any


def lazy_names(package: str, modules: Mapping[str, tuple[str, ...]]) -> None:
    """Let a package offer names that stand in other modules, {module: names}, importing none of them before its use.

    Modules are relative, as in `from .module import name`; one without names is offered itself. To be called at the end
    of the package's `__init__.py`. A name may be that of its module (`evaluation.evaluate`): the package then offers
    what is in the module, as with an import in `__init__.py`, and not the module.
    """
    where = {name: module for module, names in modules.items() for name in names}
    whole = {module.rpartition(".")[2]: module for module, names in modules.items() if not names}

    class LazyPackage(ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name in whole:
                return import_module(whole[name], package)
            if name not in where:
                raise AttributeError(f"module '{package}' has no attribute '{name}'")
            value = getattr(import_module(where[name], package), name)
            self.__dict__[name] = value
            return value

        def __setattr__(self, name: str, value: Any) -> None:
            # The import system puts every module that was loaded on its package, over the name that is offered.
            if not (name in where and isinstance(value, ModuleType)):
                super().__setattr__(name, value)

        def __dir__(self) -> list[str]:
            return sorted({*super().__dir__(), *where, *whole})

    sys.modules[package].__class__ = LazyPackage
