"""What disturbs a measurement is seen and said; sensors are read from a machine made of files."""

import os
from pathlib import Path

import pytest

from lepton_edge import noise
from lepton_edge.host import host_info, machine_id
from lepton_edge.ondevice import power, readings


def machine(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return str(root)


CPU = "sys/devices/system/cpu"
PI = {
    "proc/stat": "cpu  100 0 50 1000 5 1 2 40 0 0\n",
    f"{CPU}/cpu0/cpufreq/scaling_governor": "ondemand\n",
    f"{CPU}/cpu0/cpufreq/scaling_driver": "cpufreq-dt\n",
    f"{CPU}/cpu0/cpufreq/scaling_cur_freq": "1800000\n",
    f"{CPU}/cpu1/cpufreq/scaling_governor": "ondemand\n",
    f"{CPU}/cpu1/cpufreq/scaling_cur_freq": "600000\n",
    "sys/class/thermal/thermal_zone0/temp": "81234\n",
    "sys/class/thermal/cooling_device0/type": "cpufreq-cpu0\n",
    "sys/class/thermal/cooling_device0/cur_state": "2\n",
    "sys/class/thermal/cooling_device1/type": "Fan\n",
    "sys/class/thermal/cooling_device1/cur_state": "4\n",
    readings.PI_FILE: "50005\n",
    "proc/self/cgroup": "0::/user.slice\n",
    "sys/fs/cgroup/user.slice/cpu.stat": "usage_usec 5\nnr_periods 9\nnr_throttled 3\nthrottled_usec 250000\n",
    "proc/77/stat": "77 (a b) c) R 1 1 1 0 -1 4194560 1 0 0 0 150 50 0 0 20 0 1 0 1 1 1",
    "proc/77/task/77/status": "voluntary_ctxt_switches:\t5\nnonvoluntary_ctxt_switches:\t7\n",
    "proc/77/task/78/status": "voluntary_ctxt_switches:\t1\nnonvoluntary_ctxt_switches:\t2\n",
}


def test_readings_of_a_board(tmp_path):
    got = readings.snapshot([77], machine(tmp_path, PI))
    tick = os.sysconf("SC_CLK_TCK")
    assert (got["busy_cpu_s"], got["steal_cpu_s"]) == (193 / tick, 40 / tick)
    assert got["ours_cpu_s"] == 200 / tick and got["switches"] == {"voluntary": 6, "involuntary": 9}
    assert got["governor"] == {"governor": "ondemand", "driver": "cpufreq-dt"}
    assert got["frequency_mhz"] == [1800.0, 600.0] and got["temperature_c"] == 81.2
    assert got["throttle_flags"] == {
        "now": ["under-voltage", "throttled"],
        "since_boot": ["under-voltage", "throttled"],
    }
    assert got["cooling"] == 2 and got["quota"] == {"throttled": 3, "seconds": 0.25}
    assert got["throttle_events"] is None and "throttle_events" not in got["unknown"]


def test_readings_of_a_pc_with_cgroup_v1_and_a_battery(tmp_path):
    files = {
        f"{CPU}/cpu0/thermal_throttle/core_throttle_count": "4\n",
        f"{CPU}/cpu0/thermal_throttle/package_throttle_count": "2\n",
        f"{CPU}/cpu0/cpufreq/scaling_governor": "powersave\n",
        f"{CPU}/cpu0/cpufreq/scaling_driver": "intel_pstate\n",
        "proc/self/cgroup": "12:memory:/x\n3:cpu,cpuacct:/docker/1\n0::/\n",
        "sys/fs/cgroup/cpu/docker/1/cpu.stat": "nr_periods 9\nnr_throttled 8\nthrottled_time 1500000000\n",
        "sys/class/power_supply/BAT0/type": "Battery\n",
        "sys/class/power_supply/BAT0/status": "Discharging\n",
        "sys/class/power_supply/mouse/type": "Battery\n",
        "sys/class/power_supply/mouse/scope": "Device\n",
        "sys/class/power_supply/mouse/status": "Discharging\n",
    }
    got = readings.snapshot([], machine(tmp_path, files))
    assert got["throttle_events"] == 6 and got["quota"] == {"throttled": 8, "seconds": 1.5} and got["on_battery"]
    (tmp_path / "sys/class/power_supply/BAT0/status").write_text("Charging\n")
    assert readings.snapshot([], str(tmp_path))["on_battery"] is False


def test_what_cannot_be_read_is_told_with_the_reason(tmp_path):
    got = readings.snapshot([1], str(tmp_path))
    missing = {"busy_cpu_s", "governor", "frequency_mhz", "temperature_c", "throttle_events", "quota"}
    assert all(got[k] is None for k in missing) and missing <= set(got["unknown"])
    assert all(len(why) > 10 for why in got["unknown"].values()) and got["on_battery"] is None


def test_readings_of_this_machine():
    got = readings.snapshot([os.getpid()])
    assert got["wall_s"] > 0 and (got["busy_cpu_s"] is None or got["busy_cpu_s"] > got["ours_cpu_s"] > 0)


def window(**changes):
    """Readings around ten quiet seconds on four cores; ``after`` is what changed in between."""
    before = {
        "wall_s": 0.0, "cores": 4, "busy_cpu_s": 100.0, "steal_cpu_s": 0.0, "ours_cpu_s": 50.0, "temperature_c": 60.0,
        "frequency_mhz": [2000.0, 1000.0], "throttle_events": 5, "throttle_flags": None, "cooling": 0,
        "quota": {"throttled": 3, "seconds": 1.0}, "on_battery": False,
        "governor": {"governor": "schedutil", "driver": "cpufreq-dt"},
    }  # fmt: skip
    return [(before, {**before, "wall_s": 10.0, "busy_cpu_s": 110.5, "ours_cpu_s": 60.0, **changes})]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"throttle_events": 9, "temperature_c": 96.0},
            ["throttled while it was measured (4 events) at 96 °C", "cool"],
        ),
        ({"throttle_flags": {"now": ["under-voltage"]}}, ["(under-voltage)", "the board's own power supply"]),
        ({"cooling": 2}, ["slower clock"]),
        ({"frequency_mhz": [1500.0, 1500.0]}, ["fell from 2000 to 1500 MHz"]),
        ({"quota": {"throttled": 10, "seconds": 1.5}}, ["quota", "7 times (0.50 s)", "--threads"]),
        ({"busy_cpu_s": 120.0}, ["other processes kept 1.0 of 4 cores busy", "--cpus"]),
        ({"steal_cpu_s": 1.0}, ["hypervisor", "10%"]),
        ({"governor": {"governor": "powersave", "driver": "cpufreq-dt"}}, ["powersave", "cpupower"]),
        ({"on_battery": True}, ["battery", "plug it in"]),
    ],
)
def test_what_disturbs_is_said_with_what_to_do(changes, said):
    (text,) = noise.doubts(window(**changes))
    assert all(part in text for part in said), text


