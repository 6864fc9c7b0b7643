"""README and docs: every block of Python runs, every command parses, every link leads somewhere.

The blocks of a page run from top to bottom as one session, in an empty folder that holds the examples. A block below
`<!-- slow -->` takes its page to `pytest -m slow`.
"""

import re
import shlex
import shutil
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
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
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
            line = text_of(page)[: found.start()].count("\n") + 2
            code = compile("\n" * (line - 1) + found[1], str(page), "exec")
            exec(code, session)


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
