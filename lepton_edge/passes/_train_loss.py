"""What fine-tuning minimises: the labels' cross-entropy, the distance to the original's answers, or some of both.

Distillation: Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network", arXiv:1503.02531: the student's
softened answers follow the teacher's, T^2 KL(p_T || q_T). A softmax gives its logits up to a constant by its logarithm,
so the models need no change. Outputs that hold no classes follow the original's by their mean squared difference,
relative to its variance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lepton_edge.passes._train_samples import Target

SMALLEST = 1e-7  # of a probability


def make_loss(target: Target, distil: float, temperature: float) -> Callable:
    """loss(outputs, answers, labels, others, share): a scalar, of the model's outputs, the original's, labels int64
    [n], and for samples that were mixed in pairs the labels of the others and the share of the first.

    ``distil`` is the share of the target's loss that the original's answers get; other outputs follow those anyway.
    """
    import tensorflow as tf

    def loss(outputs: Sequence[Any], answers: Sequence[Any], labels: Any, others: Any, share: Any) -> Any:
        total = tf.constant(0.0)
        for index, output in enumerate(outputs):
            output = tf.cast(output, tf.float32)
            if index != target.index or not target.kind:
                total += apart(output, tf.cast(answers[index], tf.float32))
                continue
            if distil < 1:
                own, theirs = (labelled(output, y, target) for y in (labels, others))
                total += (1 - distil) * (share * own + (1 - share) * theirs)
            if distil > 0:
                total += distil * softened(output, tf.cast(answers[index], tf.float32), target, temperature)
        return total

    return loss


def labelled(output: Any, labels: Any, target: Target) -> Any:
    """Mean cross-entropy of outputs [n, width] with labels [n]."""
    import tensorflow as tf

    if target.kind == "sigmoid" or target.width == 1:
        wanted = tf.cast(labels[:, None], tf.float32) if target.width == 1 else tf.one_hot(labels, target.width)
        return tf.reduce_mean(tf.nn.sigmoid_cross_entropy_with_logits(wanted, logits(output, target)))
    return tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits(output, target)))


def softened(output: Any, answer: Any, target: Target, temperature: float) -> Any:
    """T^2 times the mean divergence of softened answers [n, width]; 0 where they are the same."""
    import tensorflow as tf

    ours, theirs = logits(output, target) / temperature, logits(answer, target) / temperature
    if target.kind == "sigmoid" or target.width == 1:
        wanted = tf.sigmoid(theirs)
        both = [tf.nn.sigmoid_cross_entropy_with_logits(wanted, z) for z in (ours, theirs)]
        return temperature**2 * tf.reduce_mean(both[0] - both[1])
    wanted = tf.nn.softmax(theirs)
    gap = tf.nn.log_softmax(theirs) - tf.nn.log_softmax(ours)
    return temperature**2 * tf.reduce_mean(tf.reduce_sum(wanted * gap, axis=-1))


def logits(output: Any, target: Target) -> Any:
    """The logits behind an output, those of a softmax up to a constant."""
    import tensorflow as tf

    if target.kind == "softmax":
        return tf.math.log(tf.maximum(output, SMALLEST))
    if target.kind == "sigmoid":
        inside = tf.clip_by_value(output, SMALLEST, 1 - SMALLEST)
        return tf.math.log(inside) - tf.math.log1p(-inside)
    return output


def apart(output: Any, answer: Any) -> Any:
    """Mean squared difference of two tensors over the variance of the second, so that no output's unit matters."""
    import tensorflow as tf

    around = tf.math.reduce_variance(answer)
    return tf.reduce_mean(tf.square(output - answer)) / tf.maximum(around, 1e-6)
