"""The report: one self-contained page, claims first, everything from users escaped."""

import gc
import hashlib
import io
import json
import re
from html.parser import HTMLParser

import matplotlib as mpl
import pytest
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from normscope.errors import ResultError
from normscope.html.page import Page, Paragraph, Section, as_svg, render
from normscope.html.plain_powers import as_plain, plain_powers
from normscope.paper.exhibit import Setting, exhibits
from normscope.paper.manifest import notes_of, write_manifest
from normscope.paper.measurement import reproduce
from normscope.paper.reproduction import measured_on, report_reproduction
from normscope.results import save
from normscope.statistics.judgement import judge

VOID = {"meta", "br", "img", "link", "input", "hr"}


class Balanced(HTMLParser):
    """Fails on a tag that is closed out of order; collects ids."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_startendtag(self, tag, attrs):
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def parsed(html: str) -> Balanced:
    parser = Balanced()
    parser.feed(html)
    parser.close()
    return parser


@pytest.fixture
def picture() -> Figure:
    figure = Figure()
    figure.subplots().plot([1, 2, 3])
    return figure


def page(title: str = "title", **section: object) -> str:
    claims = [judge("it <grows> & grows", "Figure <1>", [3.0, 3.1, 3.2], above=1)]
    content: dict = {"anchor": "one", "title": "One", "claims": claims, **section}
    return render(Page(title=title, question="why?", lead=["because"], sections=[Section(**content)]))


def test_the_head_says_what_those_exhibits_were_measured_on_that_train_nothing():
    """Those that train come first, and have a network of their own."""
    config = {"data": {"name": "cifar10", "image_shape": [3, 32, 32]}, "seeds": [0], "batch_size": 128}
    trained, probed = (
        xr.Dataset(attrs={"config": json.dumps({**config, "net": net})}) for net in ("resnet20", "plain8")
    )
    figure1, figure5 = exhibits()["figure1"], exhibits()["figure5"]
    assert measured_on([(figure1, trained), (figure5, probed)]) is probed
    assert measured_on([(figure1, trained)]) is trained


@pytest.mark.parametrize("layout", [None, "constrained"])
def test_pictures_are_what_savefig_writes(layout):
    """Axes of log scale, text of several sizes, an image."""

    def drawn() -> Figure:
        figure = Figure(layout=layout)
        left, right = figure.subplots(1, 2)
        left.loglog([1e-3, 1, 1e4], [1, 1e5, 1e-5], label="10³")
        left.set_xlabel("step size α", fontsize=14)
        left.legend()
        right.imshow([[1, 2], [3, 4]])
        return figure

    buffer = io.StringIO()
    expected = drawn()
    plain_powers(expected)
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "p"}):
        expected.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    expected, ours = buffer.getvalue(), as_svg(drawn(), "p")
    shapes = re.compile(r' (?:d|transform|x|y|points|xlink:href)="([^"]+)"')

    def seen(svg: str) -> list[str]:
        return [shape for shape in shapes.findall(svg) if not shape.startswith("#")]

    assert seen(ours) == seen(expected)
    assert len(seen(ours)) > 50


def test_a_name_with_dollar_signs_begins_no_mathematics():
    figure = Figure()
    figure.subplots().set_title("$\\frac$ and $$")
    assert 'aria-label="$\\frac$ and $$"' in as_svg(figure, "p")


def test_text_of_users_is_escaped():
    attack = "<script>alert(1)</script>"
    html = page(attack, paragraphs=[Paragraph(attack, attack)], setup=[(attack, attack)], caption=attack)
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "it &lt;grows&gt; &amp; grows" in html


def test_page_is_balanced_and_needs_no_network(picture):
    html = page(pictures=[as_svg(picture, "a"), as_svg(picture, "b")])
    parser = parsed(html)
    assert parser.open == []
    assert not re.search(r"""(src|href)=["'](?!#)""", html), "nothing is fetched"
    assert "@import" not in html
    assert "url(http" not in html


