"""What a declaration must be: convex by cvxpy's rules, and with names for what callers give."""

from __future__ import annotations

import keyword
from typing import Any

import cvxpy as cp

from optlayers.form.standard import DeclarationError, ParameterSpec
from optlayers.polytope import ARGUMENTS, Polytope
from optlayers.variables import described, name_given

__all__ = ["check_convex", "check_declaration", "check_variables", "constraint_name", "is_set", "parameter_specs"]


def check_declaration(polytope: Polytope) -> None:
    """Refuse what is not convex, not real, not parametrized as cvxpy's DPP rules want, or not named."""
    check_variables(polytope)
    for position, constraint in enumerate(polytope.constraints):
        check_convex(constraint, position)
    parameter_specs(polytope)


def check_convex(constraint: cp.Constraint, position: int) -> None:
    """Refuse a constraint that cvxpy does not know to be convex, or affine in its parameters."""
    if not constraint.is_dcp():
        raise DeclarationError(
            f"{constraint_name(constraint, position)} is not convex by cvxpy's rules (DCP); "
            "a polytope is declared by ==, <= and >= between affine expressions"
        )
    if not constraint.is_dcp(dpp=True):
        raise DeclarationError(
            f"{constraint_name(constraint, position)} uses its parameters in a product of parameters or in another "
            "way that is not affine (cvxpy's DPP rules); give the product as one parameter of its own"
        )


def constraint_name(constraint: cp.Constraint, position: int) -> str:
    """How messages call a constraint: its label, else its position and its text."""
    label = getattr(constraint, "label", None)
    if label:
        return f"constraint {position} ({label})"
    text = " ".join(str(constraint).split())
    return f"constraint {position} ({text if len(text) <= 60 else text[:57] + '…'})"


def is_set(attribute: Any) -> bool:
    """Whether an attribute of a cvxpy variable was given."""
    return attribute is not None and attribute is not False


def check_variables(polytope: Polytope) -> None:
    """Refuse complex variables, and a scored one that is empty or that nothing constrains."""
    mentioned = {v.id: v for c in polytope.constraints for v in c.variables()}
    for variable in polytope.variables:
        if variable.is_complex():
            raise DeclarationError(f"{described(variable)} is complex; polytopes are real")
    if polytope.variable.size == 0:
        raise DeclarationError(f"the scored variable has shape {polytope.shape} and so no entry")
    if polytope.variable.id not in mentioned and not any(is_set(v) for v in polytope.variable.attributes.values()):
        name = name_given(polytope.variable)
        raise DeclarationError(
            f"no constraint mentions the scored variable{f' {name}' if name else ''}; the constraints mention "
            f"{', '.join(described(v) for v in mentioned.values()) or 'no variable at all'}"
        )


_SIGNS = ("pos", "neg", "nonneg", "nonpos")
_REFUSED = ("sparsity", "symmetric", "diag", "PSD", "NSD", "hermitian", "integer", "boolean", "complex", "imag")


def parameter_specs(polytope: Polytope) -> tuple[ParameterSpec, ...]:
    """Name, shape, place in θ and sign of every parameter; refuses names and attributes that callers cannot meet."""
    specs: list[ParameterSpec] = []
    start = 0
    for parameter in polytope.parameters:
        name = parameter.name()
        if name == f"param{parameter.id}":
            raise DeclarationError(
                f"a parameter of shape {parameter.shape} has no name; callers give parameters by name: "
                f'cp.Parameter({parameter.shape or ""}{", " if parameter.shape else ""}name="…")'
            )
        if not name.isidentifier() or keyword.iskeyword(name):
            raise DeclarationError(f"parameter name {name!r} cannot be a keyword argument; choose an identifier")
        if name in {*ARGUMENTS, *(v.name() for v in polytope.scored)}:
            raise DeclarationError(
                f"parameter name {name!r} is taken by an argument of the layer or a scored variable; choose another"
            )
        if name in {s.name for s in specs}:
            raise DeclarationError(f"two different parameters are named {name!r}; give each its own name")
        # Of a parameter that no constraint mentions, a regularizer knows what its values must be, and looks at them.
        beside = any(parameter is other for other in polytope.further)
        refused = [a for a in _REFUSED if parameter.attributes.get(a) and not (beside and a == "PSD")]
        if refused:
            raise DeclarationError(
                f"parameter {name} is declared {', '.join(refused)}; only the sign of a parameter may be "
                "declared: give the full array"
            )
        sign = next((s for s in _SIGNS if parameter.attributes.get(s)), None)
        specs.append(ParameterSpec(name, tuple(parameter.shape), start, sign))
        start += parameter.size
    return tuple(specs)
