"""Token ids in, token ids out, for many adapters over one base model. Knows no HTTP, no Redis, no text."""

import warnings

# Of SparseUpdate and SpanAttention, whose tests would see any other answer.
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")
