"""On PYTHONPATH this lets vLLM's V2 model runner run without a GPU: its Triton kernels go through Triton's interpreter.

vLLM's CPU build asks for a Triton with a backend named "cpu", which PyPI does not have, and then never calls it when
kernels are interpreted.
"""

import os

os.environ["TRITON_INTERPRET"] = "1"

from triton.backends import backends


class Interpreter:
    class driver:  # noqa: N801
        @staticmethod
        def is_active() -> bool:
            return True


backends["cpu"] = Interpreter