def test_a_quiet_machine_is_not_doubted():
    assert noise.doubts(window()) == [] and noise.doubts([]) == []
    assert noise.doubts(window(governor={"governor": "powersave", "driver": "intel_pstate"})) == []
    nothing = {key: None for key in window()[0][0]}
    assert noise.doubts([(nothing, nothing)]) == [] and noise.others([(nothing, nothing)]) is None


def latency(**changes):
    figures = {f"p{p}_ms": 1.0 for p in (50, 90, 95, 99)} | {f"p{p}_worth": 900 for p in (50, 90, 95, 99)}
    rest = {"settled": True, "warmup": [{"seconds": 1.0}], "involuntary_per_s": 0.0, "count": 900}
    return {**figures, **rest, "samples_ns": [[1000, 1001, 999]] * 30, **changes}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"settled": False}, "not steady after 1.0 s of warm-up"),
        ({"samples_ns": [[1000 + 5 * r] for r in range(30)]}, "grew by 14% over the rounds: let the machine cool"),
        ({"samples_ns": [[1200 - 5 * r] for r in range(30)]}, "fell by 13% over the rounds: see what else runs"),
        ({"involuntary_per_s": 200.0}, "took its processor away 200 times a second"),
        ({"p99_ms": None, "count": 300, "p99_worth": 300}, "300 samples are too few for p99 (p99 needs 36"),
        ({"p99_ms": None, "p99_worth": 80}, "900 samples, worth 80 independent ones, are too few for p99"),
    ],
)
def test_what_samples_say_against_themselves(changes, said):
    (text,) = noise.row_doubts(latency(**changes))
    assert said in text, text
    assert noise.row_doubts(latency()) == []


# --- energy -------------------------------------------------------------------------------------------

RAPL = "sys/class/powercap/intel-rapl:0"
PACKAGE = {f"{RAPL}/name": "package-0\n", f"{RAPL}/energy_uj": "500\n", f"{RAPL}/max_energy_range_uj": "1000000\n"}


