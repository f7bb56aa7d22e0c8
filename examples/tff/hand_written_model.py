"""A model written by hand for TensorFlow Federated: softmax regression of four features and three classes.

    simulation: {model: hand_written_model.py:build}

Its variables have the shapes of the Keras model of `model`, in the same order, which is evaluated and exported. As the
tutorial "Implementing Custom Federated Algorithms, Part 1" and "Federated Learning for Image Classification" of
TensorFlow Federated write it.
"""

import collections

import tensorflow as tf
import tensorflow_federated as tff

FEATURES, CLASSES = 4, 3


class SoftmaxRegression(tff.learning.models.VariableModel):
    """softmax(x W + b), with sums as metrics: they are added over clients, then divided."""

    def __init__(self):
        self._kernel = tf.Variable(tf.zeros((FEATURES, CLASSES)), name="kernel", trainable=True)
        self._bias = tf.Variable(tf.zeros((CLASSES,)), name="bias", trainable=True)
        self._sums = [tf.Variable(0.0, name=name, trainable=False) for name in ("examples", "loss_sum", "right")]

    @property
    def trainable_variables(self):
        return [self._kernel, self._bias]

    @property
    def non_trainable_variables(self):
        return []

    @property
    def local_variables(self):
        return self._sums

    @property
    def input_spec(self):
        return collections.OrderedDict(
            x=tf.TensorSpec((None, FEATURES), tf.float32), y=tf.TensorSpec((None,), tf.int64)
        )

    @tf.function
    def predict_on_batch(self, x, training=True):
        return tf.nn.softmax(tf.matmul(x, self._kernel) + self._bias)

    @tf.function
    def forward_pass(self, batch_input, training=True):
        predicted = self.predict_on_batch(batch_input["x"], training)
        labels = batch_input["y"]
        loss = tf.reduce_mean(tf.keras.losses.sparse_categorical_crossentropy(labels, predicted))
        count = tf.shape(labels)[0]
        right = tf.equal(tf.argmax(predicted, axis=1), labels)
        examples, loss_sum, correct = self._sums
        examples.assign_add(tf.cast(count, tf.float32))
        loss_sum.assign_add(loss * tf.cast(count, tf.float32))
        correct.assign_add(tf.reduce_sum(tf.cast(right, tf.float32)))
        return tff.learning.models.BatchOutput(loss=loss, predictions=predicted, num_examples=count)

    @tf.function
    def report_local_unfinalized_metrics(self):
        examples, loss_sum, right = self._sums
        return collections.OrderedDict(num_examples=[examples], loss=[loss_sum, examples], accuracy=[right, examples])

    def metric_finalizers(self):
        mean = tf.function(lambda sums: sums[0] / sums[1])
        return collections.OrderedDict(num_examples=tf.function(lambda sums: sums[0]), loss=mean, accuracy=mean)

    @tf.function
    def reset_metrics(self):
        for variable in self._sums:
            variable.assign(0.0)


def build():
    """A new model at each call, as TFF wants it."""
    return SoftmaxRegression()
