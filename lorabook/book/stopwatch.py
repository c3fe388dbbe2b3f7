"""How long something takes, for a chapter: works take turns, so that a busy moment of the machine hits all of them."""

import statistics
import time


def medians(turns=15, **works):
    """{name: median of the milliseconds of processor time that a work takes on this thread}, after one untimed turn.

    Processor time passes only while the thread computes: not while another process has the core.
    """
    times = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(turns):
        for name, work in works.items():
            start = time.thread_time()
            work()
            times[name].append(1e3 * (time.thread_time() - start))
    return {name: statistics.median(values) for name, values in times.items()}
