"""A step's batch in shards, the same wherever they are computed: `threads` of this machine, `ranks` of an MPI job
(`mpi`); and sweeps on the workers of a cluster (`dask`). The bits do not depend on how many there are."""

from .. import lazily

HOMES = {
    "dask": ("dask_workers", "fingerprint"),
    "ranks": ("Ranks",),
    "threads": ("Workers", "cores", "cut", "keep_freed_memory", "team"),
}
__all__ = sorted(name for names in HOMES.values() for name in names)
__getattr__ = lazily(__name__, HOMES)
