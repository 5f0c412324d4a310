"""Integer declarations: their numbers as integers, and decision diagrams of their points."""
