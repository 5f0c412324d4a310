"""What not every operating system has."""

import multiprocessing

import pytest

needs_fork = pytest.mark.skipif(
    "fork" not in multiprocessing.get_all_start_methods(), reason="this system makes no processes by forks"
)
