"""Measuring without a clock: a simulated place whose processes differ, drift and fail, and what is made of it."""

import json
import math
import random
from contextlib import contextmanager

import numpy as np
import pytest

from lepton_edge import api, bench, bench_record, benching, energy, noise, stats, throughput, worker
from lepton_edge.errors import LeptonError, PlaceLost, UsageError, WorkerError
from lepton_edge.recipe import Bench, Recipe
from lepton_edge.registry import Runtime


class Sim:
    """A place of simulated workers: ``time(name, process, turn)`` gives the nanoseconds of a turn."""

    name, kind, shares_host = "sim", "measured", True

    def __init__(self, time, steps=(), watts=None):
        self.time, self.steps, self.watts = time, dict(steps), watts
        self.turns, self.running, self.readings, self.asked, self.kept = [], None, 0, [], []
        self.processor = lambda turn: turn % 2

    @contextmanager
    def worker(self, what, runtime):
        yield SimWorker(self, runtime.name)

    def send(self, path, files=()):
        return str(path)

    def call(self, file, function, **args):
        if function == "quietest":
            self.asked.append(args["turn"])
            return self.processor(args["turn"])
        if function == "snapshot":
            self.readings += 1
            return {
                "wall_s": float(self.readings),
                "busy_cpu_s": 1.5 * self.readings,
                "ours_cpu_s": self.readings,
                "cores": 2,
            }
        if function == "probe":
            reason = "" if self.watts else "no counters"
            return {"source": "rapl" if self.watts else None, "of": "packages", "reason": reason}
        watts = self.watts[self.running or "idle"]
        self.running = None
        return {"joules": watts * args["seconds"], "seconds": args["seconds"]}

    def close(self):
        pass


class SimWorker:
    def __init__(self, place, name):
        self.place, self.name, self.turn = place, name, 0
        place.steps[name, "starts"] = self.process = place.steps.get((name, "starts"), -1) + 1

    def call(self, op, **args):
        if error := self.place.steps.get((self.name, op, self.process)):
            raise error
        if op == "load":
            self.place.kept.append((self.name, self.process, args["cpus"]))
            self.cpus = args["cpus"] or [0, 1]
            return {
                "load_ms": 5.0 + self.process,
                "info": {"runtime": self.name, "threads": args["options"]["threads"]},
            }
        if op == "bench_start":
            warm = {"runs": 9, "seconds": 0.3, "settled": True}
            return {"first_ns": 3_000_000, "warmup": warm, "pid": 1000 + self.process, "cpus": self.cpus}
        if op == "usage":
            return {"peak_rss_mb": 50.0 + self.process}
        self.place.turns.append((self.name, self.process))
        self.place.running = self.name
        self.turn += 1
        return {"ns": self.place.time(self.name, self.process, self.turn), "involuntary": 0}


def entrants(*names):
    return [bench.Entrant(n, f"/models/{n}", Runtime(n, "/runtimes/x.py", ("sim",), ""), "/feed") for n in names]


def noisy(seed, between=0.0, slower=1.0, drift=0.0, samples=40):
    """Log-normal times of about 1 ms: each process has a level of its own (``between``), rounds drift together."""
    rng, level = np.random.default_rng(seed), {}

    def time(name, process, turn):
        own = level.setdefault((name, process), rng.normal(0, between))
        scale = (slower if name == "b" else 1.0) * math.exp(own + drift * (process + turn / 10))
        return [int(v) for v in 1e6 * scale * rng.lognormal(0, 0.03, samples)]

    return time


def compared(seconds=6.0, **changes):
    how = bench.How(seconds=seconds, seed=changes.get("seed", 0))
    return bench.measure(entrants("a", "b"), how, Sim(noisy(**changes))).ratios({"b": "a"})["b"]


def test_shares_of_rounds():
    def turns(least_s=0.02, **how):
        made = bench.How(**how)
        return [made.turns(p, least_s) for p in range(made.starts())]

    assert turns(seconds=3.0) == [25] * 6
    assert turns(seconds=1.0) == [50], "one process where starting more would take most of the time"
    assert turns(seconds=0.2, rounds=2) == [2]
    assert turns(seconds=10.0, rounds=7, processes=3) == [3, 2, 2]
    assert turns(seconds=4.5, least_s=0.1) == [5] * 9, "a slow model, or a long way, makes longer turns"
    assert turns(seconds=4.5, least_s=10.0) == [4] * 9, "and some there have to be"


