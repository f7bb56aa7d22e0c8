"""Kubeflow: pipeline files, and the clients of KFP and Kubernetes that submit, schedule, follow and diagnose runs."""
