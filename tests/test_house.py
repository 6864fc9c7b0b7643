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

# Imports follow the data: a folder imports from its own height and below. Single files lie at the bottom.
HEIGHT = {"nets": 1, "data": 1, "surgery": 1, "per_example": 1, "probes": 2, "figures": 2, "train": 3, "sweep": 4}
HEIGHT |= {"exhibits": 5, "check": 5, "report": 5, "cli": 6}

# A name that is public stays: whoever adds one, or takes one away, says so here.
PUBLIC_NAMES = [
    "ImageData",
    "NormscopeError",
    "Outcome",
    "RunConfig",
    "Verdict",
    "__version__",
    "batches",
    "build_net",
    "channel_moments",
    "check",
    "diagnose",
    "gradient_cancellation",
    "gradient_histogram",
    "gradient_noise",
    "gradient_norms",
    "judge",
    "load",
    "load_data",
    "load_runs",
    "load_tree",
    "moments_along_step",
    "output_gradients",
    "plot_channel_moments",
    "plot_gradient_cancellation",
    "plot_gradient_histogram",
    "plot_gradient_noise",
    "plot_gradient_norms",
    "plot_moments_along_step",
    "plot_output_gradients",
    "plot_relative_loss",
    "plot_sharpness",
    "plot_stable_lr",
    "relative_loss",
    "report",
    "save",
    "sharpness",
    "stable_lr",
    "sweep",
    "train",
    "untouched",
    "with_init",
    "with_norm",
]

# What draws and what judges reads Datasets only: all they may share with the rest.
READS_DATASETS_ONLY = {"errors", "results", "outcome", "verdict", "version"}


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text(encoding="utf-8"))


def modules_of(folder: str) -> list[str]:
    return sorted(file.stem for file in (SOURCE / folder).glob("*.py") if not file.stem.startswith("_"))


def part_of(file: Path) -> str:
    """The folder or single file directly under normscope that a file belongs to."""
    return file.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports_of(file: Path) -> Iterator[str]:
    """Every module a file imports, anywhere in it; `from a import b` counts as a.b, for b may be a module."""
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.relative_to(ROOT)}:{node.lineno}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports_of(file: Path) -> set[str]:
    """The parts of normscope that a file imports."""
    return {name.split(".")[1] for name in imports_of(file) if name.startswith("normscope.")}


def public_functions(file: Path) -> dict[str, ast.FunctionDef]:
    return {n.name: n for n in tree(file).body if isinstance(n, ast.FunctionDef) and not n.name.startswith("_")}


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(SOURCE)))
def test_imports_follow_the_data(file: Path) -> None:
    part = part_of(file)
    assert part in HEIGHT or not (SOURCE / part).is_dir(), f"give the folder {part} its place in HEIGHT"
    above = {name for name in own_imports_of(file) if HEIGHT.get(name, 0) > HEIGHT.get(part, 0)}
    assert part == "__init__" or not above, f"imports from above itself: {sorted(above)}"


@pytest.mark.parametrize("part", ["figures", "verdict"])
def test_what_draws_or_judges_reads_datasets_only(part: str) -> None:
    for file in FILES:
        if part_of(file) == part:
            assert own_imports_of(file) <= READS_DATASETS_ONLY | {part}, file.name
            assert "torch" not in {name.split(".")[0] for name in imports_of(file)}, file.name


def test_figures_verdicts_results_and_commands_load_without_torch() -> None:
    names = [
        "results",
        "verdict",
        "errors",
        "outcome",
        *(f"figures.{name}" for name in modules_of("figures")),
    ]
    imports = "".join(f"import normscope.{name}\n" for name in names)
    code = f"import sys\nimport normscope\n{imports}assert 'torch' not in sys.modules\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", modules_of("probes"))
def test_a_probe_file_holds_the_probe_of_its_name(name: str) -> None:
    probe = public_functions(SOURCE / "probes" / f"{name}.py")[name]
    assert [argument.arg for argument in probe.args.args][:1] == ["model"]
    assert "loss_fn" in [argument.arg for argument in probe.args.kwonlyargs]
    assert probe.returns is not None and ast.unparse(probe.returns).endswith("Dataset")


@pytest.mark.parametrize("name", [name for name in modules_of("figures") if name != "style"])
def test_a_figure_file_holds_the_plot_of_its_name(name: str) -> None:
    plot = public_functions(SOURCE / "figures" / f"{name}.py")[f"plot_{name}"]
    assert "ax" in [argument.arg for argument in plot.args.kwonlyargs]
    assert plot.returns is not None and ast.unparse(plot.returns).endswith("Axes")


def test_every_exhibit_is_found_under_the_name_of_its_file() -> None:
    from normscope.exhibits.exhibit import exhibits

    files = [name for name in modules_of("exhibits") if "EXHIBIT" in names_assigned(SOURCE / f"exhibits/{name}.py")]
    assert files and sorted(exhibits()) == files
    places = [exhibit.place for exhibit in exhibits().values()]
    assert len(set(places)) == len(places), "two exhibits in one place of the report"


def names_assigned(file: Path) -> set[str]:
    targets = [t for node in tree(file).body if isinstance(node, ast.Assign) for t in node.targets]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def test_the_published_numbers_are_plain_json() -> None:
    assert json.loads((SOURCE / "exhibits" / "published.json").read_text(encoding="utf-8"))


def test_public_names_are_the_pinned_ones() -> None:
    assert normscope.__all__ == PUBLIC_NAMES


def test_public_names_are_listed_once_and_there() -> None:
    """The lazy table, `__all__` and what type checkers see agree, and every name is where the table says."""
    checked = [node for node in tree(SOURCE / "__init__.py").body if isinstance(node, ast.If)]
    seen_by_type_checkers = {
        alias.name: node.module
        for node in ast.walk(checked[0])
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen_by_type_checkers == {name: f"normscope.{home}" for name, home in normscope._HOME.items()}
    assert normscope.__all__ == sorted({"__version__", *normscope._HOME})
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
