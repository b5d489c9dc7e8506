"""Reports: what is compared with what, what is left out and why, and a page that a real browser shows whole."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from envs.errors import UserError
from experiments import evaluate, report
from experiments.mp4 import write_mp4
from experiments.reports import figures, tables
from experiments.reports.compare import (
    aggregates,
    column_means,
    improvements,
    learning_curve,
    profile,
    steps_to,
    tables_of_scores,
)
from experiments.reports.gather import (
    Gathered,
    Result,
    differing,
    gather,
    named_methods,
    of_one_kind,
    once_per_seed,
    told_apart,
)
from experiments.reports.page import MOST_MEDIA, all_media, page
from kp3d_rl.statistics import interquartile_mean
from tests.experiments.conftest import run_in

ROOT = Path(__file__).resolve().parents[2]
BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "chrome")


def result(env: str = "reach", method: str = "ours", seed: int = 0, k: int | None = 8, **more: object) -> Result:
    """A run of ten evaluated episodes whose success rises from 0 to k of them."""
    curve = tuple((100.0 * n, (k or 0) / 10 * n / 4) for n in range(1, 5))
    success = None if k is None else (k, 10)
    made = Result(f"{env}/{method}-{seed}", env, method, seed, curve, 400, 2.0 + seed, success)
    return dataclasses.replace(made, **more)


def of(*results: Result) -> Gathered:
    return Gathered(results, ())


def several(ks: list[int], env: str = "reach", method: str = "ours") -> list[Result]:
    return [result(env, method, seed, k) for seed, k in enumerate(ks)]


# -- numbers ---------------------------------------------------------------------------------------------------------


def test_a_curve_is_the_interquartile_mean_as_far_as_all_seeds_have_got() -> None:
    runs = several([2, 4, 6, 8, 10])
    short = dataclasses.replace(runs[4], curve=runs[4].curve[:3])
    band = learning_curve([*runs[:4], short])
    assert band.x[0] == 0 and band.x[-1] == 300 and band.seeds == 5
    assert band.y[-1] == pytest.approx(interquartile_mean([0.15, 0.3, 0.45, 0.6, 0.75]))
    assert (band.low <= band.y).all() and (band.y <= band.high).all() and band.low[-1] < band.high[-1]
    few = learning_curve(runs[:2])
    assert (few.low == few.high).all(), "two seeds have no interval"
    minutes = learning_curve(runs, by_minutes=True)
    assert minutes.x[-1] == pytest.approx(2.0), "the first seed took two minutes"
    assert learning_curve([result(curve=())]) is None


def test_columns_are_averaged_one_by_one() -> None:
    table = np.random.default_rng(0).random((3, 7, 5))
    naive = [[interquartile_mean(table[i, :, j]) for j in range(5)] for i in range(3)]
    np.testing.assert_allclose(column_means(table), naive)


def test_methods_are_compared_on_all_tasks_with_as_many_seeds_as_each_has() -> None:
    runs = [*several([5] * 6), *several([10] * 5, "push"), *several([1] * 5, method="other")]
    found, lines = tables_of_scores(of(*runs))
    assert found["ours"].shape == (5, 2) and found["ours"][0].tolist() == [0.5, 1.0]
    assert list(found) == ["ours"]
    assert lines == [
        "ours: of 6 seeds 5 count over all tasks, as many as each task has",
        "other: not in the comparison over tasks, it was not evaluated on push",
    ]
    assert aggregates(found["ours"])["mean"].value == 0.75 and aggregates(found["ours"])["optimality gap"].value == 0.25
    shares = profile(found["ours"])
    assert shares.y[0] == 1 and shares.y[30] == 0.5 and shares.y[-1] == 0


def test_who_beats_whom_is_said_from_five_seeds_up() -> None:
    found, _ = tables_of_scores(of(*several([9] * 5), *several([4] * 5, method="b"), *several([9] * 4, method="c")))
    pairs, lines = improvements(found)
    assert [(first, other, value.value) for first, other, value in pairs] == [("ours", "b", 1.0)]
    assert lines == ["no probability that ours beats c: of 5 seeds that it takes, c has 4"]
    assert not np.isfinite(aggregates(np.full((2, 1), 0.5))["mean"].low)


def test_success_is_reached_when_it_stays_for_one_evaluation_more() -> None:
    def curve(*values: float) -> Result:
        return result(curve=tuple((float(n), value) for n, value in enumerate(values)))

    assert steps_to(curve(0.1, 0.6, 0.2, 0.5, 0.9), 0.5) == 3
    assert steps_to(curve(0.1, 0.6), 0.5) == 1 and steps_to(curve(0.1, 0.2), 0.5) is None
    table = tables.efficiency_table(of(curve(0, 0.6, 0.6), dataclasses.replace(curve(0, 0, 0), seed=1)))
    assert table.rows[0][-2:] == ("1 (1 of 2)", "never (0 of 2)")


def test_the_table_of_success_pools_seeds_and_compares_with_the_first() -> None:
    table = tables.success_table(of(*several([8, 10]), *several([2, 4], method="other")))
    assert table.rows[0] == ("reach", "ours", "2", "18/20", "70 to 97", "80, 100", "")
    assert table.rows[1][:5] == ("reach", "other", "2", "6/20", "15 to 52")
    assert table.rows[1][6] == "60", "two seeds have no interval"
    elsewhere = [*several([9], "push", "b"), *several([1], "push", "c")]
    some = of(*several([8] * 3), *several([2, 3, 4], method="b"), *elsewhere)
    shown = {(row[0], row[1]): row[6] for row in tables.success_table(some).rows}
    assert shown["reach", "b"].startswith("50 (") and shown["push", "b"] == shown["push", "c"] == ""


# -- what is compared ------------------------------------------------------------------------------------------------


def options(**more: object) -> dict[str, object]:
    common = {"encoder.kind": "rad", "algorithm": "ppo", "total_steps": 400, "ppo.gamma": 0.9, "seed": 0}
    return common | {name.replace("__", "."): value for name, value in more.items()}


def test_methods_get_names_by_what_differs() -> None:
    runs = [
        result(method="", options=options()),
        result(method="", seed=1, options=options(ppo__gamma=0.5)),
        result(method="", seed=2, options=options(encoder__kind="state", ppo__gamma=0.1)),
        result(method="said"),
    ]
    names = [found.method for found in named_methods(runs)]
    assert names == ["rad ppo ppo.gamma 0.9", "rad ppo ppo.gamma 0.5", "state ppo", "said"]


def test_what_differs_between_tasks_or_names_another_run_makes_no_method() -> None:
    """A preset's numbers are other ones on another task; each seed starts from a pretraining of its own."""
    runs = [
        result(method="", options=options(pretrained="runs/a/0", log__wandb="off")),
        result(method="", seed=1, options=options(pretrained="runs/a/1")),
        result("push", method="", options=options(ppo__gamma=0.5, pretrained="runs/b/0")),
    ]
    assert {found.method for found in named_methods(runs)} == {"rad ppo"}
    assert differing([options(pretrained=None), options(pretrained="x")]) == ["pretrained"]


