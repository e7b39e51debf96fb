"""Writes one Keras 2 model as .h5 and SavedModel, or a plain tf.Module: `python make_tfkeras.py NAME FOLDER`."""

import os
import sys
from pathlib import Path


def module(tf, folder):
    class Filter(tf.Module):
        def __init__(self):
            super().__init__()
            self.kernel = tf.Variable(tf.random.stateless_normal((16, 8), (1, 2)))
            self.shift = tf.Variable(tf.random.stateless_normal((8,), (3, 4)))

        @tf.function(input_signature=[tf.TensorSpec((None, 16), name="x")])
        def __call__(self, x):
            y = tf.nn.relu(x @ self.kernel + self.shift)
            return {"scores": tf.nn.softmax(y), "norm": tf.norm(y, axis=-1, keepdims=True)}

    made = Filter()
    tf.saved_model.save(made, str(folder / "tfkeras_module_savedmodel"), signatures=made.__call__)


def main() -> None:
    os.environ |= {"TF_CPP_MIN_LOG_LEVEL": "2", "TF_USE_LEGACY_KERAS": "1"}
    import tensorflow as tf
    import tf_keras

    sys.path.insert(0, str(Path(__file__).parent))
    from make_keras import written

    name, folder = sys.argv[1], Path(sys.argv[2])
    tf_keras.utils.set_random_seed(1)
    if name == "module":
        return module(tf, folder)
    model = written(tf_keras, name)
    model.save(folder / f"tfkeras_{name}.h5")
    model.save(folder / f"tfkeras_{name}_savedmodel")


if __name__ == "__main__":
    main()
