"""Training: as-of rows in, model files for a bundle out."""

import os

# Threads that wait for the next parallel part spin by default; on cores that others use too, that costs a multiple of
# the work itself (a training of the sequence model: 5.8 times the processor time). Read once, when OpenMP is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
