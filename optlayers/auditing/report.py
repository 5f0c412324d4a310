"""What an audit found, as a table, as numbers, as a picture and in words."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from optlayers.auditing.advice import advice_on, advice_on_truth
from optlayers.auditing.estimate import Cosine, Estimate
from optlayers.auditing.findings import Findings, Steps
from optlayers.common.extras import needed

__all__ = ["GradientAudit"]


@final
@dataclass(frozen=True)
class GradientAudit:
    """What :func:`optlayers.audit` found. ``print`` shows it as a table with advice, a notebook likewise.

    Attributes
    ----------
    findings : for every rule what was found, by the name that the table has; see :class:`Findings`.
    truths : by scale, the gradient of the smoothed loss: ``mean`` and ``error`` ``(instances, size)``, flat.
    scale : the scale whose truth is compared with where there is one number; None where all are noise.
    references : what comes of steps against the ``"smoothed gradient"`` of this scale and a ``"random direction"``.
    instances, samples : how many there were.
    """

    findings: Mapping[str, Findings]
    truths: Mapping[float, Estimate]
    scale: float | None
    references: Mapping[str, Mapping[float, Steps]]
    instances: int
    samples: int

    def __getitem__(self, name: str) -> Findings:
        return self.findings[name]

    @property
    def advice(self) -> list[str]:
        """What the numbers say, a sentence or two each."""
        found = list(self.findings.values())
        said = advice_on_truth(self.truths, self.scale, self.samples, found)
        return [*said, *(line for one in found for line in advice_on(one, self.truths, self.scale))]

    def __str__(self) -> str:
        header, rows = self._header(), self._rows()
        widths = [max(len(row[k]) for row in [header, *rows]) for k in range(len(header))]
        lines = []
        for row in [header, *rows]:
            cells = [row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]
            lines.append("  ".join(cells).rstrip())
        lines.insert(1, "-" * max(len(line) for line in lines))
        skipped = [f"{f.name} skipped: {f.skipped}" for f in self.findings.values() if f.skipped is not None]
        return "\n".join([self._caption(), "", *lines, *self._blank(skipped), *self._blank(self.advice)])

    @staticmethod
    def _blank(lines: Sequence[str]) -> list[str]:
        return ["", *lines] if lines else []

    def __repr__(self) -> str:
        return f"<GradientAudit of {len(self.findings)} rules over {self.instances} instances; print() shows it>"

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in self._header())
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in self._rows()
        )
        said = [f"{f.name} skipped: {f.skipped}" for f in self.findings.values() if f.skipped is not None]
        notes = "".join(f"<li>{html.escape(line)}</li>" for line in [*said, *self.advice])
        return (
            f"<p>{html.escape(self._caption())}</p><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
            f"<ul>{notes}</ul>"
        )

    def _caption(self) -> str:
        many = "1 instance" if self.instances == 1 else f"{self.instances} instances"
        main = "" if self.scale is None else f"; shares, bias: scale {self.scale:g}"
        return f"{many}, {self.samples} samples; cos: with the gradient of the smoothed loss, by scale{main}"

    @property
    def _lengths(self) -> list[float]:
        for steps in (*(f.steps for f in self.findings.values()), *self.references.values()):
            if steps:
                return list(steps)
        return []

    def _header(self) -> list[str]:
        shown = [f"cos {scale:g}" for scale in self.truths]
        own = ["own"] if self._has("own") else []
        cut = ["cut off"] if self._has("cut_off") else []
        lower = [f"lower {length:g}" for length in self._lengths]
        return ["rule", "zero", *shown, *own, "against", *lower, "bias", "variance", *cut, "ms"]

    def _has(self, name: str) -> bool:
        return any(getattr(f, name) is not None for f in self.findings.values())

    def _rows(self) -> list[list[str]]:
        rows = [self._row(found) for found in self.findings.values()]
        empty = len(self._header()) - 1
        for name, steps in self.references.items():
            before = 2 + len(self.truths) + bool(self._has("own"))
            lower = [_percent(steps[length].lower) for length in self._lengths]
            rows.append([f"({name})", *[""] * (before), *lower, *[""] * (empty - before - len(lower))])
        return rows

    def _row(self, found: Findings) -> list[str]:
        if found.skipped is not None:
            return [found.name, "skipped", *[""] * (len(self._header()) - 2)]
        shown = [_cosine(found.cosine[scale]) for scale in self.truths]
        own = [_cosine(found.own)] if self._has("own") else []
        cut = [_percent(found.cut_off)] if self._has("cut_off") else []
        lower = [_percent(found.steps[length].lower) for length in self._lengths]
        against = _percent(found.against)
        return [
            found.name,
            _percent(found.zero),
            *shown,
            *own,
            against,
            *lower,
            _number(found.bias),
            _number(found.variance),
            *cut,
            f"{found.milliseconds:.2g}" if found.milliseconds < 10 else f"{found.milliseconds:.0f}",
        ]

    def to_dict(self) -> dict[str, Any]:
        """All numbers, as what JSON can hold: None where there is none."""
        return {
            "instances": self.instances,
            "samples": self.samples,
            "scale": self.scale,
            "truth": {
                f"{scale:g}": {
                    "norm": _plain(math.sqrt(max(truth.total, 0.0))),
                    "relative_error": _plain(truth.relative_error),
                    "resolved": truth.resolved,
                }
                for scale, truth in self.truths.items()
            },
            "rules": {name: _dict_of(found) for name, found in self.findings.items()},
            "references": {name: _steps(steps) for name, steps in self.references.items()},
            "advice": self.advice,
        }

    def plot(self, ax: Any = None) -> Any:
        """The cosines of all rules with their errors, and beside each rule its share of zero gradients.

        Parameters
        ----------
        ax : matplotlib Axes to draw on; by default those of a new figure (``ax.figure``), which pyplot does not keep.

        Returns
        -------
        Axes : those that were drawn on.

        Raises
        ------
        ImportError : without matplotlib: ``pip install 'optlayers[plots]'``.
        """
        use = "plot() draws with matplotlib"
        colormaps = needed("matplotlib", "plots", use).colormaps
        figure = needed("matplotlib.figure", "plots", use).Figure
        shown = [found for found in self.findings.values() if found.skipped is None]
        if ax is None:
            ax = figure(figsize=(7.5, 1.2 + 0.42 * len(shown)), layout="constrained").add_subplot()
        colors = colormaps["viridis"]([0.8 * k / max(1, len(self.truths) - 1) for k in range(len(self.truths))])
        for k, (scale, color) in enumerate(zip(self.truths, colors, strict=True)):
            shift = 0.22 * (k - (len(self.truths) - 1) / 2)
            places = [(y, found.cosine[scale]) for y, found in enumerate(shown)]
            known = [(y + shift, cosine) for y, cosine in places if not math.isnan(cosine.value)]
            ax.errorbar(
                [cosine.value for _, cosine in known],
                [y for y, _ in known],
                xerr=[2.0 * cosine.error for _, cosine in known],
                fmt="o",
                color=color,
                markersize=5,
                capsize=2,
                label=f"scale {scale:g}",
            )
        own = [(y, found.own) for y, found in enumerate(shown) if found.own is not None]
        own = [(y, cosine) for y, cosine in own if not math.isnan(cosine.value)]
        if own:
            ax.plot([c.value for _, c in own], [y for y, _ in own], "D", color="tab:red", mfc="none", label="own loss")
        for y, found in enumerate(shown):
            if found.zero > 0.0:
                ax.text(1.08, y, f"{_percent(found.zero)} zero", va="center", fontsize=8, color="tab:gray")
        ax.axvline(0.0, color="black", linewidth=0.8)
        ax.set_xlim(-1.05, 1.45)
        ax.set_xticks([-1.0, -0.5, 0.0, 0.5, 1.0])
        ax.set_yticks(range(len(shown)), [found.name for found in shown])
        ax.set_ylim(len(shown) - 0.4, -0.6)
        ax.set_xlabel("cosine with the gradient of the smoothed loss (± 2 standard errors)")
        ax.grid(axis="y", alpha=0.25)
        ax.legend(fontsize=8, loc="lower left", frameon=True)
        return ax


def _cosine(cosine: Cosine | None) -> str:
    if cosine is None:
        return ""
    return "-" if math.isnan(cosine.value) else f"{cosine.value:.2f} ± {cosine.error:.2f}"


def _percent(share: float | None) -> str:
    if share is None:
        return ""
    return "-" if math.isnan(share) else f"{100.0 * share:.0f} %"


def _number(value: float) -> str:
    return "-" if not math.isfinite(value) else f"{value:.2g}" if value < 100.0 else f"{value:.0f}"


def _plain(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _steps(steps: Mapping[float, Steps]) -> dict[str, Any]:
    return {
        f"{length:g}": {"lower": _plain(s.lower), "higher": _plain(s.higher), "change": _plain(s.change)}
        for length, s in steps.items()
    }


def _cosines(cosines: Mapping[float, Cosine]) -> dict[str, Any]:
    return {f"{s:g}": {"value": _plain(c.value), "error": _plain(c.error)} for s, c in cosines.items()}


def _dict_of(found: Findings) -> dict[str, Any]:
    if found.skipped is not None:
        return {"rule": repr(found.rule), "skipped": found.skipped}
    numbers = ("failed", "zero", "arrives", "along", "against", "bias", "variance", "cut_off", "kept", "milliseconds")
    return {
        "rule": repr(found.rule),
        "skipped": None,
        **{name: _plain(getattr(found, name)) for name in numbers},
        "cosine": _cosines(found.cosine),
        "single": _cosines(found.single),
        "own": None if found.own is None else {"value": _plain(found.own.value), "error": _plain(found.own.error)},
        "steps": _steps(found.steps),
    }
