"""Until pipeline/dataset has moved: old names."""
# ruff: noqa
from stillhouse.pipeline.console import message as say
