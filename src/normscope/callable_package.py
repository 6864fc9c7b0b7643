"""A folder and a public function of one name: `normscope.check` holds the parts of `normscope.check(...)`.

Python binds a folder's name in its parent as soon as anything in it is imported, so that the folder itself has to be
what is called.
"""

import importlib
import sys
from types import ModuleType
from typing import Any


def make_callable(package: str, home: str) -> None:
    """Let the package be called as the function of its own last name that lives in the module `home`."""
    name = package.rpartition(".")[2]

    class CallablePackage(ModuleType):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return getattr(importlib.import_module(home), name)(*args, **kwargs)

    sys.modules[package].__class__ = CallablePackage
