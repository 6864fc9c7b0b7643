"""What a TARGET names: `package.module:name` or `file.py:name`."""

import ast
import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from normscope.errors import InvalidConfig, raised


def load_target(target: str, what: str = "target") -> Any:
    """The object that a target names; the folder of the file, or the current one, is on the path while it loads.

    Args:
        what: how the error calls it: "target", "--data", "--loss".

    Raises:
        InvalidConfig: one line: no such file or name, or what the import raised.
    """
    place, name = _parts(target, what)
    module = _file(Path(place), what) if place.endswith(".py") else _module(place, what)
    value = module
    for part in name.split("."):
        if not hasattr(value, part):
            names = [n for n in vars(module) if not n.startswith("_")]
            raise _no_such_name(what, place, part, names, _own(module))
        value = getattr(value, part)
    return value


def refuse_misspelled(target: str, options: Mapping[str, str | None]) -> None:
    """`refuse_missing` for a command's target, and for those of its options, by name, that are given one."""
    refuse_missing(target)
    for option, text in options.items():
        if text is not None and is_target(text):
            refuse_missing(text, option)


def refuse_missing(target: str, what: str = "target") -> None:
    """Say what is certainly wrong with a target from its text and its file alone, before anything slow is imported.

    Raises:
        InvalidConfig: as `load_target` would: no such file or module, no Python, or a name that the file never spells.
    """
    place, name = _parts(target, what)
    if not place.endswith(".py"):
        top = place.partition(".")[0]
        with _on_path(Path.cwd()):
            missing = bool(top) and top not in sys.modules and importlib.util.find_spec(top) is None
        if missing:
            raise InvalidConfig(f"{what}: {place} does not import: ModuleNotFoundError: No module named {top!r}")
        return
    path = Path(place)
    if not path.is_file():
        raise InvalidConfig(f"{what}: there is no file {path}")
    try:
        source = _read_source(path)
        tree = ast.parse(source, str(path))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise InvalidConfig(f"{what}: {place} does not import: {raised(error)}") from error
    first = name.partition(".")[0]
    # A name may also come from elsewhere: then only the import tells.
    elsewhere = any(word in source for word in (b"import *", b"globals", b"exec", b"setattr", b"__getattr__", b"vars("))
    if first.encode() not in source and not elsewhere:
        names = [*_assigned(tree)]
        raise _no_such_name(what, place, first, names, [n for n in names if not n.startswith("_")][:8])


MOST_SOURCE = 2**24
"""Of a file of Python, in bytes."""


def _read_source(path: Path) -> bytes:
    """A file of Python; ValueError for one too large to be any."""
    if (size := path.stat().st_size) > MOST_SOURCE:
        raise ValueError(f"it is of {size / 2**20:.0f} MiB, which no Python is")
    return path.read_bytes()


def is_target(text: str) -> bool:
    """Whether a text is meant as a target and not as a name of our own."""
    place, colon, _ = text.rpartition(":")
    return bool(colon) and place != "random" and "=" not in place  # adamw,betas=0.9:0.95 is a name with options


def _parts(target: str, what: str) -> tuple[str, str]:
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name:
        raise InvalidConfig(f"{what} {target!r} names nothing: give package.module:name or file.py:name")
    return place, name


def _no_such_name(what: str, place: str, name: str, names: list[str], own: list[str]) -> InvalidConfig:
    near = get_close_matches(name, names, n=1)
    hint = f": did you mean {near[0]!r}?" if near else f"; it has {', '.join(own) or 'no names'}"
    return InvalidConfig(f"{what}: {place} has no {name!r}{hint}")


def _assigned(tree: ast.Module) -> Iterator[str]:
    """The names that a module's own statements define."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from (part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name))


def _file(path: Path, what: str) -> Any:
    if not path.is_file():
        raise InvalidConfig(f"{what}: there is no file {path}")
    # Under a name that no installed module has, so that a file called random.py takes nobody's place. Several targets
    # in one file are parts of one module.
    name = f"normscope_target_{path.stem}"
    known = sys.modules.get(name)
    if known is not None and known.__file__ == str(path.resolve()):
        return known
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise InvalidConfig(f"{what}: {path} cannot be read as Python")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    loader = spec.loader
    with _on_path(path.resolve().parent):
        try:
            _readable(lambda: loader.exec_module(module), str(path), what)
        except InvalidConfig:
            del sys.modules[name]
            raise
    return module


def _module(name: str, what: str) -> Any:
    with _on_path(Path.cwd()):
        return _readable(lambda: importlib.import_module(name), name, what)


def _readable(load: Callable[[], Any], place: str, what: str) -> Any:
    try:
        return load()
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # somebody's module may raise anything, or exit
        raise InvalidConfig(f"{what}: {place} does not import: {raised(error)}") from error


@contextlib.contextmanager
def _on_path(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):
            sys.path.remove(str(folder))


def _own(module: Any) -> list[str]:
    """The names that a module defines itself, the first few."""
    own = [
        n
        for n, v in vars(module).items()
        if not n.startswith("_") and getattr(v, "__module__", None) == module.__name__
    ]
    return own[:8]
