"""Pictures: polytopes and their points, what rules send back, structures, and points under regularizers.

They are drawn by matplotlib, which is imported when it is first used (``pip install 'optlayers[plots]'``). Every
function takes Axes and returns those that it has drawn on; without any, these are of a new figure, ``ax.figure``, which
pyplot does not keep: ``plots.polytope(p).figure.savefig("p.png")``.
"""

from optlayers.plots.arcs import arcs
from optlayers.plots.bars import bars
from optlayers.plots.brackets import brackets
from optlayers.plots.circles import regularized_circles
from optlayers.plots.field import rule_field
from optlayers.plots.graph import graph, network
from optlayers.plots.heat import heat
from optlayers.plots.lanes import lanes, segments
from optlayers.plots.links import links
from optlayers.plots.moves import moves
from optlayers.plots.path import regularization_path
from optlayers.plots.shadow import polytope
from optlayers.plots.structure import structure

__all__ = [
    "arcs",
    "bars",
    "brackets",
    "graph",
    "heat",
    "lanes",
    "links",
    "moves",
    "network",
    "polytope",
    "regularization_path",
    "regularized_circles",
    "rule_field",
    "segments",
    "structure",
]
