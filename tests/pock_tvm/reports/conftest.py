"""The contributions that tests of choosing look at, too."""

from tests.pock_tvm.choosing.conftest import found

__all__ = ["found"]