def test_methods_of_one_name_in_sweeps_of_other_options_are_told_apart() -> None:
    runs = [
        result(method="rad ppo", plan="first", options=options()),
        result(method="rad ppo", plan="second", options=options(ppo__gamma=0.5)),
        result(method="same", plan="first", options=options()),
        result(method="same", seed=1, plan="second", options=options()),
    ]
    assert [found.method for found in told_apart(runs)] == ["rad ppo (first)", "rad ppo (second)", "same", "same"]


def test_what_a_plan_compares_on_purpose_stays() -> None:
    runs = [result(seed=seed, options=options(), plan="p") for seed in range(3)]
    far = result(method="far views", options=options(cameras="left,right"), plan="p")
    assert of_one_kind([*runs, far]) == once_per_seed([*runs, far]) == ([*runs, far], [])
    table = tables.options_table(of(*runs, far))
    assert table.heads == ("task", "method", "cameras") and table.rows[1] == ("reach", "far views", "left,right")


def test_what_differs_in_task_or_is_there_twice_is_left_out_with_a_line() -> None:
    runs = [result(seed=seed, options=options()) for seed in range(3)]
    runs += [result(seed=3, options=options(total_steps=800)), result(seed=1, options=options(), label="again")]
    alike, lines = of_one_kind(runs)
    assert lines == ["reach/ours-3: has total_steps 800, most runs of reach have 400"]
    kept, lines = once_per_seed(alike)
    assert [r.seed for r in kept] == [0, 1, 2]
    assert lines == ["again: another run of ours on reach has seed 1, too"]


