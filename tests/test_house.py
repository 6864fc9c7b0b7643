"""The rules of the house that no other test would notice broken: who imports whom, what a folder holds."""

import ast
import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import normscope

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "normscope"
FILES = sorted(SOURCE.rglob("*.py"))

ROOMS = [
    "version",
    "errors",
    "statistics",
    "results",
    "runtime",
    "model",
    "nets",
    "data",
    "surgery",
    "per_example",
    "curvature",
    "descent",
    "probes",
    "rates",
    "diagnosis",
    "figures",
    "html",
    "checkup",
    "monitoring",
    "training",
    "sweeps",
    "paper",
    "integrations",
    "testing",
    "cli",
    "__main__",
]
"""From the top of the house down: a room imports only itself and rooms above it in this list."""

LOOSE = {"__init__.py", "__main__.py", "__init__.pyi", "errors.py", "version.py", "py.typed"}
"""The files that belong to no room."""

WITHOUT_TORCH = ("errors", "version", "statistics", "results", "figures", "descent.outcome", "sweeps.listing")
"""What loads no torch."""

WITHOUT_TORCH_IN_ANY_FUNCTION = ("statistics", "figures")
"""What does not even import it later."""

FIGURES_READ = {"errors", "results", "statistics", "version", "descent.outcome", "figures"}
"""What a picture may know: it draws Datasets."""


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def modules_of(folder: str) -> list[str]:
    return sorted(file.stem for file in (SOURCE / folder).glob("*.py") if not file.stem.startswith("_"))


def name_of(file: Path) -> str:
    """The dotted name of a file's module below normscope; empty for the package itself."""
    return ".".join(file.relative_to(SOURCE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


MODULES = {name_of(file): file for file in FILES}


def imports_of(file: Path, *, later: bool = True) -> Iterator[str]:
    """Every module a file imports, anywhere in it; `from a import b` counts as a.b, for b may be a module.

    Args:
        later: False for those alone that importing the file imports.
    """
    for node in ast.walk(tree(file)) if later else at_once(tree(file).body):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.relative_to(ROOT)}:{node.lineno}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def at_once(statements: list[ast.stmt]) -> Iterator[ast.AST]:
    """The statements that importing a file runs, whatever `if` or `try` they stand in."""
    for statement in statements:
        if isinstance(statement, ast.If) and ast.unparse(statement.test) == "TYPE_CHECKING":
            continue
        yield statement
        for name in ("body", "orelse", "finalbody"):
            if not isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef):
                yield from at_once(getattr(statement, name, []))


def module_of(dotted: str) -> str:
    """The module of normscope that an imported name is, or lives in: "data.load" for "normscope.data.load.DATA"."""
    name = dotted.removeprefix("normscope").removeprefix(".")
    while name not in MODULES:
        name = name.rpartition(".")[0]
    return name


def own_imports_of(file: Path, *, later: bool = True) -> set[str]:
    """The modules of normscope that a file imports."""
    found = {module_of(name) for name in imports_of(file, later=later) if name.split(".")[0] == "normscope"}
    return found - {""}


def room_of(module: str) -> str:
    return module.partition(".")[0]


@cache
def loaded_with(module: str) -> frozenset[str]:
    """All modules of normscope that importing one imports."""
    found, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        waiting.extend(own_imports_of(MODULES[name], later=False))
        if "." in name:
            waiting.append(name.rpartition(".")[0])
    return frozenset(found)


