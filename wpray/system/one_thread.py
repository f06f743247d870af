"""Environment variables that keep libraries to one thread, if they are set before those are imported."""

# An environment has one process and one core, and the threads of several would only compete for the cores.
ONE_THREAD = {
    name: "1"
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "LP_NUM_THREADS")
}