@pytest.fixture
def runs(tiny_run: Path, state_run: Path, tiny_pretrained: Path, tmp_path: Path) -> Path:
    """A folder of a keypoint run that was evaluated and filmed, one on the state, a pretraining and a crashed run."""
    folder = tmp_path / "runs" / "reach-multiview"
    folder.mkdir(parents=True)
    as_trained = shutil.ignore_patterns("eval.json")  # which other tests may have written by now
    for path in (tiny_run, state_run, tiny_pretrained):
        shutil.copytree(path, folder / path.name, ignore=as_trained)
    run_in(tmp_path, evaluate.main, ["--run", str(folder / "tiny"), "--episodes", "4"])
    frames = [np.full((48, 64, 3), 20 * n, np.uint8) for n in range(12)]
    write_mp4(folder / "tiny" / "videos" / "episode.mp4", iter(frames), 12)
    crashed = shutil.copytree(folder / "state", folder / "crashed")
    shutil.rmtree(crashed / "checkpoints")
    return folder


def test_run_folders_are_read_and_what_cannot_be_compared_is_told(runs: Path) -> None:
    found = gather([runs])
    assert [(r.label, r.method) for r in found.results] == [
        ("reach-multiview/state", "state ppo"),
        ("reach-multiview/tiny", "keypoint3d ppo"),
    ]
    tiny = found.results[1]
    evaluated = json.loads((runs / "tiny" / "eval.json").read_text())["results"]["as trained"]["summary"]
    assert tiny.success == (evaluated["success_at_end"]["k"], 4) and found.results[0].success is None
    assert len(tiny.curve) == 2 and tiny.options["ppo.hidden"] == 16
    assert any("crashed: is not finished (has no checkpoint of 160): make train RESUME=" in x for x in found.left_out)
    assert any("pretrained: is a pretraining, it has no policy" in line for line in found.left_out)


def test_a_damaged_run_is_left_out(runs: Path) -> None:
    (runs / "tiny" / "eval.json").write_text("{")
    found = gather([runs])
    assert [r.label for r in found.results] == ["reach-multiview/state"]
    assert any(line.startswith("reach-multiview/tiny: cannot be read (") for line in found.left_out)


def test_an_evaluation_on_the_way_is_not_taken_for_that_of_the_end(runs: Path) -> None:
    path = runs / "tiny" / "eval.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"checkpoint": 64}))
    found = gather([runs])
    assert found.results[1].success is None
    said = "reach-multiview/tiny: its evaluation is of another kind (at step 64, not as it ended): make evaluate RUN="
    assert any(line.startswith(said) for line in found.left_out)


def test_a_run_that_goes_on_has_the_minutes_of_all_its_pieces(runs: Path) -> None:
    path = runs / "tiny" / "metrics.csv"
    head, *rows = path.read_text().splitlines()
    column, cells = head.split(",").index("time/time_elapsed"), [row.split(",") for row in rows]
    for row, seconds in zip(cells, ("60", "120", "30", "90"), strict=False):
        row[column] = seconds
    path.write_text("\n".join([head, *map(",".join, cells)]) + "\n")
    expected = {3: 2.5, 4: 3.5}[len([row for row in cells if row[column]])]
    assert gather([runs]).results[1].minutes == expected


def test_a_page_never_replaces_numbers_that_are_not_its_own(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "study.json").write_text('{"runs": []}')
    for name, said in (("study.html", "would replace study.json, which is some"), ("a.json", "ends in .html")):
        with pytest.raises(UserError, match=said):
            run_in(tmp_path, report.main, ["--runs", str(runs), "--out", name])
    for _ in range(2):  # an earlier report's numbers may be
        run_in(tmp_path, report.main, ["--runs", str(runs), "--out", "a.html"])