def public_functions(file: Path) -> dict[str, ast.FunctionDef]:
    return {n.name: n for n in tree(file).body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")}


def test_every_room_has_its_height_and_nothing_lies_loose() -> None:
    folders = {path.name for path in SOURCE.iterdir() if path.is_dir() and any(path.rglob("*.py"))}
    assert folders <= set(ROOMS), f"give {sorted(folders - set(ROOMS))} its place in ROOMS"
    loose = {path.name for path in SOURCE.iterdir() if path.is_file()}
    assert loose <= LOOSE, f"put {sorted(loose - LOOSE)} into a room"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_a_room_imports_only_rooms_above_it(file: Path) -> None:
    room = room_of(name_of(file))
    if not room:
        assert not own_imports_of(file), "the package itself finds its names on first use"
        return
    below = {name for name in own_imports_of(file) if ROOMS.index(room_of(name)) > ROOMS.index(room)}
    assert not below, f"imports from below itself: {sorted(below)}"


def test_no_room_bears_the_name_of_something_public() -> None:
    assert not set(ROOMS) & set(normscope.__all__), "importing the room would take the function's place"


def test_what_draws_reads_datasets_only() -> None:
    for name, file in MODULES.items():
        if room_of(name) == "figures":
            known = {one if one in FIGURES_READ else room_of(one) for one in own_imports_of(file)}
            assert known <= FIGURES_READ, name


def test_what_draws_judges_and_keeps_results_loads_without_torch() -> None:
    names = [name for name in MODULES if name in WITHOUT_TORCH or room_of(name) in WITHOUT_TORCH]
    for name in names:
        if room_of(name) in WITHOUT_TORCH_IN_ANY_FUNCTION:
            assert "torch" not in {one.split(".")[0] for one in imports_of(MODULES[name])}, name
    imports = "".join(f"import normscope.{name}\n" for name in names)
    run(f"import sys\nimport normscope\n{imports}assert 'torch' not in sys.modules\n")


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_check_loads_no_pictures_until_something_is_shown() -> None:
    """Nor scipy.stats, which takes half a second to import."""
    unwanted = "{'matplotlib', 'jinja2', 'scipy.stats'}"
    run(f"import sys\nimport normscope\nnormscope.check\nassert not {unwanted} & set(sys.modules)\n")


@pytest.mark.parametrize(
    "name", [name for name in MODULES if name.startswith(("paper.exhibits.", "cli.commands."))], ids=str
)
def test_an_exhibit_or_a_command_does_not_load_the_whole_house(name: str) -> None:
    rooms = {room_of(one) for one in loaded_with(name)}
    assert not {"checkup", "sweeps", "per_example"} <= rooms, sorted(rooms)


ANY_ORDER = """
import importlib, inspect, pickle, pkgutil, random, sys
import normscope as ns

names = [m.name for m in pkgutil.walk_packages(ns.__path__, "normscope.")]
random.Random({seed}).shuffle(names)
for name in names:
    if name.rpartition(".")[2] != "__main__" and not name.startswith("normscope.integrations."):
        importlib.import_module(name)
for name in ns.__all__:
    value = getattr(ns, name)
    if name == "__version__":
        assert isinstance(value, str)
        continue
    assert not inspect.ismodule(value), name
    assert inspect.getdoc(value), f"{{name}} has no docstring"
    if not (inspect.isclass(value) and issubclass(value, Exception)):
        inspect.signature(value)
    assert pickle.loads(pickle.dumps(value)) is value, name

from torch import nn
model = nn.Linear(2, 3)
before = model.weight.detach().clone()
with ns.untouched(model):
    nn.init.zeros_(model.weight)
assert (model.weight == before).all()
"""
"""Import every module, in an order drawn at random, and then ask for every public name."""


@pytest.mark.parametrize("seed", [0, 1])
def test_public_names_stay_what_they_are_in_whatever_order_modules_are_imported(seed: int) -> None:
    run(ANY_ORDER.format(seed=seed))


@pytest.mark.parametrize("name", modules_of("probes"))
def test_a_probe_file_holds_the_probe_of_its_name(name: str) -> None:
    probe = public_functions(SOURCE / "probes" / f"{name}.py")[name]
    assert [argument.arg for argument in probe.args.args][:1] == ["model"]
    assert "loss_fn" in [argument.arg for argument in probe.args.kwonlyargs]
    assert probe.returns is not None and ast.unparse(probe.returns).endswith("Dataset")


@pytest.mark.parametrize("name", [name for name in modules_of("figures") if name not in ("style", "networks")])
def test_a_figure_file_holds_the_plot_of_its_name(name: str) -> None:
    plot = public_functions(SOURCE / "figures" / f"{name}.py")[f"plot_{name}"]
    assert "ax" in [argument.arg for argument in plot.args.kwonlyargs]
    assert plot.returns is not None and ast.unparse(plot.returns).endswith("Axes")


def test_every_exhibit_is_found_under_the_name_of_its_file() -> None:
    from normscope.paper.exhibit import exhibits

    files = [name for name in modules_of("paper/exhibits")]
    assert files and sorted(exhibits()) == files
    assert all("EXHIBIT" in names_assigned(SOURCE / f"paper/exhibits/{name}.py") for name in files)
    places = [exhibit.place for exhibit in exhibits().values()]
    assert len(set(places)) == len(places), "two exhibits in one place of the report"


def names_assigned(file: Path) -> set[str]:
    targets = [t for node in tree(file).body if isinstance(node, ast.Assign) for t in node.targets]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def test_the_published_numbers_are_plain_json() -> None:
    assert json.loads((SOURCE / "paper" / "published.json").read_text(encoding="utf-8"))


def test_public_names_are_listed_once_and_there() -> None:
    """Each stands once in the stub, with its own name for type checkers to see; docs/api.md is compared with it."""
    listed = [
        (alias.name, alias.asname)
        for node in ast.parse((SOURCE / "__init__.pyi").read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    ]
    assert sorted(name for name, _ in listed) == normscope.__all__
    assert all(name == again for name, again in listed)
    for name in normscope.__all__:
        assert getattr(normscope, name) is not None


def test_version_has_a_single_source() -> None:
    assert importlib.metadata.version("normscope") == normscope.__version__


def test_nothing_is_unpickled_but_cifar10_by_its_own_reader() -> None:
    """A pickle runs whatever it names: only the reader that refuses every name may touch one."""
    loaders = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
    for file in FILES:
        imported = {name.split(".")[0] for name in imports_of(file)} & loaders
        assert not imported or file.name == "cifar10_pickle.py", f"{file.name} imports {imported}"
        called = {ast.unparse(node.func) for node in ast.walk(tree(file)) if isinstance(node, ast.Call)}
        assert not called & {"torch.load", "pickle.load", "pickle.loads", "np.load", "numpy.load"}, file.name


def test_files_are_named_by_the_field_and_by_nothing_vague() -> None:
    vague = re.compile(r"util|helper|manager|misc|common|stuff")
    assert not [str(file.relative_to(SOURCE)) for file in FILES if vague.search(file.stem)]


def texts_of(file: Path) -> Iterator[str]:
    """All strings of a file but its docstrings."""
    words = {id(node.value) for node in ast.walk(tree(file)) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in words:
            yield node.value


def test_the_library_names_no_option_of_the_command_line() -> None:
    told = [
        f"{name_of(file)}: {text}"
        for file in FILES
        if room_of(name_of(file)) != "cli"
        for text in texts_of(file)
        if re.search(r"[\s`]--[a-z]{3}", text) and "ray start" not in text  # Ray's own command
    ]
    assert told == []


def test_no_path_of_somebodys_machine() -> None:
    absolute = re.compile(r"[\"'\s(](/(?:home|root|Users|work|opt|mnt)/\w)")
    texts = [
        f
        for pattern in ("*.md", "docs/**/*.md", "tests/*.py", "benchmarks/**/*.py", "examples/**/*.py")
        for f in ROOT.glob(pattern)
    ]
    for file in [*FILES, *texts, ROOT / "constraints.txt", ROOT / "Makefile", ROOT / "pyproject.toml"]:
        assert not absolute.search(file.read_text(encoding="utf-8")), file.relative_to(ROOT)


def test_constraints_pin_every_requirement_for_every_python() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = (
        project["dependencies"] + project["optional-dependencies"]["dev"] + project["optional-dependencies"]["bench"]
    )
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9a-z.]*", pin) for pin in pins), "no local builds, no hosts"
    names = {normalized(pin) for pin in pins}
    assert {normalized(requirement) for requirement in wanted} <= names


def normalized(requirement: str) -> str:
    """A distribution's name as the index compares names."""
    return re.sub(r"[-_.]+", "-", re.split(r"[=<>\[;~! ]", requirement)[0]).lower()
