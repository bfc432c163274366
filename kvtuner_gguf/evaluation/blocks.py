"""The standard error of a mean over the tokens of a text, and of the difference of two on the same tokens.

KLDs of neighbouring tokens go together, since a passage is hard or easy as a whole. So they are no independent samples;
the means of blocks of consecutive tokens nearly are.
"""

from __future__ import annotations

import math

import numpy as np

# tokens of a block: on SmolLM2 errors are 1.3 to 2 times those by single tokens. With 64 they are another tenth more,
# but the default text has only 12 of these
BLOCK = 32
# a short text has smaller ones: fewer would tell no spread
FEWEST = 8


def block_means(values: np.ndarray, n_chunks: int = 1) -> np.ndarray:
    """Means of blocks of consecutive ``values`` [tokens], which are of ``n_chunks`` equally long chunks.

    No block reaches over two chunks, which are from different places of a text.
    """
    chunks = np.split(values.astype(np.float64), n_chunks)
    n_scored = len(chunks[0])
    n_blocks = min(n_scored, max(n_scored // BLOCK, math.ceil(FEWEST / n_chunks)))
    return np.array([block.mean() for chunk in chunks for block in np.array_split(chunk, n_blocks)])


def standard_error(blocks: np.ndarray) -> float:
    """That of the mean of ``blocks``, of which there are two or more."""
    return float(blocks.std(ddof=1) / math.sqrt(len(blocks)))
