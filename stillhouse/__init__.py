"""Stillhouse: the training set of a distilled student, made out of its teacher.

The folders `pipeline/`, `stages/` and `schemas/` belong to this package by symbolic links. They are imported
as `stillhouse.pipeline` and so on, installed or in a checkout, so that a user's own `schemas` cannot come first.
"""