def test_rapl_counts_packages_and_starts_again_at_its_limit(tmp_path):
    part = {"sys/class/powercap/intel-rapl:0:0/name": "core\n", "sys/class/powercap/intel-rapl:0:0/energy_uj": "1\n"}
    root = machine(tmp_path, {**PACKAGE, **part, "sys/class/powercap/intel-rapl:1/name": "psys\n"})
    assert power.probe(root) == {"source": "rapl", "of": "the processor packages", "reason": ""}
    assert power.spent({"a": (900_000, 1_000_000)}, {"a": (100_000, 1_000_000)}) == 0.2
    assert power.spent({"a": (1, 9), "b": (0, 9)}, {"a": (3, 9), "b": (5, 9)}) == 7e-6
    got = power.trace(0.01, root)
    assert got["joules"] == 0 and got["source"] == "rapl" and got["seconds"] >= 0.01


def test_rapl_that_is_closed_says_how_to_open_it(tmp_path, monkeypatch):
    root = machine(tmp_path, PACKAGE)
    real = Path.read_text

    def closed(path, *args, **kwargs):
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **kwargs)

    monkeypatch.setattr(Path, "read_text", closed)
    got = power.trace(0.01, root)
    assert got["source"] is None and got["joules"] is None
    assert "root only" in got["reason"] and "chmod a+r" in got["reason"] and "no battery" in got["reason"]


@pytest.mark.parametrize(
    ("files", "watts", "of"),
    [
        ({"sys/class/hwmon/hwmon1/name": "ina226\n", "sys/class/hwmon/hwmon1/power1_input": "7500000\n"}, 7.5, "rail"),
        (
            {
                "sys/class/hwmon/hwmon2/name": "ina3221\n",
                "sys/class/hwmon/hwmon2/in1_label": "VDD_CPU\n",
                "sys/class/hwmon/hwmon2/in1_input": "5000\n",
                "sys/class/hwmon/hwmon2/curr1_input": "100\n",
                "sys/class/hwmon/hwmon2/in2_label": "VDD_IN\n",
                "sys/class/hwmon/hwmon2/in2_input": "19000\n",
                "sys/class/hwmon/hwmon2/curr2_input": "500\n",
            },
            9.5,
            "the board (rail VDD_IN)",
        ),
        (
            {
                "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/rail_name_0": "POM_5V_IN\n",
                "sys/bus/i2c/drivers/ina3221x/6-0040/iio:device0/in_power0_input": "4200\n",
            },
            4.2,
            "the board (rail POM_5V_IN)",
        ),
        (
            {
                "sys/class/power_supply/BAT0/type": "Battery\n",
                "sys/class/power_supply/BAT0/status": "Discharging\n",
                "sys/class/power_supply/BAT0/current_now": "-2000000\n",
                "sys/class/power_supply/BAT0/voltage_now": "8000000\n",
            },
            16.0,
            "the whole machine (battery)",
        ),
        (
            {
                "sys/class/power_supply/BAT1/type": "Battery\n",
                "sys/class/power_supply/BAT1/status": "Discharging\n",
                "sys/class/power_supply/BAT1/power_now": "11000000\n",
            },
            11.0,
            "battery",
        ),
    ],
)
def test_power_sensors(tmp_path, files, watts, of):
    got = power.trace(0.12, machine(tmp_path, files), every=0.02)
    assert of in got["of"] and got["joules"] / got["seconds"] == pytest.approx(watts) and got["seconds"] >= 0.1


def test_a_battery_that_is_charged_is_no_source(tmp_path):
    files = {"sys/class/power_supply/BAT0/type": "Battery\n", "sys/class/power_supply/BAT0/status": "Charging\n"}
    assert "not being emptied" in power.probe(machine(tmp_path, files))["reason"]


# --- machines are told apart --------------------------------------------------------------------------


def test_a_machine_id_is_stable_and_no_name(tmp_path):
    files = {"etc/machine-id": "abcdef\n", "proc/cpuinfo": "model name : Some CPU\n"}
    one = machine(tmp_path / "one", files)
    assert machine_id(one) == machine_id(one) == host_info(one)["machine_id"] and len(machine_id(one)) == 16
    assert "abcdef" not in machine_id(one)
    clone = machine(tmp_path / "two", {**files, "proc/device-tree/serial-number": "10000000abc\0"})
    assert machine_id(clone) != machine_id(one), "two boards with copies of one memory card"