def test_a_sweep_is_reported_with_what_failed(runs: Path) -> None:
    sweep = runs.parent / "sweeps" / "first"
    sweep.mkdir(parents=True)

    def entry(name: str, status: str, *problems: str | None) -> dict:
        attempts = [{"problem": problem} for problem in problems]
        folder = f"runs/reach-multiview/{name}"
        return {"label": f"r/{name}", "folder": folder, "method": "m", "status": status, "attempts": attempts}

    state = {"refused": ["it has no OpenGL"], "runs": [
        entry("tiny", "done", None), entry("bad", "failed", "killed", "error: no disk"), entry("new", "waiting"),
    ]}  # fmt: skip
    (sweep / "sweep.json").write_text(json.dumps(state))
    found = gather([sweep])
    assert [(r.label, r.method) for r in found.results] == [("reach-multiview/tiny", "m")]
    assert found.left_out == (
        "first: a node was left out, it has no OpenGL", "r/bad: failed (error: no disk)", "r/new: has not begun",
    )  # fmt: skip
    assert report.default_place([sweep]) == sweep / "report.html"
    state["runs"][0]["status"] = "failed"  # and was made by hand since
    (sweep / "sweep.json").write_text(json.dumps(state))
    assert len(gather([sweep]).results) == 1
    (sweep / "sweep.json").write_text('{"runs": [{}], "refused": []}')
    with pytest.raises(UserError, match="sweep.json is damaged .KeyError 'folder'.: the same `make sweep` writes it"):
        gather([sweep])


def test_data_of_studies_are_read_as_they_stand_in_the_documentation() -> None:
    found = gather([ROOT / "docs" / "control-reach.json", ROOT / "docs" / "control-window-open.json"])
    records = json.loads((ROOT / "docs" / "control-reach.json").read_text())["runs"]
    assert found.envs == ["reach-multiview", "metaworld-window-open"]
    assert len(found.of("reach-multiview")) == len(records)
    first = found.results[0]
    assert first.success == (100, 100) and first.curve[-1] == (20384.0, 1.0)
    assert first.made["command"].startswith("make train")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "say which runs"),
        (["--runs", "nowhere"], "no runs at nowhere: it must be a run folder, a folder of runs"),
        (["--runs", "other.json"], "other.json is no study's data"),
        (["--runs", "pretrainings.json"], "nothing to report in pretrainings.json: .*never evaluated"),
    ],
)
def test_what_cannot_be_reported_is_one_line(words: list[str], said: str, tmp_path: Path) -> None:
    (tmp_path / "other.json").write_text("[]")
    row = {"condition": "a", "seed": 0, "command": "make pretrain ENV=reach", "evaluated_success_at_end": []}
    (tmp_path / "pretrainings.json").write_text(json.dumps({"runs": [row]}))
    with pytest.raises(UserError, match=said):
        run_in(tmp_path, report.main, words)
    assert not (tmp_path / "runs" / "report.html").exists()


# -- the page --------------------------------------------------------------------------------------------------------


def test_the_page_is_the_same_each_time_and_escapes_what_it_is_told() -> None:
    strange = of(*several([3, 5], method="<b>&bold</b>"))
    first = page("a <title>", strange)
    assert first == page("a <title>", strange)
    assert "&lt;b&gt;&amp;bold&lt;/b&gt;" in first and "<b>&bold" not in first and "a &lt;title&gt;" in first
    assert "http:" not in first.replace("http://www.w3.org", "") and "https:" not in first and "<script" not in first


