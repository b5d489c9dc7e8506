"""The page of a report: one HTML file that needs nothing beside it, neither files nor a network."""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.provenance import origin
from experiments.reports import figures, tables
from experiments.reports.compare import ENOUGH, FEWEST, improvements, tables_of_scores
from experiments.reports.gather import Gathered, Result
from experiments.reports.tables import Table

if TYPE_CHECKING:
    import jinja2
    from matplotlib.figure import Figure

MOST_MEDIA = 60_000_000
"""Bytes of pictures and videos that a page takes at most; what is beyond is left out and said."""


@dataclass(frozen=True)
class Drawn:
    """A figure in the page.

    :param data: SVG, base64.
    :param caption: below it.
    """

    data: str
    caption: str


@dataclass(frozen=True)
class Medium:
    """A picture or a video in the page.

    :param kind: "picture" (PNG) or "video" (H.264).
    :param data: base64.
    :param caption: below it.
    """

    kind: str
    data: str
    caption: str


@dataclass(frozen=True)
class Section:
    """A part of the page; what is empty is not there.

    :param title: above it, and in the navigation.
    :param texts: paragraphs.
    :param figures: below these.
    :param table: below these.
    :param media: pictures and videos.
    :param lines: a list.
    :param grouped: whether a line parts rows whose first cells differ.
    """

    title: str
    texts: tuple[str, ...] = ()
    figures: tuple[Drawn, ...] = ()
    table: Table | None = None
    media: tuple[Medium, ...] = ()
    lines: tuple[str, ...] = ()
    grouped: bool = True

    @property
    def id(self) -> str:
        """For links within the page."""
        return re.sub(r"\W+", "-", self.title.lower()).strip("-")

    @property
    def empty(self) -> bool:
        """Whether there is nothing in it."""
        return not (self.figures or (self.table and self.table.rows) or self.media or self.lines)


def page(title: str, gathered: Gathered) -> str:
    """The page of runs.

    :param title: at its top.
    :param gathered: the runs.
    """
    sections = [section for section in all_sections(gathered) if not section.empty]
    made = origin()
    return template("page.html.j2").render(
        title=title,
        about=f"Made with kp3d_rl at commit {made['commit']}. Curves and numbers of success are of deterministic "
        "evaluations on seeds that training never sees.",
        cards=cards(gathered, next((len(section.lines) for section in sections if section.lines), 0)),
        sections=sections,
    )


def template(name: str, autoescape: bool = True) -> jinja2.Template:
    """A template that lies beside this module; a name that nothing gives it is an error.

    :param name: of its file.
    :param autoescape: whether what it is given is text to be shown in HTML.
    """
    import jinja2

    environment = jinja2.Environment(
        autoescape=autoescape, undefined=jinja2.StrictUndefined, trim_blocks=True, keep_trailing_newline=True
    )
    return environment.from_string(Path(__file__).with_name(name).read_text())


def cards(gathered: Gathered, notes: int) -> list[tuple[str, str]]:
    """How much there is, in a few numbers.

    :param gathered: the runs.
    :param notes: on what is left out.
    """
    minutes = sum(r.minutes for r in gathered.results)
    hours = f"{minutes / 60:.1f} h" if minutes >= 90 else f"{minutes:.0f} min"
    steps = sum(r.steps for r in gathered.results)
    seeds = len({r.seed for r in gathered.results})
    counts = ((len(gathered.results), "runs"), (len(gathered.methods), "methods"), (len(gathered.envs), "tasks"))
    return [
        *((str(count), what[:-1] if count == 1 else what) for count, what in counts),
        (str(seeds), "seeds" if seeds != 1 else "seed"),
        (f"{steps:,}", "environment steps"),
        (hours, "of training"),
        (str(notes), "notes on what is left out"),
    ]


def all_sections(gathered: Gathered) -> list[Section]:
    """Every section, in its order."""
    scores, short = tables_of_scores(gathered)
    few = improvements(scores)[1]
    media, too_much = all_media(gathered)
    return [
        curves_section(gathered),
        Section("Success", ("At the end of training. Wilson's interval says how well these very policies do; the last "
                "column, with Welch's interval over seeds, how sure the comparison of methods is.",),
                table=tables.success_table(gathered)),
        over_tasks_section(gathered, scores),
        improvement_section(scores),
        efficiency_section(gathered),
        Section("Representation", ("The error of a linear probe from keypoints alone to the true positions of bodies, "
                "beside a constant, an untrained encoder and a plain autoencoder of equal width.",),
                table=tables.representation_table(gathered)),
        Section("Pictures", media=tuple(m for m in media if m.kind == "picture")),
        Section("Videos", media=tuple(m for m in media if m.kind == "video")),
        Section("Configuration", ("Options that are not the same for all methods.",),
                table=tables.options_table(gathered)),
        Section("Left out", lines=(*gathered.left_out, *short, *few, *too_much)),
        Section("Runs", table=tables.runs_table(gathered), grouped=False),
    ]  # fmt: skip


