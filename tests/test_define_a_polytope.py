"""The short example runs, and meets its known answer."""

import define_a_polytope
import pytest


@pytest.mark.slow
def test_it_recovers_what_the_planner_wants(capsys):
    define_a_polytope.main()  # it ends by asserting that it does
    printed = capsys.readouterr().out
    assert "vertices integral: True" in printed and "the planner's weeks are met" in printed
