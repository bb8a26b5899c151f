"""Adapters' weights: the bank that all of them share, and how one comes into it from a PEFT folder."""

import warnings

# Of SparseUpdate and of attention, whose tests would see any other answer.
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
