"""The rooms of ``fuzz.py``: declarations, numbers, questions, an exact judge, and what is kept of a run."""
