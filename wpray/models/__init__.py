"""Waypoint VLM and action expert in plain torch, which import nothing else of wpray but errors."""

import os

# cuBLAS cuts a sum over K where it finds workspace to do so, and where depends on the number of rows. Without workspace
# every row is summed in one order, so that batches of any size give the same bits, and none has to be padded: on an
# H200 one segment takes 16 ms instead of 29. It costs 1% of a plan of 32. cuBLAS reads it once, when it is first used.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":0:0")
os.environ.setdefault("CUBLASLT_WORKSPACE_SIZE", "0")  # of the same memory, else torch warns that there is less