def test_all_take_turns_in_random_order_in_fresh_processes():
    place = Sim(noisy(0))
    done = bench.measure(entrants("a", "b", "c"), bench.How(seconds=3.0, threads=2), place)
    rounds = [place.turns[i : i + 3] for i in range(0, len(place.turns), 3)]
    assert len(rounds) == 30 and all({n for n, _ in r} == {"a", "b", "c"} for r in rounds)
    assert len({tuple(n for n, _ in r) for r in rounds}) > 3, "always the same order"
    assert [r[0][1] for r in rounds] == sorted(r[0][1] for r in rounds) and rounds[-1][0][1] == 5
    got = done.timings["a"].latency
    assert got["processes"] == 6 and got["process_of_round"] == [p for p in range(6) for _ in range(5)]
    assert got["count"] == 1200 and got["peak_rss_mb"] == 55 and got["load_ms"] == 7.5 and got["threads"] == 2
    assert len(done.windows) == 6 and got["others_cores"] == pytest.approx(0.5)


def test_a_model_that_fails_costs_its_own_figures_only():
    crash = WorkerError("b: the worker crashed")
    done = bench.measure(entrants("a", "b"), bench.How(seconds=3.0), Sim(noisy(0), {("b", "bench_round", 2): crash}))
    assert done.timings["b"].error is crash and done.timings["b"].latency is None
    assert done.timings["a"].latency["rounds"] == 30 and done.ratios({"b": "a"}) == {}
    early = bench.measure(entrants("a", "b"), bench.How(), Sim(noisy(0), {("a", "load", 0): crash}))
    assert early.timings["a"].error is crash and early.timings["a"].info is None and early.timings["b"].latency


def test_one_thread_has_all_workers_of_a_turn_on_one_processor():
    place = Sim(noisy(0))
    done = bench.measure(entrants("a", "b"), bench.How(seconds=6.0), place)
    assert place.asked == list(range(9))
    assert sorted(place.kept) == [(name, p, [p % 2]) for name in "ab" for p in range(9)]
    assert done.timings["a"].latency["cpus"] == [0, 1], "both, one after the other"
    place = Sim(noisy(0))
    place.processor = lambda turn: None
    assert bench.measure(entrants("a"), bench.How(), place).timings["a"].latency["cpus"] == [0, 1]
    assert all(cpus == [] for _, _, cpus in place.kept), "nothing can be chosen there"
    gpu = Runtime("g", "/runtimes/x.py", ("sim",), "", device="gpu")
    for how, runtime, kept in (
        (bench.How(threads=2), gpu.on("cpu"), []),
        (bench.How(), gpu, []),
        (bench.How(cpus=(1,)), gpu, [1]),
    ):
        place = Sim(noisy(0))
        bench.measure([bench.Entrant("a", "/models/a", runtime, "/feed")], how, place)
        assert not place.asked and all(cpus == kept for _, _, cpus in place.kept)


def test_a_place_that_is_lost_ends_the_measurement():
    with pytest.raises(PlaceLost, match="unplugged"):
        bench.measure(entrants("a"), bench.How(), Sim(noisy(0), {("a", "bench_round", 1): PlaceLost("unplugged")}))


def test_a_file_against_itself_is_no_difference_and_five_percent_is_one():
    """Processes differ by 1 % (one standard deviation), as they do; the machine drifts by 10 % meanwhile."""
    same = [compared(seed=s, between=0.01, drift=0.02) for s in range(100)]
    assert sum(r["verdict"] != "no difference" for r in same) <= 4
    slower = [compared(seed=s, between=0.01, drift=0.02, slower=1.05) for s in range(40)]
    assert sum(r["verdict"] == "slower" for r in slower) >= 38
    held = sum(r["ci95"][0] <= 1.05 <= r["ci95"][1] for r in slower)
    assert held >= 34, "the interval should hold the truth"


