"""The accepted models behind the Open Inference Protocol: catalogue, policies, runtime, protocol, server."""