def test_two_pictures_share_no_id(picture):
    parser = parsed(page(pictures=[as_svg(picture, "a"), as_svg(picture, "b")]))
    assert len(parser.ids) == len(set(parser.ids))


def test_every_reference_inside_a_picture_has_its_target(picture):
    svg = as_svg(picture, "a")
    targets = set(re.findall(r'href="#([^"]+)"', svg)) | set(re.findall(r"url\(#([^)]+)\)", svg))
    assert targets
    assert targets <= set(re.findall(r'id="([^"]+)"', svg))


def test_a_picture_scales_with_the_page(picture):
    opening = as_svg(picture, "a").split(">", 1)[0]
    assert "viewBox" in opening
    assert " width=" not in opening
    assert " height=" not in opening
    inches = picture.get_size_inches()[0]
    assert f"--width: {72 * inches:g}px" in opening, "a phone shows it no smaller than this, and scrolls"


@pytest.mark.parametrize("number", ["5e-4", "1.36e+04"])
def test_no_line_breaks_inside_a_number(number):
    html = page(paragraphs=[Paragraph("What we saw", f"at α = {number} & on")])
    assert f'at α = <span class="n">{number}</span> &amp; on' in html
    assert 'class="n"' not in page(paragraphs=[Paragraph("", "one-eyed, 3e5488f510, 1-2")]), (
        "nothing else is kept together"
    )


def test_the_last_cell_of_a_short_row_goes_on_to_the_end():
    html = page(claims=[], table=[("", "a", "b", "c"), ("full", "1", "2", "3"), ("short", "refused: why")])
    assert parsed(html).open == []
    assert '<td data-label="c">3</td>' in html
    assert '<td class="long" colspan="3">refused: why</td>' in html
    assert html.count("colspan") == 1


def test_claims_come_first():
    html = page(paragraphs=[Paragraph("What we saw", "much")])
    assert html.index('id="claims"') < html.index('id="one"')
    assert html.index("1 reproduced") < html.index('id="one"')


def test_a_reproduction_reads_only_its_folder(tmp_path):
    from normscope.data import load_data

    reproduce(["figure5"], Setting(load_data("digits"), net="resnet8"), tmp_path)
    path, claims = report_reproduction(tmp_path)
    html = path.read_text()
    exhibit = exhibits()["figure5"]
    assert parsed(html).open == []
    assert exhibit.title in html
    assert "resnet8 on digits (1 × 8 × 8 pixels)" in html
    assert "cb197b5c06b3" in html, "the data's fingerprint"
    for claim in claims:
        assert claim.verdict in html


def test_the_manifest_lists_no_parts_of_what_is_not_finished(tmp_path):
    for name in ("figure5.nc", "unfinished/figure3-none-seed0.nc", "training/unfinished/one.nc"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"numbers")
    manifest = json.loads(write_manifest(tmp_path, ["normscope", "reproduce"]).read_text())
    assert list(manifest["files"]) == ["figure5.nc", "training/unfinished/one.nc"]


def test_the_manifest_has_every_result_with_its_checksum(tmp_path):
    (tmp_path / "training" / "runs").mkdir(parents=True)
    files = {"figure1.nc": b"one", "training/runs/0123.nc": b"two"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "training" / "runs" / ".4567.nc.1.part").write_bytes(b"half")
    (tmp_path / "training" / "runs" / "0123.safetensors").write_bytes(b"weights")
    manifest = json.loads(write_manifest(tmp_path, ["normscope", "reproduce", "figure1"]).read_text())
    [command] = manifest["commands"]
    assert command["command"] == "normscope reproduce figure1"
    assert {"ended", "normscope", "torch", "python", "machine", "threads", "processor"} <= set(command)
    assert manifest["files"] == {
        name: {"bytes": 3, "sha256": hashlib.sha256(content).hexdigest()} for name, content in files.items()
    }


