"""Environment variables that keep libraries to one thread, if they are set before those are imported."""

# One environment is one process is one core: libraries that start a thread for each core only fight each other.
ONE_THREAD = {
    name: "1"
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS", "LP_NUM_THREADS")
}
