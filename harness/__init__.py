"""A benchmark harness for continual learning.

What must be known before PyTorch loads is said here: the package is imported before it.
"""

import os

# Threads that wait for each other sleep. By default GNU's OpenMP lets them spin, and where another
# program has one of the cores each of the thousands of products a second waits for it.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
    os.environ["OMP_WAIT_POLICY"] = "passive"
