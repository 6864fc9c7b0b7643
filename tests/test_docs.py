"""README and docs: every block of Python and of TOML runs, every command parses, every link leads somewhere.

The blocks of a page run from top to bottom as one session, in an empty folder that holds the examples. A block below
`<!-- slow -->` takes its page to `pytest -m slow`, one below `<!-- needs: LIBRARY -->` runs where that is installed.
In `pytest -m slow` all commands but those with a placeholder run, as they are written.
"""

import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from importlib.util import find_spec
from pathlib import Path

import matplotlib as mpl
import pytest

import normscope
from normscope.cli.app import GLOBAL, command_line

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted(file for file in (ROOT / "docs").rglob("*.md") if not {"_build", "gallery"} & set(file.parts)),
    *sorted((ROOT / "src").rglob("README.md")),
]
PYTHON = re.compile(r"^(?:<!-- needs: (\w+) -->\n)?```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
FENCED = re.compile(r"^```(\w*)\n.*?^```", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"(?:^ {4}.*\n)+", re.MULTILINE)
TOML = re.compile(r"^```toml\n(.*?)^```", re.MULTILINE | re.DOTALL)
PLACEHOLDERS = re.compile(
    r"\b(TARGET|DATA|SPEC|DIR|FOLDER|HOST:\d+|NAME|SECONDS|last_checkpoint|cifar10)\b|--version|--help"
)
"""Of a command that is nobody's as it stands."""
COMMAND = re.compile(r"^(?: {4}|\t)?(?:\$ )?(normscope [^\n]*(?:\\\n[^\n]*)*)", re.MULTILINE)
LINK = re.compile(r"(?<!`)\[[^\]]*\]\(([^)\s]+)\)")
WORDS = 500
"""The README's."""


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def with_marks(page: Path):
    marks = [pytest.mark.slow] if "<!-- slow -->" in text_of(page) else []
    return pytest.param(page, id=name_of(page), marks=marks)


WITH_PYTHON = [with_marks(page) for page in PAGES if PYTHON.search(text_of(page))]
COMMANDS = [
    pytest.param(command, id=f"{name_of(page)}: {command[:60]}")
    for page in PAGES
    for command in dict.fromkeys(found.split("#")[0].strip() for found in COMMAND.findall(text_of(page)))
]


@pytest.mark.parametrize("page", WITH_PYTHON)
def test_every_block_of_python_runs(page, tmp_path, monkeypatch, one_thread):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for example in (ROOT / "examples").glob("*.py"):
        shutil.copy(example, tmp_path)
    session: dict = {"__name__": "__main__"}
    with mpl.rc_context({"backend": "Agg"}):
        for found in PYTHON.finditer(text_of(page)):
            if found[1] and find_spec(found[1]) is None:
                continue
            line = text_of(page)[: found.start(2)].count("\n")
            code = compile("\n" * line + found[2], str(page), "exec")
            exec(code, session)


@pytest.mark.parametrize("page", [pytest.param(page, id=name_of(page)) for page in PAGES])
def test_no_code_stands_outside_of_the_blocks_that_run(page):
    """Fences are of Python, of TOML or for Sphinx; what is merely indented is a command, an output or an equation."""
    assert {found[1] for found in FENCED.finditer(text_of(page))} <= {"python", "toml", ""}
    for found in INDENTED.finditer(FENCED.sub("", text_of(page))):
        block = textwrap.dedent(found[0])
        assert not re.search(r"^(from \w+ )?import \w|^with |^\w+ = \w+\.\w+\(", block, re.MULTILINE), block


@pytest.mark.parametrize("page", [pytest.param(p, id=name_of(p)) for p in PAGES if TOML.search(text_of(p))])
def test_every_block_of_toml_is_a_sweep(page, tmp_path):
    from normscope.sweeps.spec import configs_of

    for found in TOML.finditer(text_of(page)):
        (tmp_path / "spec.toml").write_text(found[1], encoding="utf-8")
        assert configs_of(tmp_path / "spec.toml")


@pytest.mark.slow
@pytest.mark.parametrize("command", [one for one in COMMANDS if not PLACEHOLDERS.search(one.values[0])])
def test_every_command_runs(command, tmp_path):
    """As it is written, with the `mine.py` of the page to start with, and the training of the page on watching."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    start, watch = (PYTHON.search(text_of(ROOT / "docs" / f"{name}.md")) for name in ("start", "watch"))
    (tmp_path / "mine.py").write_text(start[2], encoding="utf-8")
    if "runs/a" in command:
        subprocess.run([sys.executable, "-c", watch[2]], cwd=tmp_path, check=True, timeout=600)
    words = shlex.split(command.replace("\\\n", " "))[1:]
    once = ["--once"] if words[0] == "watch" else []  # live, it ends by Ctrl-C alone
    run = [sys.executable, "-c", "from normscope.cli import main; main()", *words, *once]
    done = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_parses(command):
    """Its name, its options and what they take; nothing is run."""
    words = [word for word in shlex.split(command.replace("\\\n", " "))[1:] if word not in GLOBAL]
    if words[0].startswith("-"):
        assert words[0] in known_options(), command
        return
    asked = command_line().commands[words[0]]
    context = asked.make_context(words[0], words[1:], resilient_parsing="TARGET" in command)
    assert not context.args, "an argument too many"


def known_options() -> set[str]:
    return {name for parameter in command_line().params for name in parameter.opts}


@pytest.mark.parametrize("page", [pytest.param(page, id=name_of(page)) for page in PAGES])
def test_every_link_to_a_file_leads_to_one(page):
    for link in LINK.findall(text_of(page)):
        path = link.split("#")[0]
        if not path or re.match(r"[a-z]+:", path) or "gallery/" in path:
            continue  # pages elsewhere are looked for by `make docs`, what the build makes by the build
        assert (page.parent / path).exists(), f"{name_of(page)} links to {link}"


def test_the_readme_is_short():
    words = [word for word in text_of(ROOT / "README.md").split() if any(map(str.isalnum, word))]
    assert len(words) <= WORDS, "marks and the bars of a table are no words"


def test_the_api_page_lists_every_public_name():
    listed = set(re.findall(r"^   (\w+)$", text_of(ROOT / "docs" / "api.md"), re.MULTILINE))
    assert listed == set(normscope.__all__) - {"__version__"}


def test_every_example_is_short_and_opens_with_a_title():
    examples = sorted((ROOT / "examples").glob("*.py"))
    assert len(examples) >= 12
    for example in examples:
        lines = text_of(example).splitlines()
        assert len(lines) <= 60, example.name
        assert lines[0].startswith('"""'), example.name
        assert example.name == "deep_cnn.py" or set(lines[2]) == {"="}, f"{example.name} opens with no title"
