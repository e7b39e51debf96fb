"""The progress display: what it shows, and that it goes on showing it."""

import io

import pytest
from rich.console import Console

from lepton_edge import progress


@pytest.fixture
def live():
    shown = progress.Live()
    shown._progress.live.console = Console(file=io.StringIO(), force_terminal=True, width=80)
    return shown


def test_a_stage_whose_parts_are_all_ready_is_shown_as_busy_and_the_next_starts_at_nothing(live):
    live.stage("one")
    live.update(3, 4, "samples")
    (task,) = live._progress.tasks
    assert (task.completed, task.total, task.fields["what"]) == (3, 4, "samples")
    live.update(4, 4, "samples")
    (task,) = live._progress.tasks
    assert not task.finished and task.total is None
    live.update(1, 4)
    live.stage("two")
    (task,) = live._progress.tasks
    assert (task.description, task.completed, task.total) == ("two", 0, None)


def test_the_clock_goes_on_over_the_stages(live, monkeypatch):
    now = live._start
    monkeypatch.setattr(progress.time, "monotonic", lambda: now + 65.4)
    live.stage("one")
    live.update(1, 1)
    live.stage("two")
    (task,) = live._progress.tasks
    assert f"{task.fields['clock']}" == "65 s"


def test_a_long_stage_leaves_room_for_the_bar(live):
    live.stage("x" * 500)
    (task,) = live._progress.tasks
    assert task.description.endswith("…") and len(task.description) < live._progress.console.width - 40


def test_lines_are_plain_and_on_stderr(capsys):
    lines = progress.Lines()
    lines.stage("reading [red]samples[/red]")
    lines.update(1, 2, "samples")
    out, err = capsys.readouterr()
    assert out == "" and err.endswith("s] reading [red]samples[/red]\n") and err.count("\n") == 1


def test_a_long_stage_has_a_line_now_and_then(capsys, monkeypatch):
    lines = progress.Lines()
    lines.stage("training")
    monkeypatch.setattr(lines, "_last", lines._last - 31)
    lines.update(30, 90, "epoch 1/3, loss 0.5, 12 s left")
    lines.update(31, 90, "epoch 1/3, loss 0.5, 12 s left")
    assert capsys.readouterr().err.splitlines()[1:] == ["[    0.0 s]   30 of 90 (epoch 1/3, loss 0.5, 12 s left)"]


def test_the_display_fits_where_it_goes(monkeypatch):
    assert type(progress.progress_for(quiet=True)) is progress.Silent
    monkeypatch.setattr(progress.sys, "stderr", io.StringIO())
    assert type(progress.progress_for(quiet=False)) is progress.Lines
