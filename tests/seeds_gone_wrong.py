"""Work on seeds of which some end their process, or never end. Processes that are spawned import it by its name."""

import os
import time

from fuzzing.crew import Done


def work(seed, known):
    """Seed 1 ends the process, seed 2 takes for ever."""
    if seed == 1:
        os._exit(3)
    if seed == 2:
        time.sleep(1000)
    return Done(seed, instances=16, wrong=[f"known: {sorted(known)}"] if known else [])