def test_pictures_beyond_the_limit_are_left_out_and_told(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    large, small = tmp_path / "pictures" / "1.png", tmp_path / "probe.png"
    large.write_bytes(b"")
    with large.open("r+b") as file:
        file.truncate(MOST_MEDIA + 1)
    small.write_bytes(b"small")
    media, lines = all_media(of(result(folder=tmp_path)))
    assert [medium.caption for medium in media] == ["ours on reach, seed 0: probe"]
    assert lines == [f"{large}: the page would have more than 60 MB of pictures and videos"]


def test_legends_of_long_names_stay_within_the_figure() -> None:
    long = " ".join(f"encoder.option-{number} {number}.25" for number in range(12))
    for methods in ([long, f"other {long}"], ["a", "b", "c", "d", "e"]):
        curve = tuple((100.0 * n, 0.2 * n) for n in range(1, 6))
        drawn = [result(method=method, seed=seed, curve=curve) for method in methods for seed in range(2)]
        figure = figures.curves_figure(of(*drawn))
        FigureCanvasAgg(figure).draw()
        (legend,), renderer = figure.legends, figure.canvas.get_renderer()
        inside, whole = legend.get_window_extent(renderer), figure.bbox
        assert inside.x0 >= 0 and inside.x1 <= whole.x1 and inside.y0 >= 0, methods
        axes = figure.axes[0].get_window_extent(renderer)
        assert axes.height > 0.5 * 3.3 * figure.dpi and axes.y0 > inside.y1


def test_what_no_run_has_is_not_drawn() -> None:
    bare = of(result(curve=(), k=4))
    assert figures.curves_figure(bare) is None
    shown = page("bare", bare)
    assert "Learning curves" not in shown and "Success" in shown and "Representation" not in shown
    with pytest.raises(UserError, match="no run was evaluated while it trained"):
        report.write_figure(Path("never.png"), bare)


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    """A real browser without a window."""
    found = next((path for name in BROWSERS if (path := shutil.which(name))), None)
    if found is None:
        pytest.skip(f"no browser here: install one of {', '.join(BROWSERS)}")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()


def test_a_browser_shows_the_page_whole_from_the_disk_and_plays_its_videos(
    runs: Path, browser: object, tmp_path: Path
) -> None:
    sources = f"{runs} {ROOT / 'docs' / 'control-reach.json'} {ROOT / 'docs' / 'learning.json'}"
    out, figure = tmp_path / "page.html", tmp_path / "curves.png"
    run_in(tmp_path, report.main, ["--runs", sources, "--out", str(out), "--figure", str(figure)])
    alone = tmp_path / "alone"
    alone.mkdir()
    out.rename(alone / "page.html")  # nothing beside it
    said: list[str] = []
    requests: list[str] = []
    view = browser.new_page(viewport={"width": 1200, "height": 900})  # type: ignore[attr-defined]
    view.on("console", lambda message: said.append(message.text))
    view.on("pageerror", lambda error: said.append(str(error)))
    view.on("request", lambda request: requests.append(request.url))
    view.goto((alone / "page.html").as_uri())
    view.wait_for_load_state("load")
    assert said == [] and all(url.startswith(("file:", "data:")) for url in requests)
    pictures = view.evaluate("[...document.images].map(i => i.complete && i.naturalWidth > 50 && i.offsetWidth > 50)")
    assert len(pictures) == (alone / "page.html").read_text().count("<img ") >= 5 and all(pictures)
    played = view.evaluate(
        """Promise.all([...document.querySelectorAll('video')].map(async video => {
            await video.play();
            await new Promise(done => setTimeout(done, 700));
            return video.currentTime > 0.2 && video.videoWidth > 0 && video.error === null;
        }))"""
    )
    assert played == [True]
    links = view.evaluate("[...document.querySelectorAll('nav a')].map(a => document.querySelector(a.hash) !== null)")
    assert len(links) >= 8 and all(links)
    assert view.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "nothing sticks out"
    headings = view.evaluate("[...document.querySelectorAll('h2')].map(h => h.textContent)")
    assert headings[0] == "Learning curves" and {"Representation", "Videos", "Left out", "Runs"} <= set(headings)
    view.close()
    assert figure.stat().st_size > 10_000


def test_numbers_go_beside_the_page(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run_in(tmp_path, report.main, ["--runs", "runs/reach-multiview"])
    data = json.loads((tmp_path / "runs" / "report.json").read_text())
    assert [run["method"] for run in data["runs"]] == ["state ppo", "keypoint3d ppo"] and len(data["left_out"]) == 2
    said = capsys.readouterr().out
    assert said.count("left out  ") == 2 and "2 runs, 2 left out: runs/report.html" in said
