"""Many runs on one page: ``python -m experiments.report --runs "runs/sweeps/reach"``.

Learning curves with bands, comparisons over tasks and seeds, success, representation, pictures and videos in one HTML
file that opens from the disk and needs nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from envs.errors import UserError
from experiments.options.cli import parse, require_place, run_main, write_result
from experiments.reports import figures
from experiments.reports.gather import gather, to_json
from experiments.reports.page import page
from experiments.runs.folder import ROOT


@dataclass(frozen=True)
class ReportConfig:
    """What is reported, and where to.

    :param runs: sweeps' folders, run folders, folders of runs, or JSON files of studies in docs; separated by spaces.
    :param out: HTML file; by default report.html in the sweep's folder, or in runs. The numbers go beside it as JSON.
    :param title: of the page.
    :param figure: PNG file for the learning curves alone, small enough for a README.
    """

    runs: str | None = None
    out: Path | None = None
    title: str | None = None
    figure: Path | None = None

    def __post_init__(self) -> None:
        if not (self.runs or "").split():
            raise ValueError("say which runs: RUNS=<sweep's folder>, or run folders separated by spaces")


def main(argv: Sequence[str]) -> None:
    """Gather, compare, write."""
    config = parse(ReportConfig, argv)
    sources = [Path(word) for word in config.runs.split()]
    out = config.out or default_place(sources)
    require_place(out)
    require_numbers_place(out, sources)
    if config.figure is not None:
        require_place(config.figure)
    gathered = gather(sources)
    title = config.title or " and ".join(source.stem or source.resolve().name for source in sources)
    write_result(out, page(title, gathered).encode())
    write_result(out.with_suffix(".json"), to_json(gathered).encode())
    if config.figure is not None:
        write_figure(config.figure, gathered)
    for line in gathered.left_out:
        print(f"left out  {line}")
    print(f"{len(gathered.results)} runs, {len(gathered.left_out)} left out: {out}")


def require_numbers_place(out: Path, sources: Sequence[Path]) -> None:
    """Refuse a page whose numbers, which go beside it, would replace a file that is no earlier report's.

    :param out: of the page.
    :param sources: that it is made of.
    :raises UserError: saying which file.
    """
    numbers = out.with_suffix(".json")
    if out.suffix not in (".html", ".htm"):
        raise UserError(f"cannot write {out}: the name of a page ends in .html")
    require_place(numbers)
    mine = not numbers.exists() or '"left_out"' in numbers.read_text(errors="replace")
    if not mine or any(numbers.resolve() == source.resolve() for source in sources):
        raise UserError(f"the numbers of {out} would replace {numbers}, which is something else: name another --out")


def default_place(sources: Sequence[Path]) -> Path:
    """Where a page goes that nobody said a place for.

    :param sources: that it is made of.
    """
    if len(sources) == 1 and (sources[0] / "sweep.json").is_file():
        return sources[0] / "report.html"
    ROOT.mkdir(exist_ok=True)
    return ROOT / "report.html"


def write_figure(path: Path, gathered: object) -> None:
    """The learning curves alone.

    :param path: of the PNG.
    :param gathered: the runs.
    :raises UserError: where no run was evaluated while it trained.
    """
    import io

    figure = figures.curves_figure(gathered)  # type: ignore[arg-type]
    if figure is None:
        raise UserError("no run was evaluated while it trained: there are no curves to draw")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    write_result(path, buffer.getvalue())


if __name__ == "__main__":
    run_main(main)
