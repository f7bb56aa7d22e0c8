"""Submits, schedules, follows and diagnoses runs on Kubeflow, through the clients of KFP and Kubernetes."""
