"""Serve VL-SAM to Label Studio: tasks in, predictions out. `model` finds the objects."""

from vlsam._shadowing import check_package

check_package("model")
