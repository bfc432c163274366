"""How many cells a context keeps: what llama.cpp allocates for its tokens, sequences and sliding windows."""

from __future__ import annotations

from dataclasses import dataclass

# cells come in multiples of it: `llama_context` pads the context, `llama_kv_cache_iswa` the windows
PADDING = 256
DEFAULT_UBATCH = 512


def _padded(n: int) -> int:
    return -(-n // PADDING) * PADDING


@dataclass(frozen=True)
class ContextSize:
    """The parameters of a context that decide its cells; the defaults are those of llama.cpp's tools.

    ``n_ctx``: tokens of all sequences. ``unified``: all of the ``n_seq_max`` sequences share one stream of cells.
    ``swa_full``: a sliding window keeps all tokens.
    """

    n_ctx: int
    n_ubatch: int = DEFAULT_UBATCH
    n_seq_max: int = 1
    unified: bool = False
    swa_full: bool = False

    def cells(self, window: int) -> int:
        """Cells of a layer, all streams together; ``window`` is that of the model in tokens, 0 where it has none.

        Source: ``llama_context::llama_context`` and ``llama_kv_cache_iswa::llama_kv_cache_iswa`` at the pinned base.
        """
        n_stream = 1 if self.unified else self.n_seq_max
        n_cells = self.cells_of_sequence
        if window and not self.swa_full:
            n_cells = _padded(min(n_cells, window * self.n_seq_max // n_stream + self.n_ubatch))
        return n_cells * n_stream

    @property
    def cells_of_sequence(self) -> int:
        """Positions that a sequence may have."""
        return _padded(_padded(self.n_ctx) // (1 if self.unified else self.n_seq_max))

    def exact_rows(self, n_positions: int) -> int:
        """Rows that a layer keeps exactly, where a plan's ends are ``n_positions`` first and last positions.

        ``n_seq_max * n_positions + min(n_ubatch, n_ctx)``: the ends of each sequence, whether sequences share a stream
        or not, and once the rows of a ubatch, whose first tokens read positions that its last ones leave behind. A row
        is the K and the V of one position in the type of the ends. `kvtuner_gguf.plan.ends.has_ends` says which layers
        keep such rows.
        """
        return self.n_seq_max * n_positions + min(self.n_ubatch, self.n_ctx)