@pytest.mark.parametrize("damaged", ["", "[]", '{"commands": ', '{"notes": ["a"], "sha256": "0"}'])
def test_a_damaged_manifest_is_refused_and_kept(tmp_path, damaged):
    (tmp_path / "manifest.json").write_text(damaged)
    with pytest.raises(ResultError, match=r"manifest.json is damaged"):
        write_manifest(tmp_path, ["normscope", "reproduce"])
    assert (tmp_path / "manifest.json").read_text() == damaged


@pytest.mark.parametrize("damaged", ["{}", '{"commands": ["a"]}'])
def test_the_manifest_keeps_each_command_once_in_the_order_of_its_last_use(tmp_path, damaged):
    (tmp_path / "manifest.json").write_text(damaged)
    for exhibit in ("figure3", "figure5", "figure3"):
        path = write_manifest(tmp_path, ["normscope", "reproduce", exhibit])
    commands = [then["command"] for then in json.loads(path.read_text())["commands"]]
    assert commands == ["normscope reproduce figure5", "normscope reproduce figure3"]
    for note in ("A copy as JPEG.", "", "A copy as JPEG.", "On <battery>."):
        write_manifest(tmp_path, ["normscope", "reproduce", "figure3"], note)
    assert notes_of(tmp_path) == ["A copy as JPEG.", "On <battery>."]


def test_a_file_of_something_else_is_named(tmp_path):
    save(xr.Dataset({"a": 1}), tmp_path / "figure3.nc")
    with pytest.raises(ResultError, match=r"figure3.nc is no result of `normscope reproduce`: move it"):
        report_reproduction(tmp_path)


@pytest.mark.parametrize("collecting", [True, False])
def test_garbage_is_collected_again_after_a_report(tmp_path, collecting):
    was = gc.isenabled()
    try:
        (gc.enable if collecting else gc.disable)()
        with pytest.raises(ResultError, match="no results"):
            report_reproduction(tmp_path)
        assert gc.isenabled() == collecting
    finally:
        (gc.enable if was else gc.disable)()


@pytest.mark.parametrize("limits", [(1e-3, 1e4), (0.02, 0.7), (2, 300), (1e-9, 1e12)])
def test_plain_powers_label_the_same_ticks_with_the_same_numbers(limits):
    def labels(of: Axes) -> list[str]:
        of.figure.draw_without_rendering()
        return [label.get_text() for label in [*of.get_xticklabels(), *of.get_xticklabels(minor=True)]]

    def number(label: str) -> float | None:
        """What either way of writing says."""
        raised = str.maketrans("⁻⁰¹²³⁴⁵⁶⁷⁸⁹−", "-0123456789-")
        plain = re.sub(r"([⁻⁰¹²³⁴⁵⁶⁷⁸⁹]+)", lambda power: f"^{{{power[1].translate(raised)}}}", label)
        plain = plain.replace(r"$\mathdefault{", "").replace("}$", "").replace(r"\times", "×")
        found = re.fullmatch(r"(?:([\d.]+)×)?10\^\{(-?\d+)\}", plain)
        return float(found[1] or 1) * 10.0 ** int(found[2]) if found else float(plain) if plain else None

    ax = Figure().subplots()
    ax.set(xscale="log", xlim=limits)
    mathematics = labels(ax)
    plain_powers(ax.figure)  # pyright: ignore[reportArgumentType]
    assert any("$" in label for label in mathematics)
    assert not any("$" in label for label in labels(ax))
    assert list(map(number, labels(ax))) == list(map(number, mathematics))


def test_plain_powers_leave_other_labels_alone():
    ax = Figure().subplots()
    ax.set(xlim=(-1, 1), yscale="symlog", ylim=(-1e4, 1e4))
    before = ax.xaxis.get_major_formatter()
    plain_powers(ax.figure)  # pyright: ignore[reportArgumentType]
    ax.figure.draw_without_rendering()  # pyright: ignore
    assert ax.xaxis.get_major_formatter() is before
    assert {"−10⁴", "0", "10⁴"} <= {label.get_text() for label in ax.get_yticklabels()}
    assert as_plain("learning rate 0.1") == "learning rate 0.1"