def test_rounds_of_one_process_do_not_show_what_differs_between_processes():
    held, seen = 0, 0
    for seed in range(40):
        place = Sim(noisy(seed, between=0.01))
        done = bench.measure(entrants("a", "b"), bench.How(seconds=3.0, processes=1, seed=seed), place)
        ratio = done.ratios({"b": "a"})["b"]
        held += ratio["ci95"][0] <= 1 <= ratio["ci95"][1]
        seen += ratio["verdict"] != "no difference"
    assert held < 20, "then there is no reason to start several"
    assert seen == 0, "which is why small differences are none then"


def test_on_a_busy_machine_the_fastest_tenth_is_compared():
    def time(name, process, turn):
        hit = random.Random(f"{name} {process}").random() < 0.6  # another process has its core most of the time
        rng = random.Random(f"{name} {process} {turn}")
        return [int(1e6 * rng.gauss(1, 0.005) * (2 if hit and k > 5 else 1)) for k in range(40)]

    done = bench.measure(entrants("a", "b"), bench.How(seconds=3.0), Sim(time))
    busy = done.ratios({"b": "a"})["b"]
    assert busy["of"] == "p10" and busy["ci95"][1] - busy["ci95"][0] < 0.02
    for timing in done.timings.values():
        timing.latency["others_cores"] = 0.0
    quiet = done.ratios({"b": "a"})["b"]
    assert quiet["of"] == "p50" and quiet["ci95"][1] - quiet["ci95"][0] > 0.1


@pytest.mark.parametrize(("text", "cpus"), [("", ()), ("0", (0,)), ("0-3,6", (0, 1, 2, 3, 6)), ("2, 1-2", (1, 2))])
def test_processors(text, cpus):
    assert bench.cpu_list(text) == cpus


@pytest.mark.parametrize("text", ["a", "1-", "3-1", "0,,1", "-1"])
def test_processors_that_cannot_be_read(text):
    with pytest.raises(UsageError, match="does not name processors"):
        bench.cpu_list(text)


# --- the worker's loop, with a clock of our own -------------------------------------------------------


class Clock:
    """A session on a clock of its own: run k takes ``times(k)`` nanoseconds."""

    inputs = ({"name": "x", "shape": [None, 1], "dtype": "float32"},)

    def __init__(self, monkeypatch, times):
        self.now, self.runs, self.times, self.seen = 0, 0, times, []
        monkeypatch.setattr(worker, "_clock", lambda: self.now)

    def run(self, feeds):
        self.seen.append(float(feeds["x"][0, 0]))
        self.now += self.times(self.runs)
        self.runs += 1


@pytest.fixture
def feed(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(3, dtype=np.float32).reshape(3, 1))
    (tmp_path / "feed.json").write_text(json.dumps({"count": 3, "inputs": ["x"], "files": {"x": "x.npy"}}))
    return str(tmp_path)


def start(session, feed, **changes):
    state = {"session": session}
    request = {"feed": feed, "keep": 32, "warmup_s": 1.0, **changes}
    return state, worker._bench_start(state, request, None)


def test_the_warm_up_ends_when_times_are_steady(monkeypatch, feed):
    rng = random.Random(0)
    session = Clock(monkeypatch, lambda k: int((1 + 4 * math.exp(-k / 60)) * rng.gauss(1e6, 1e4)))
    _, told = start(session, feed)
    assert told["first_ns"] == pytest.approx(5e6, rel=0.05) and told["warmup"]["settled"]
    assert session.times(session.runs) < 1.1e6, "it was still getting faster"
    assert told["warmup"]["runs"] == session.runs and told["warmup"]["seconds"] < 1


def test_a_warm_up_that_never_settles_says_so_when_its_time_is_up(monkeypatch, feed):
    session = Clock(monkeypatch, lambda k: 1_000_000 + 20_000 * k)
    _, told = start(session, feed, warmup_s=0.5)
    assert not told["warmup"]["settled"] and told["warmup"]["seconds"] == pytest.approx(0.5, abs=0.05)


