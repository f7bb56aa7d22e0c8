"""Wires components to pipelines, each of which reads like its algorithm."""
