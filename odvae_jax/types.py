"""What public functions take as an array."""

import jax
import numpy as np

AnyArray = jax.Array | np.ndarray
"""A JAX array (traced ones included) or a NumPy array."""