def test_samples_take_turns_and_turns_keep_to_their_time(monkeypatch, feed):
    session = Clock(monkeypatch, lambda k: 1_000_000)
    state, _ = start(session, feed)
    before = session.runs
    turn = worker._bench_round(state, {"seconds": 0.02, "minimum": 1, "maximum": 100}, None)
    assert turn["ns"] == [1_000_000] * 20 and turn["ended_ns"] - turn["started_ns"] == 20_000_000
    assert session.runs == before + 2 + 20, "untimed ones, for 2 ms, bring the caches back"
    assert session.seen == [k % 3 for k in range(session.runs)]
    assert len(worker._bench_round(state, {"seconds": 0.02, "minimum": 1, "maximum": 7}, None)["ns"]) == 7
    assert len(worker._bench_round(state, {"seconds": 0.0, "minimum": 4, "maximum": 7}, None)["ns"]) == 4
    session.times = lambda k: 1_000_000_000
    before = session.runs
    slow = worker._bench_round(state, {"seconds": 0.1, "minimum": 1, "maximum": 100}, None)
    assert len(slow["ns"]) == 1 and session.runs == before + 2, "a slow model is not run for nothing"


def test_a_batch_is_samples_side_by_side(monkeypatch, feed):
    session = Clock(monkeypatch, lambda k: 1_000_000)
    state, _ = start(session, feed, batch=4)
    assert [s["x"].ravel().tolist() for s in state["samples"]] == [[0, 1, 2, 0]]


def test_the_garbage_collector_waits_while_a_turn_is_timed(monkeypatch, feed):
    import gc

    session = Clock(monkeypatch, lambda k: 0 if gc.isenabled() else 1_000_000)
    state, _ = start(session, feed)
    assert set(worker._bench_round(state, {"seconds": 0.01, "minimum": 1, "maximum": 5}, None)["ns"]) == {1_000_000}
    assert gc.isenabled()


# --- throughput and energy ------------------------------------------------------------------------------


def test_configurations():
    assert throughput.configurations(2) == [(1, 1), (2, 1), (1, 2)]
    assert throughput.configurations(6) == [(s, t) for t in (1, 2, 4, 6) for s in (1, 2, 4, 6) if s * t <= 6]
    assert throughput.configurations(4, threads=2) == [(1, 2), (2, 2)]
    assert throughput.configurations(2, streams=(1, 3), threads=1) == [(1, 1), (3, 1)]


def test_the_rate_counts_the_time_that_all_streams_ran():
    ms = 1_000_000
    one = {"ns": [10 * ms] * 10, "started_ns": 0, "ended_ns": 100 * ms}
    late = {"ns": [20 * ms] * 4, "started_ns": 30 * ms, "ended_ns": 110 * ms}
    assert throughput.rate([one]) == pytest.approx(100)
    assert throughput.rate([one, late]) == pytest.approx(150)
    assert throughput.rate([one, {"ns": [50 * ms], "started_ns": 0, "ended_ns": 50 * ms}]) == pytest.approx(110)


def test_energy_is_what_comes_on_top_of_idle(monkeypatch):
    monkeypatch.setattr(energy.time, "sleep", lambda s: None)
    place = Sim(lambda *_: [2_000_000] * 10, watts={"idle": 5.0, "a": 9.0})
    monkeypatch.setattr(energy.ThreadPoolExecutor, "submit", lambda pool, f, *args: Done(f(*args)))
    found = energy.measure(entrants("a"), bench.How(), place, lambda *_: None)["a"]
    assert found["joules"] == pytest.approx(4.0 * 0.002) and found["ci95"] == pytest.approx([0.008, 0.008])
    assert (found["watts"], found["idle_watts"], found["source"]) == (9.0, 5.0, "rapl")
    nothing = energy.measure(entrants("a"), bench.How(), Sim(noisy(0)), lambda *_: None)["a"]
    assert nothing["joules"] is None and nothing["reason"] == "no counters"


class Done:
    def __init__(self, value):
        self.result = lambda: value


# --- the whole command ----------------------------------------------------------------------------------


def quick(**changes):
    return Recipe(bench=Bench(seconds=0.1, rounds=3, **changes))


