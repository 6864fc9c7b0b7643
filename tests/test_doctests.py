"""The examples in docstrings run, with `ns`, `torch` and `nn` at hand, and every probe has one."""

import doctest
import importlib
import inspect
import pkgutil
from pathlib import Path

import pytest
import torch

import normscope as ns
import normscope.probes

SOURCE = Path(ns.__file__).parent
FILES = [file for file in sorted(SOURCE.rglob("*.py")) if ">>> " in file.read_text(encoding="utf-8")]
PROBES = [module.name for module in pkgutil.iter_modules(normscope.probes.__path__) if not module.ispkg]


def module_of(file: Path) -> str:
    return ".".join(("normscope", *file.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")


def examples_of(name: str) -> list[doctest.DocTest]:
    """All of a module; it has some, for its source has the prompt of one."""
    at_hand = {"ns": ns, "torch": torch, "nn": torch.nn}
    found = doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(name))
    tests = [test for test in found if test.examples]
    for test in tests:
        test.globs = {**test.globs, **at_hand}
    return tests


@pytest.mark.parametrize("name", [module_of(file) for file in FILES])
def test_the_examples_of_docstrings_run(name, tmp_path, monkeypatch, one_thread):
    monkeypatch.chdir(tmp_path)
    tests = examples_of(name)
    assert tests
    for test in tests:
        torch.manual_seed(0)
        said: list[str] = []
        doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(test, out=said.append)
        assert not said, f"{test.name}: {''.join(said)}"


@pytest.mark.parametrize("name", PROBES)
def test_every_probe_has_an_example(name):
    assert ">>> " in inspect.getdoc(getattr(ns, name))
