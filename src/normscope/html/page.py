"""One self-contained HTML page: claims first, then a section each; no network, any text escaped."""

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.resources import files

import matplotlib as mpl
from jinja2 import Environment
from markupsafe import Markup, escape
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.text import Text

from normscope.figures.style import literal
from normscope.html.plain_powers import plain_powers
from normscope.statistics.verdict import NOT_ENOUGH, NOT_REPRODUCED, REPRODUCED, Verdict
from normscope.version import __version__

VERDICT_CLASS = {REPRODUCED: "yes", NOT_REPRODUCED: "no", NOT_ENOUGH: "open"}

SVG_DPI = 72
"""What matplotlib measures and draws an SVG at."""

POWER_OF_TEN = re.compile(r"\d[\d.]*e[-+]\d+")
"""Browsers break lines behind its hyphen."""


BACKGROUND = re.compile(r'(<g id="[\w-]*patch_\d+">\s*<path [^>]*?style="[^"]*?fill: )#ffffff')
"""The white behind a figure, its axes and its legends."""


@dataclass(frozen=True)
class Paragraph:
    """A heading of its own and its text, for example "What the paper saw"."""

    heading: str
    text: str
    code: str = ""
    """Lines of Python below it."""


@dataclass(frozen=True)
class Picture:
    """An SVG and the words below it."""

    svg: str
    caption: str = ""


@dataclass(frozen=True)
class Section:
    """One part of the page: text, pictures, the claims with their numbers, the set-up as name and value."""

    anchor: str
    title: str
    where: str = ""
    paragraphs: Sequence[Paragraph] = ()
    pictures: Sequence[Picture | str] = ()
    """Several stand beside each other where there is room."""
    caption: str = ""
    """Below them all."""
    claims: Sequence[Verdict] = ()
    table: Sequence[Sequence[str]] = ()
    """Rows of a plain table, the first its heads. The last cell of a row that is too short goes on to the end."""
    setup: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Page:
    """What the page says before its sections."""

    title: str
    question: str
    lead: Sequence[str]
    sections: Sequence[Section]
    facts: Sequence[tuple[str, str]] = field(default=())
    """Short name-and-value pairs under the answer: data, network, seeds."""
    pictures: Sequence[Picture | str] = ()
    """What proves the answer."""
    summary: Sequence[Paragraph] = ()
    """What a reader in a hurry reads, before anything else."""
    tally: Sequence[Sequence[str]] = ()
    """Claims counted: a table, the first row its heads; each claim itself stands in its section. Without it all claims
    stand together first."""
    tally_notes: Sequence[str] = ()
    """Above that table."""


def render(page: Page) -> str:
    """The page as one HTML document."""
    folder = files("normscope.html")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["whole"] = _whole_numbers
    template = environment.from_string((folder / "page.html.jinja").read_text(encoding="utf-8"))
    claims = [(section, claim) for section in page.sections for claim in section.claims]
    counts = [(word, sum(claim.verdict == word for _, claim in claims)) for word in VERDICT_CLASS]
    return template.render(
        page=page,
        claims=claims,
        counts=counts if claims else [],
        verdict_class=VERDICT_CLASS,
        style=Markup((folder / "page.css").read_text(encoding="utf-8")),
        version=__version__,
        made=datetime.now(UTC).strftime("%d %B %Y, %H:%M UTC"),
        svg=Markup,
        pictures_of=_pictures_of,
    )


def _pictures_of(part: Section | Page) -> list[Picture]:
    return [one if isinstance(one, Picture) else Picture(one) for one in part.pictures]


def _whole_numbers(text: str) -> Markup:
    """The text as HTML in which no line breaks inside a number."""
    return Markup(POWER_OF_TEN.sub(r'<span class="n">\g<0></span>', str(escape(text))))


def as_svg(figure: Figure, name: str) -> str:
    """A matplotlib figure as inline SVG that scales with the page; `name` keeps its ids apart from other pictures', and
    the style sheet knows its own width as `--width`. Its black and white are the page's ink and paper, by day and by
    night, and what it shows is said to those who hear the page."""
    buffer = io.StringIO()
    plain_powers(figure)
    for text in figure.findobj(Text):
        text.set_text(literal(text.get_text()))
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": name}):
        _write_svg(figure, buffer)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    opening, rest = svg.split(">", 1)
    width = opening.split('viewBox="0 0 ', 1)[1].split(" ", 1)[0]
    opening = re.sub(r' (?:width|height)="[^"]+"', "", opening)
    label = str(escape(described(figure))).replace("\n", " ")
    rest = BACKGROUND.sub(r"\g<1>var(--paper)", rest).replace("stroke: #000000", "stroke: currentColor")
    return f'{opening} role="img" aria-label="{label}" style="--width: {width}px">{rest}'


def described(figure: Figure) -> str:
    """What a figure shows, in words: each panel's title, axes and lines."""
    panels = []
    for ax in figure.axes:
        title = ax.get_title() or ax.get_title("left")
        upwards, along = ax.get_ylabel(), ax.get_xlabel()
        words = f"{upwards} against {along}" if upwards and along else upwards or along
        legend = ax.get_legend()
        lines = [text.get_text() for text in legend.get_texts()] if legend else []
        said = ": ".join(part for part in (title, words, ", ".join(lines)) if part)
        if said:
            panels.append(said)
    return ". ".join(panels).replace("\\$", "$") or "a picture"


def _write_svg(figure: Figure, buffer: io.StringIO) -> None:
    """The same bytes as `savefig` writes, in two thirds of the time: `savefig` draws everything once more just to lay
    it out, and measures all text for that in other dots than it then writes in."""
    canvas, dpi = FigureCanvasSVG(figure), figure.dpi
    if (layout := figure.get_layout_engine()) is not None:
        figure.set_dpi(SVG_DPI)
        layout.execute(figure)
        figure.set_layout_engine("none")
        figure.set_dpi(dpi)  # that of images inside
    canvas.print_svg(buffer, metadata={"Date": None, "Creator": None})