def test_the_document(fake_model, tmp_path):
    model = fake_model(delay_ms=0.2)
    ask = benching.Ask((1, 2), energy=True)
    made = api.bench([model, model], quick(processes=2, cpus="0"), ask=ask, out=tmp_path / "out")
    kept = bench_record.read(tmp_path / "out")
    assert kept == json.loads(json.dumps(made)) and kept["schema"] == "lepton-edge.bench/1"
    names = [r["name"] for r in kept["rows"]]
    assert names == [f"model.fake{n} batch {b}" for n in ("", " (2)") for b in (1, 2)]
    first = kept["rows"][0]
    assert first["device"] == {"name": "local", "title": "this machine", "kind": "measured"}
    assert first["latency"]["cpus"] == [0] and first["latency"]["processes"] == 2 and len(first["sha256"]) == 64
    assert sum(map(len, first["latency"]["samples_ns"])) == first["latency"]["count"] >= 30
    assert kept["rows"][1]["latency"]["batch"] == 2 and kept["rows"][1]["ratio"]["to"] == names[0]
    assert "reason" in first["energy"] and first["throughput"] is None
    there = kept["environments"]["local"]
    assert there["machine_id"] == there["host"]["machine_id"] and there["before"]["wall_s"] < there["after"]["wall_s"]
    assert there["host"]["cpu"] and there["after"]["unknown"] is not None
    text = (tmp_path / "out" / "bench.json").read_text()
    bench_record.write({"name": "[ 1, 2 ]", "rows": [[1, -2.5], []]}, tmp_path / "small.json")
    assert json.loads((tmp_path / "small.json").read_text()) == {"name": "[ 1, 2 ]", "rows": [[1, -2.5], []]}
    assert "[1,-2.5]" in (tmp_path / "small.json").read_text()
    assert "samples_ns" in text and len(text.splitlines()) < 3000, "a sample a line"


def test_throughput_of_streams(fake_model):
    ask = benching.Ask(throughput=True, streams=(1, 2))
    (row,) = api.bench([fake_model(delay_ms=1)], quick(threads=1), ask=ask)["rows"]
    one, two = row["throughput"]
    assert (one["streams"], two["streams"], two["threads"]) == (1, 2, 1) and two["count"] >= 20
    assert all(t["per_s_ci"][0] <= t["per_s"] <= t["per_s_ci"][1] and t["p50_ms"] >= 1 for t in (one, two))


def test_what_fails_is_a_row_with_its_error(fake_model, tmp_path):
    good, bad = fake_model(), fake_model("bad.fake", fail="error", fail_at=9)
    made = api.bench([good, bad], quick(), ask=benching.Ask())
    assert made["rows"][0]["latency"] and "told to fail" in made["rows"][1]["error"]["message"]
    with pytest.raises(LeptonError, match="told to fail"):
        api.bench([bad], quick())
    fixed = fake_model("fixed.fake", inputs=[{"name": "x", "shape": [1, 4], "dtype": "float32"}])
    rows = api.bench([fixed], quick(), ask=benching.Ask((1, 4)))["rows"]
    assert rows[0]["latency"] and "have a fixed batch" in rows[1]["error"]["message"]


def test_processors_that_are_not_there(fake_model):
    with pytest.raises(LeptonError, match=r"processors \[4095\] cannot be used here; usable are 0"):
        api.bench([fake_model()], quick(cpus="4095"))


def test_out_is_checked_before_anything_is_measured(fake_model, tmp_path):
    other = tmp_path / "other.json"
    other.write_text('{"schema": "something"}')
    with pytest.raises(UsageError, match="holds something other"):
        api.bench([fake_model()], quick(), out=other)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="holds something other"):
        api.bench([fake_model()], quick(), out=tmp_path / "file")
    assert other.read_text() == '{"schema": "something"}'
    for text in ("{", "[]", '{"schema": "lepton-edge.run/1"}'):
        other.write_text(text)
        with pytest.raises(LeptonError, match=r"other\.json: not "):
            bench_record.read(other)


def test_environments_of_different_machines_are_told_apart():
    host = {"machine_id": "a", "cpu": "x", "cores": 4, "isa": ["avx2"], "governor": "performance", "os": "Linux"}
    assert bench_record.differences({"host": host}, {"host": dict(host)}) == []
    other = {**host, "machine_id": "b", "governor": "powersave"}
    found = bench_record.differences({"host": host}, {"host": other})
    assert found == ["machine_id: a and b", "governor: performance and powersave"]


def test_the_ratio_names_who_it_is_to():
    done = bench.measure(entrants("a", "b"), bench.How(seconds=3.0), Sim(noisy(0, slower=1.2)))
    assert done.ratios({"b": "a"})["b"]["to"] == "a" and stats.median([1, 3]) == 2
    assert noise.row_doubts(done.timings["a"].latency) == []
