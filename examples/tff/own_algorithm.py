"""Federated averaging written out, for `fedpipe simulate`: change any part of it.

    simulation: {process: own_algorithm.py:build}

As the tutorial "Building Your Own Federated Learning Algorithm" of TensorFlow Federated has it: the server's
initialisation, a broadcast, the clients' update by SGD, a federated mean, the server's update.
"""

import tensorflow as tf
import tensorflow_federated as tff

LEARNING_RATE = 0.01


def build(model_fn):
    """The federated computations `initialize` and `next`; the state is the list of trainable weights."""
    with tf.Graph().as_default():  # only to know the types
        model = model_fn()
        weights_type = tff.types.to_type(
            [(v.dtype.as_numpy_dtype, v.shape.as_list()) for v in model.trainable_variables]
        )
        batches_type = tff.SequenceType(tff.types.tensorflow_to_type(model.input_spec))

    @tff.tensorflow.computation
    def server_init():
        return [v.read_value() for v in model_fn().trainable_variables]

    @tff.tensorflow.computation(weights_type, batches_type)
    def client_update(server_weights, batches):
        model = model_fn()

        @tf.function
        def train(server_weights, batches):
            weights = model.trainable_variables
            for variable, value in zip(weights, server_weights, strict=True):
                variable.assign(value)
            for batch in batches:
                with tf.GradientTape() as tape:
                    output = model.forward_pass(batch)
                for variable, gradient in zip(weights, tape.gradient(output.loss, weights), strict=True):
                    variable.assign_sub(LEARNING_RATE * gradient)
            return [v.read_value() for v in weights]

        return train(server_weights, batches)

    @tff.tensorflow.computation(weights_type, weights_type)
    def server_update(server_weights, mean_weights):
        return mean_weights

    @tff.federated_computation
    def initialize():
        return tff.federated_eval(server_init, tff.SERVER)

    @tff.federated_computation(
        tff.FederatedType(weights_type, tff.SERVER), tff.FederatedType(batches_type, tff.CLIENTS)
    )
    def next_round(server_weights, batches):
        at_clients = tff.federated_broadcast(server_weights)
        mean_weights = tff.federated_mean(tff.federated_map(client_update, (at_clients, batches)))
        return tff.federated_map(server_update, (server_weights, mean_weights))

    return initialize, next_round
