"""Training of a compressed ONNX model towards the answers of the model it was made of."""

from __future__ import annotations

from pathlib import Path

from lepton_edge.errors import UsageError
from lepton_edge.passes._onnx_file import put
from lepton_edge.passes._samples import Progress, silent

REQUIRES = ("torch>=2.9", "onnx>=1.17", "onnxruntime>=1.20")
COST = 1.0


def run(
    src: str,
    dst: str,
    *,
    data: str,
    teacher: str = "",
    teacher_sha256: str = "",
    epochs: int = 30,
    batch_size: int = 32,
    learning_rate: float = 0.01,
    temperature: float = 4.0,
    inner: float = 1.0,
    distil: float = 0.7,
    augment: str = "",
    held_out: float = 0.1,
    patience: int = 0,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict:
    """Write `dst`, the float ONNX model `src` with weights trained on the feed folder `data`.

    It learns what the ONNX model `teacher` answers (the model that `src` was made of; `teacher_sha256` only tells two
    files of one name apart), and, where the samples have them, labels, for which the share `distil` leaves room.
    `temperature` is that of class scores, `inner` the weight of inner tensors that both models have. `learning_rate` is
    relative to the size of each weight; `augment` is none or some of "mix,flip,shift". Zeros of weights stay zero. The
    weights of the epoch with the least loss on the share `held_out` of the samples are kept; training ends after
    `patience` epochs without a better one (0: never). An interrupted run is taken up. A GPU is used where there is one.

    Returns epochs, loss and held_out_loss by epoch, start_loss, best_epoch, training_s, samples, labelled, compared
    (the tensors), norms (batch norms that were put back for the time: with 1,000 samples or more), zeros_kept, device.
    Raises LeptonError for options that make no sense, a model that is quantized already, a teacher that does not fit,
    operators that cannot be differentiated, and data of other inputs.
    """
    from lepton_edge.quant.prepare import prepare
    from lepton_edge.tuning import core
    from lepton_edge.tuning.samples import Rows

    if not teacher:
        raise UsageError("finetune needs a teacher", "name the model that it was made of with --teacher")
    options = core.Options(
        epochs, batch_size, learning_rate, temperature, inner, distil, augment, held_out, patience, seed
    )
    options.check()
    student, original = prepare(src), prepare(teacher)
    name = Path(src).name
    rows = Rows(data, student.inputs, name)
    key = core.key_of(__file__, src, rows, vars(options), [teacher_sha256 or Path(teacher).name])
    made = core.tune(student, original, rows, options, name=name, key=key, told=progress or silent)
    put(made.net, dst)
    return {**made.facts, "notes": [core.fall(made.facts), *made.notes]}
