"""TVM's schedule primitives, without the checks of argument types that TVM makes in Python at every call: they take a
quarter of a schedule's time. C++ checks types, too."""

from __future__ import annotations

from tvm import s_tir


class Schedule(s_tir.Schedule):
    """Schedule of a kernel, as TVM's."""


for _name, _method in vars(s_tir.Schedule).items():
    if hasattr(_method, "__wrapped__"):  # as functools.wraps leaves it
        setattr(Schedule, _name, _method.__wrapped__)
