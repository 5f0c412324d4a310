"""The library from a shell: ``python -m optlayers report polytopes:matching --size 5``."""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import os
import platform
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numba
import numpy
import torch

from optlayers.common.kernel_cache import cached_functions
from optlayers.compilation.compiled import compile_polytope
from optlayers.polytope import Polytope
from optlayers.reporting import report
from optlayers.solution import SolveError
from optlayers.testing import check_polytope
from optlayers.warm import main as compile_ahead
from optlayers.warm import missing

__all__ = ["main"]

PACKAGES = ("torch", "numpy", "scipy", "cvxpy", "cvxpylayers", "diffcp", "highspy", "clarabel", "numba", "llvmlite")


OUR_FOLDERS = (Path(__file__).parent, Path(__file__).parent.parent / "polytopes")
REFUSALS = (ValueError, TypeError, AssertionError, ImportError, AttributeError, SolveError)
"""What is raised at a declaration that is refused, or a check that fails."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 when it went well, 1 when a declaration is refused or a check fails, or when the code that
    declares it raises anything, 2 for wrong arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m optlayers", description="Look at a declaration, or at this installation, from a shell."
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, what in (
        ("report", "dimension, integrality, missing inequalities, costs: all that optlayers.report says"),
        ("explain", "which solvers answer, and why"),
        ("check", "hold a declaration to optlayers.testing.check_polytope"),
    ):
        command = commands.add_parser(name, help=what, description=what)
        command.add_argument(
            "function", help="module:function that returns a Polytope (or module:polytope), such as polytopes:matching"
        )
        command.add_argument(
            "--size",
            type=_sizes,
            action="extend",
            default=[],
            metavar="N",
            help="an integer that the function takes; several in its order: --size 3 4, or --size 3 --size 4",
        )
        command.add_argument(
            "--parameter", action="append", default=[], metavar="NAME=VALUE", help="a parameter, a number or JSON"
        )
        command.add_argument("--seed", type=int, default=0, help="of what is drawn")
        if name == "report":
            command.add_argument("--effort", choices=("quick", "normal", "thorough"), default="normal")
            command.add_argument("--json", action="store_true", help="plain data instead of text")
    commands.add_parser("doctor", help="versions, threads, caches and devices: text to paste into a bug report")
    commands.add_parser("warm", help="compile all kernels ahead, as python -m optlayers.warm does")
    given = parser.parse_args(_each_named(sys.argv[1:] if arguments is None else arguments))
    try:
        return _run(given)
    except Exception as error:  # the code of the user's may raise anything
        said = f"{type(error).__name__}: {error}"
        theirs = _their_frames(error, getattr(given, "function", ""))
        if not theirs and not isinstance(error, REFUSALS):
            raise
        print(f"{given.function} raised {said}\n{theirs}" if theirs else said, file=sys.stderr)
        return 1


def _each_named(arguments: Sequence[str]) -> list[str]:
    """``--size 3 4`` as ``--size 3 --size 4``."""
    named, sizes = list[str](), False
    for word in arguments:
        number = re.fullmatch(r"-?\d+(,-?\d+)*,?", word) is not None
        if number and sizes and named[-1] != "--size":
            named.append("--size")
        sizes = word.startswith("--size") or (sizes and number)
        named.append(word)
    return named


def _sizes(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",") if number.strip()]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"a size is an integer, and several are given as --size 3 --size 4, but got {text!r}"
        ) from None


def _their_frames(error: BaseException, function: str) -> str:
    """Where the code of the user's raised an error, or nothing where it was not in it: a traceback without the frames
    of this library, its catalogue, and libraries."""
    top, lines = function.partition(":")[0].partition(".")[0], list[str]()
    libraries = [Path(sysconfig.get_path(name)) for name in ("stdlib", "purelib", "platlib")]
    for frame, line in traceback.walk_tb(error.__traceback__):
        file, module = Path(frame.f_code.co_filename), str(frame.f_globals.get("__name__", ""))
        ours = any(file.is_relative_to(folder) for folder in OUR_FOLDERS)
        known = file.name.startswith("<frozen") or any(file.is_relative_to(folder) for folder in libraries)
        if not ours and (not known or module.partition(".")[0] == top):
            lines += traceback.format_list([traceback.FrameSummary(str(file), line, frame.f_code.co_name)])
    if isinstance(error, SyntaxError):
        lines += traceback.format_exception_only(error)[:-1]
    return "".join(lines).rstrip()


def _run(given: argparse.Namespace) -> int:
    if given.command == "doctor":
        print(doctor())
        return 0
    if given.command == "warm":
        return compile_ahead()
    polytope, parameters = _polytope(given.function, given.size), dict(_parameter(p) for p in given.parameter)
    if given.command != "explain":
        _check_parameters(given.function, polytope, parameters)
    if given.command == "explain":
        print(compile_polytope(polytope).explain())
    elif given.command == "check":
        found = check_polytope(polytope, seed=given.seed, **parameters)
        print(
            f"good: {found.samples} scores have certified answers; vertices are {'' if found.integral else 'not '}"
            f"integral; the largest violation is {found.largest_violation:.3g}, the largest gap {found.largest_gap:.3g}"
        )
    else:
        made = report(polytope, seed=given.seed, effort=given.effort, **parameters)
        print(json.dumps(made.to_dict(), indent=2) if given.json else made)
    return 0


def _polytope(text: str, sizes: Sequence[int]) -> Any:
    """What ``module:function`` returns for some sizes."""
    module_name, colon, name = text.partition(":")
    if not colon or not name:
        raise ValueError(f"give module:function, such as polytopes:matching, but got {text!r}")
    sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, and imports one that is not
        raise ImportError(f"there is no module {error.name}, neither in this folder nor on Python's path") from None
    finally:
        sys.path.pop(0)
    for piece in name.split("."):
        if not hasattr(found, piece):
            raise ValueError(f"{module_name} has no {name}")
        found = getattr(found, piece)
    if isinstance(found, Polytope):
        if sizes:
            raise ValueError(f"{text} is a polytope, and takes no --size")
        return found
    if not callable(found):
        raise TypeError(f"{text} is {type(found).__name__}, neither a Polytope nor a function that returns one")
    _check_sizes(text, found, sizes)
    polytope = found(*sizes)
    if not isinstance(polytope, Polytope):
        raise TypeError(f"{text} returned {type(polytope).__name__}, not a Polytope")
    return polytope


def _check_sizes(text: str, function: Callable[..., Any], sizes: Sequence[int]) -> None:
    """Raise TypeError for a function that takes more or fewer arguments."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):
        return  # some that are not written in Python have none
    try:
        signature.bind(*sizes)
    except TypeError:
        takes = [p for p in signature.parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        by_name = [p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY and p.default is p.empty]
        if by_name:
            hint = f"write a function without {', '.join(by_name)}, which are given by name alone"
        elif not takes:
            hint = "leave --size out"
        else:
            needed = sum(p.default is p.empty for p in takes)
            hint = "give" + " --size N" * max(1, needed if len(sizes) < needed else len(takes))
        got = " ".join(map(str, sizes)) or "none"
        names = ", ".join(p.name for p in takes) or "no arguments"
        raise TypeError(f"{text} takes {names}, but the sizes given are: {got}; {hint}") from None


def _check_parameters(text: str, polytope: Polytope, given: Mapping[str, Any]) -> None:
    """Raise ValueError for parameters without a value, and for values without a parameter."""
    declared = {parameter.name(): parameter.shape for parameter in polytope.parameters}
    missing = [f"--parameter {name}={_kind(shape)}" for name, shape in declared.items() if name not in given]
    if missing:
        raise ValueError(f"{text} has parameters without a value: add {' '.join(missing)}")
    unknown = [name for name in given if name not in declared]
    if unknown:
        has = f"it has {', '.join(declared)}" if declared else "it has none"
        raise ValueError(f"{text} has no parameter {', '.join(unknown)}; {has}")


def _kind(shape: tuple[int, ...]) -> str:
    """What a value looks like on the line of a shell."""
    return "NUMBER" if not shape else f"'[…]' of shape {shape}"


def _parameter(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"a parameter is given as name=value, but got {text!r}")
    try:
        return name, torch.tensor(json.loads(value), dtype=torch.float64)
    except (ValueError, TypeError):
        raise ValueError(f"the value of {name} is a number or a list of numbers, as JSON, but got {value!r}") from None


def doctor() -> str:
    """What a bug report should say of this installation; each line that cannot be found says why."""
    lines = [
        ("optlayers", _version),
        ("Python", lambda: f"{platform.python_version()} ({platform.python_implementation()}) at {sys.executable}"),
        ("system", lambda: f"{platform.platform()}, {platform.machine()}"),
        ("processor", _processor),
        ("threads", _threads),
        *((name, lambda name=name: metadata.version(name)) for name in PACKAGES),
        ("BLAS of numpy", _blas),
        ("BLAS of torch", _blas_of_torch),
        ("kernel cache", _kernels),
        ("GPU", _devices),
        ("environment", _environment),
    ]
    return "\n".join(f"{name}: {_or_why_not(find)}" for name, find in lines)


def _or_why_not(find: Callable[[], str]) -> str:
    try:
        return find()
    except Exception as error:
        return f"not found ({type(error).__name__}: {error})"


def _version() -> str:
    version: str = sys.modules["optlayers"].__version__
    return f"{version} at {Path(__file__).parent}"


def _processor() -> str:
    names = [platform.processor() or platform.machine()]
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names += [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line][:1]
    wanted = ("avx", "avx2", "avx512f", "fma", "neon", "sve")
    has = [name for name, there in llvm.get_host_cpu_features().items() if there and name in wanted]
    return (
        f"{names[-1]}; torch uses {torch.backends.cpu.get_cpu_capability()}; it has {', '.join(sorted(has)) or 'none'}"
    )


def _threads() -> str:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{usable} usable, torch {torch.get_num_threads()}, numba {numba.get_num_threads()}"


def _blas() -> str:
    config: Any = numpy.show_config(mode="dicts")
    one = config["Build Dependencies"]["blas"]
    return f"{one.get('name')} {one.get('version')}"


def _blas_of_torch() -> str:
    said = [line.strip(" -") for line in torch.__config__.show().splitlines() if "BLAS" in line or "MKL" in line]
    return "; ".join(line[:100] for line in said[:2]) or "not named"


def _kernels() -> str:
    absent = missing()
    where = Path(__file__).parent / "solvers" / "kernels" / "__pycache__"
    there = len(cached_functions())
    return f"{there - len(absent)} of {there} functions are on disk, in {where} or NUMBA_CACHE_DIR"


def _devices() -> str:
    if not torch.cuda.is_available():
        return "none that torch can use"
    return "; ".join(torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count()))


def _environment() -> str:
    names = [
        n for n in sorted(os.environ) if n.startswith(("OMP_", "MKL_", "OPENBLAS_", "NUMBA_", "ATEN_", "OPTLAYERS_"))
    ]
    return ", ".join(f"{name}={os.environ[name]}" for name in names) or "nothing that matters is set"


if __name__ == "__main__":
    sys.exit(main())
