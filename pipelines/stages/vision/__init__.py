"""Stages that make pictures, train a classifier, and measure one."""
