"""Stages, artifacts, execution, tracking and reports; knows no maths."""
