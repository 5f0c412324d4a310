"""The numbers of a batch: what comes in, split among its polytopes, and what goes out, joined again."""
