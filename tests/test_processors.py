"""Which processor a measurement of one thread keeps to."""

import os

import pytest

from lepton_edge.ondevice import processors


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine of four processors: ``made(strengths, ticks)`` writes what /sys and the two looks at /proc/stat say."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)

    def made(strengths=(), idle=((0, 0, 0, 0), (10, 10, 10, 10)), name="cpu_capacity"):
        for cpu, strength in enumerate(strengths):
            file = tmp_path / f"sys/devices/system/cpu/cpu{cpu}" / name
            file.parent.mkdir(parents=True)
            file.write_text(f"{strength}\n")
        looks = iter(idle)

        def stat():
            lines = [f"cpu{cpu} 5 0 5 {ticks} 0 0 0 0 0 0" for cpu, ticks in enumerate(next(looks))]
            (tmp_path / "proc").mkdir(exist_ok=True)
            (tmp_path / "proc/stat").write_text("\n".join(["cpu  20 0 20 40 0", *lines, "intr 5"]))

        stat()
        monkeypatch.setattr(processors.time, "sleep", lambda seconds: stat())
        return str(tmp_path)

    return made


@pytest.mark.parametrize(("turn", "cpu"), [(0, 0), (1, 1), (2, 3), (3, 0)])
def test_a_busy_one_is_left_out(machine, turn, cpu):
    assert processors.quietest(turn, machine(idle=((0, 7, 0, 0), (10, 17, 1, 9)))) == cpu


@pytest.mark.parametrize("name", ["cpu_capacity", "cpufreq/cpuinfo_max_freq"])
def test_the_strong_ones_of_big_and_little_cores_even_when_they_are_busier(machine, name):
    root = machine((400, 400, 1024, 1024), ((0, 0, 0, 0), (10, 10, 2, 5)), name)
    assert processors.quietest(0, root) == 3


def test_a_machine_that_tells_nothing_is_taken_in_turn(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {2, 5}, raising=False)
    assert [processors.quietest(turn, str(tmp_path)) for turn in range(3)] == [2, 5, 2]
    monkeypatch.delattr(os, "sched_setaffinity")
    assert processors.quietest(0, str(tmp_path)) is None


def test_this_machine():
    assert processors.quietest() in os.sched_getaffinity(0)
