"""How numba compiles kernels and their parts: as always, without what takes time and changes nothing here.

Every function of numba is optimized and made machine code on its own, then taken in by its callers, optimized again and
made machine code again, and so on up to what Python calls. Parts are called by kernels only, so all of that is done
once here, for a kernel with all that it is made of. The first calls of a matching in a new process, with nothing on
disk, take a fifth less time.

What is left grows with the statements of a kernel and with what each becomes. So kernels open the arrays that they are
given (:mod:`optlayers.solvers.kernels.flat`) before they read from them, and assign two or three names in a statement:
more go through a tuple, which numba makes and takes apart.
"""

from __future__ import annotations

from typing import Any

from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import CompilerBase, DefaultPassBuilder
from numba.core.compiler_machinery import PassManager, register_pass
from numba.core.typed_passes import NativeLowering, NopythonRewrites
from numba.core.untyped_passes import InlineClosureLikes

__all__ = ["KernelCompiler", "PartCompiler"]

LEFT_OUT = (InlineClosureLikes, NopythonRewrites)
"""They look for comprehensions and for sums of whole arrays; kernels are loops over numbers."""


class _PartLibrary(JITCodeLibrary):  # type: ignore[misc]
    """The code of a part alone; ``called`` has the code of what it calls.

    Its functions are tidied up one by one, as always: without it some kernels would be slower by a seventh.
    """

    def __init__(self, codegen: Any, name: str) -> None:
        super().__init__(codegen, name)
        self.called: dict[Any, None] = {}

    def add_linking_library(self, library: Any) -> None:
        self.called[library] = None

    def finalize(self) -> None:
        """Whoever takes it in optimizes it."""


@register_pass(mutates_CFG=True, analysis_only=False)
class _PartLowering(NativeLowering):  # type: ignore[misc]
    _name = "part_lowering"

    def run_pass(self, state: Any) -> bool:
        library = state.library = _PartLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
        state.flags.no_compile = True
        super().run_pass(state)
        # Numba knows a compiled function by a built-in function. Nobody calls this one: it would raise.
        entry: Any = [].index
        state.targetctx.insert_user_function(entry, state.cr.fndesc, [library, *library.called])
        state.cr = state.cr._replace(cfunc=entry)
        return True


class KernelCompiler(CompilerBase):  # type: ignore[misc]
    """Compiles what Python calls."""

    lowering: type[NativeLowering] = NativeLowering

    def define_pipelines(self) -> list[PassManager]:
        """The passes of numba, but for some."""
        passes = PassManager("kernel")
        for kind, description in DefaultPassBuilder.define_nopython_pipeline(self.state).passes:
            if kind not in LEFT_OUT:
                passes.add_pass(self.lowering if kind is NativeLowering else kind, description)
        passes.finalize()
        return [passes]


class PartCompiler(KernelCompiler):
    """Compiles what only kernels call."""

    lowering = _PartLowering