def drawn(figure: Figure | None, caption: str) -> tuple[Drawn, ...]:
    """A figure as it stands in the page, if there is one."""
    return () if figure is None else (Drawn(_text(figures.svg(figure)), caption),)


def curves_section(gathered: Gathered) -> Section:
    """Learning curves over steps."""
    bands = f"bands are stratified bootstrap 95 % intervals of it, from {FEWEST} seeds up"
    caption = f"Interquartile mean over seeds, as far as all of them have got; {bands}."
    return Section("Learning curves", figures=drawn(figures.curves_figure(gathered), caption))


def over_tasks_section(gathered: Gathered, scores: dict[str, Any]) -> Section:
    """Numbers over seeds and tasks, and performance profiles."""
    if not scores:
        return Section("Over all tasks")
    tasks = "all tasks" if len(gathered.envs) > 1 else "the task"
    text = (
        f"Final success of every seed on {tasks}, as many seeds as each task has, after Agarwal et al. (NeurIPS 2021). "
        "The interquartile mean leaves out the best and the worst quarter of runs; the optimality gap is what is "
        "missing to 100 %. Intervals are stratified bootstrap 95 % intervals."
    )
    shown = drawn(figures.aggregates_figure(scores, gathered.methods), "Each method's numbers with their intervals.")
    shown += drawn(figures.profiles_figure(scores, gathered.methods), "Performance profiles: the higher, the better.")
    return Section("Over all tasks", (text,), shown, tables.aggregates_table(scores), grouped=False)


def improvement_section(scores: dict[str, Any]) -> Section:
    """How likely a run of the first method beats one of another."""
    text = f"A run of the one against a run of the other on the same task, ties counting half; from {ENOUGH} seeds up."
    shown = drawn(figures.improvements_figure(scores), "Right of the dotted line the first method is better.")
    return Section("Probability of improvement", (text,), shown, tables.improvements_table(scores), grouped=False)


def efficiency_section(gathered: Gathered) -> Section:
    """How soon, by steps and by the clock."""
    text = (
        "Steps to a share of success: the median over the seeds that reach it and still have it one evaluation later, "
        "and how many do. Minutes are of the whole training, on whatever machine it ran."
    )
    caption = "The same curves over minutes of training, as if each run had gone at its own mean speed throughout."
    shown = drawn(figures.curves_figure(gathered, by_minutes=True), caption)
    return Section("Sample efficiency and time", (text,), shown, tables.efficiency_table(gathered))


def all_media(gathered: Gathered) -> tuple[list[Medium], list[str]]:
    """Pictures and videos: of each method on each task those of its first seed that has some.

    :return: what is shown, and lines about what would have made the page too large.
    """
    found, lines, left = [], [], MOST_MEDIA
    for env in gathered.envs:
        for method in gathered.methods:
            for kind, path, result in files_of(gathered.of(env, method)):
                caption = f"{method} on {env}, seed {result.seed}: {path.stem}"
                data = path.read_bytes()
                if len(data) > left:
                    most = f"{MOST_MEDIA // 1_000_000} MB of pictures and videos"
                    lines.append(f"{path}: the page would have more than {most}")
                    continue
                left -= len(data)
                found.append(Medium(kind, _text(data), caption))
    return found, lines


def files_of(results: Sequence[Result]) -> list[tuple[str, Path, Result]]:
    """The last picture, the probe's and the newest video of the first run that has each."""
    found = {}
    for result in results:
        for kind, path in files_of_run(result.folder).items() if result.folder else ():
            found.setdefault(kind, ("video" if kind == "video" else "picture", path, result))
    return [found[kind] for kind in MEDIA if kind in found]


MEDIA = {"picture": "pictures/*.png", "probe": "probe.png", "video": "videos/*.mp4"}
"""What there may be to look at in a run's folder."""


def files_of_run(folder: Path) -> dict[str, Path]:
    """The newest file of each kind of :data:`MEDIA` that a run has."""
    found = {}
    for kind, pattern in MEDIA.items():
        if paths := sorted(folder.glob(pattern), key=lambda path: path.stat().st_mtime):
            found[kind] = paths[-1]
    return found


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
