"""Whether there is a C compiler here, for the tests of what is compiled."""

import pytest

from marble_sweep.kernels.compiler import CompilerError, native_compiler


def has_compiler() -> bool:
    try:
        native_compiler()
    except CompilerError:
        return False
    return True


needs_compiler = pytest.mark.skipif(not has_compiler(), reason="no C compiler is here")
