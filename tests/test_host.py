"""Host facts from made-up /proc and /sys trees, and the doctor's checks from made-up environments."""

import json
import time
from pathlib import Path

import pytest

from lepton_edge import doctor, host

AVX2 = "processor\t: 0\nmodel name\t: Intel(R) Core(TM) i5-7200U\nflags\t\t: fpu avx avx2 fma f16c\ncpu MHz\t: 800.5\n"
PI5 = (
    "processor\t: 0\nFeatures\t: fp asimd asimdhp asimddp\nCPU part\t: 0xd0b\n\nprocessor\t: 1\n"
    "Features\t: fp\n\nModel\t\t: Raspberry Pi 5 Model B Rev 1.0\n"
)


def tree(root: Path, files: dict[str, str]) -> Path:
    """A fake file system root."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_this_host_is_plain_data_and_cheap():
    host.host_info()
    start = time.perf_counter()
    info = host.host_info()
    assert time.perf_counter() - start < 1
    assert json.loads(json.dumps(info, allow_nan=False)) == info
    assert info["cores"] >= 1 and info["cpu"] and info["python"] and "numpy" in info["packages"]
    for key in ("governor", "temperature_c"):
        assert (info[key] is None) == (key in info["unknown"])


def test_a_host_with_everything(tmp_path):
    root = tree(
        tmp_path,
        {
            "proc/cpuinfo": AVX2,
            "proc/meminfo": "MemTotal:  8388608 kB\nMemAvailable: 4194304 kB\n",
            "etc/os-release": 'NAME=x\nPRETTY_NAME="Tiny Linux 1"\n',
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave\n",
            "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": "1500000\n",
            "sys/class/thermal/thermal_zone0/temp": "41000\n",
            "sys/class/thermal/thermal_zone1/temp": "55500\n",
        },
    )
    info = host.host_info(root)
    assert info["cpu"] == "Intel(R) Core(TM) i5-7200U" and info["isa"] == ["avx", "avx2", "fma", "f16c"]
    assert (info["memory_gb"], info["available_gb"]) == (8.0, 4.0)
    assert (info["governor"], info["frequency_mhz"], info["temperature_c"]) == ("powersave", 1500.0, 55.5)
    assert info["os"].startswith("Tiny Linux 1, ") and info["unknown"] == {}


def test_a_host_with_nothing(tmp_path):
    info = host.host_info(tmp_path)
    assert info["isa"] == [] and info["governor"] is None and info["frequency_mhz"] is None
    assert set(info["unknown"]) >= {"governor", "frequency_mhz", "temperature_c"}
    assert info["cgroup"] == {"version": None, "cpus": None, "memory_gb": None}


def test_frequency_falls_back_to_cpuinfo(tmp_path):
    assert host.host_info(tree(tmp_path, {"proc/cpuinfo": AVX2}))["frequency_mhz"] == 800.5


def test_arm_board_is_named_by_board_and_core(tmp_path):
    root = tree(tmp_path, {"proc/cpuinfo": PI5})
    assert host.cpu_name(root) == "Raspberry Pi 5 Model B Rev 1.0 Cortex-A76"
    assert host.isa_features(root) == ["neon", "fp16", "dotprod"]


@pytest.mark.parametrize(
    ("isa", "words"),
    [
        (["avx2", "avx512f", "avx512_vnni"], "VNNI: U8S8 at full range is exact"),
        (["avx2", "avx_vnni"], "VNNI: U8S8 at full range is exact"),
        (["avx2", "avx512_vnni", "amx_int8"], "AMX"),
        (["avx2"], "AVX2 without VNNI: U8S8 saturates"),
        (["avx2", "avx512f"], "AVX-512 without VNNI: U8S8 saturates"),
        (["neon", "dotprod", "i8mm"], "i8mm"),
        (["neon", "dotprod"], "dotprod: S8S8"),
        (["neon"], "NEON without dotprod"),
        (["avx"], "no int8 instructions known"),
        ([], "unknown"),
    ],
)
def test_int8_advice(isa, words):
    assert words in doctor.int8_advice(isa)
    assert ("7-bit" in doctor.int8_advice(isa)) == ("saturates" in words)


def test_cgroup_v2_takes_the_tightest_level(tmp_path):
    root = tree(
        tmp_path,
        {
            "proc/self/cgroup": "0::/a/b\n",
            "sys/fs/cgroup/cgroup.controllers": "cpu memory\n",
            "sys/fs/cgroup/a/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/a/memory.max": "1073741824\n",
            "sys/fs/cgroup/a/b/cpu.max": "max 100000\n",
            "sys/fs/cgroup/a/b/memory.max": "max\n",
        },
    )
    assert host.cgroup_limits(root) == {"version": 2, "cpus": 1.5, "memory_gb": 1.0}


def test_cgroup_v1_and_its_word_for_unlimited(tmp_path):
    files = {
        "proc/self/cgroup": "4:memory:/box\n1:cpu,cpuacct:/box\n0::/\n",
        "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "50000\n",
        "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000\n",
        "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "9223372036854771712\n",
    }
    assert host.cgroup_limits(tree(tmp_path, files)) == {"version": 1, "cpus": 0.5, "memory_gb": None}
    tree(tmp_path, {"sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "-1\n"})
    assert host.cgroup_limits(tmp_path)["cpus"] is None


def test_cgroup_path_of_the_host_seen_from_a_container(tmp_path):
    files = {
        "proc/self/cgroup": "0::/../not/here\n",
        "sys/fs/cgroup/cgroup.controllers": "",
        "sys/fs/cgroup/memory.max": "536870912\n",
    }
    assert host.cgroup_limits(tree(tmp_path, files))["memory_gb"] == 0.5


def test_doctor_on_this_machine(tmp_path):
    checks = doctor.doctor_checks(tmp_path / "not" / "there")
    assert all(set(entry) == {"check", "status", "detail", "fix"} for entry in checks)
    assert {entry["status"] for entry in checks} <= {"ok", "warn", "missing", "error"}
    assert all(entry["fix"] for entry in checks if entry["status"] in ("missing", "error"))
    names = [entry["check"] for entry in checks]
    assert {"python", "processor", "memory and limits", "cache"} <= set(names)
    assert "extra onnx" in names and "extra all" not in names


def test_doctor_reads_extras_from_the_package_itself():
    table = doctor.extras_of("lepton-edge")
    assert any(need.startswith("onnxruntime") for need in table["onnx"])
    assert doctor.extras_of("no-such-distribution") == {}


def test_doctor_names_what_is_missing_and_the_command(monkeypatch):
    monkeypatch.setattr(doctor, "package_versions", lambda names: {n: "1.0" for n in names if n == "onnx"})
    entry = doctor._check_extra("onnx", ["onnx>=0.9", "onnxruntime>=1.20"])
    assert (entry["status"], entry["fix"]) == ("missing", "pip install 'lepton-edge[onnx]'")
    assert entry["detail"] == "not installed: onnxruntime>=1.20"
    assert doctor._check_extra("onnx", ["onnx>=2"])["detail"] == "onnx 1.0 is installed, >=2 is needed"
    assert doctor._check_extra("onnx", ["onnx>=1"]) == doctor._entry("extra onnx", "ok", "onnx 1.0")


def test_doctor_knows_the_clashes():
    clash = doctor._check_numpy({"tflite-runtime": "2.14.0", "numpy": "2.1.3"})
    assert clash[0]["status"] == "error" and "numpy<2" in clash[0]["fix"]
    assert doctor._check_numpy({"tflite-runtime": "2.14.0", "numpy": "1.26.4"}) == []
    assert doctor._check_numpy({"numpy": "2.1.3"}) == []
    assert doctor._check_tflite_runtime({}, (3, 12))[0]["status"] == "warn"
    assert doctor._check_tflite_runtime({}, (3, 11)) == []
    pair = doctor._check_keras({"tensorflow": "2.21.0", "tf-keras": "2.19.0", "keras": "3.1.0"})
    assert pair[0]["status"] == "error" and pair[0]["fix"] == "pip install 'tf-keras~=2.21.0'"
    old = doctor._check_keras({"tensorflow": "2.16.1", "keras": "2.15.0"})
    assert old[0]["check"] == "tensorflow and keras" and old[0]["status"] == "error"
    assert doctor._check_keras({}) == []


def test_doctor_warns_of_tight_limits(tmp_path):
    files = {
        "proc/meminfo": "MemTotal: 8388608 kB\nMemAvailable: 8000000 kB\n",
        "proc/self/cgroup": "0::/\n",
        "sys/fs/cgroup/cgroup.controllers": "",
        "sys/fs/cgroup/memory.max": "1073741824\n",
    }
    entry = doctor._check_limits(tree(tmp_path, files))[0]
    assert entry["status"] == "warn" and "cgroup v2 allows 1.0 GB" in entry["detail"]
    tree(tmp_path, {"sys/fs/cgroup/memory.max": "max\n", "sys/fs/cgroup/cpu.max": "10000 100000\n"})
    entry = doctor._check_limits(tmp_path)[0]
    assert entry["status"] == "warn" and "0.1 CPUs" in entry["detail"] and "quota" in entry["fix"]


def test_doctor_measures_the_cache(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "blob").write_bytes(bytes(5000))
    assert doctor.folder_size(tmp_path) == 5000
    assert str(tmp_path) in doctor._check_cache(tmp_path)[0]["detail"]
