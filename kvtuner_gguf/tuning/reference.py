"""The reference model: torch, float32, loaded from the GGUF itself, run layer by layer with any cache types."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kvtuner_gguf.cachetypes import Pair
from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.tuning.cachemodel import CacheModel
from kvtuner_gguf.tuning.loading import load

ATTENTION = "kvtuner"
EXACT = Pair("f32", "f32")

# architectures whose layers run as `Reference.run` runs them, and whether the runtime interleaves their RoPE
INTERLEAVED_ROPE = {"llama": True, "qwen2": False, "qwen3": False}

Capture = Callable[[int, Tensor, Tensor, Tensor], None]
"""Called with the layer and its queries, keys and values [batch, heads, tokens, head size], after RoPE."""


class Reference:
    """A causal language model whose every layer can be run with the K and V types of a pair, on a torch ``device``."""

    def __init__(self, path: Path, architecture: str, device: str = "cpu") -> None:
        if architecture not in INTERLEAVED_ROPE:
            raise KvtunerError(
                f"{path}: the torch reference knows {', '.join(INTERLEAVED_ROPE)}, not {architecture}: "
                "write the plan by hand, see configs/plan.schema.json"
            )
        self.cache = CacheModel(INTERLEAVED_ROPE[architecture])
        model, self._tokenizer = load(path, architecture)
        self._model = model.to(device)
        self._model.config._attn_implementation = ATTENTION
        self._layers = self._model.model.layers
        self._pair = EXACT
        self._capture: Capture | None = None
        ALL_ATTENTION_FUNCTIONS.register(ATTENTION, self._attention)

    @property
    def n_layer(self) -> int:
        return len(self._layers)

    def tokenize(self, text: str) -> list[int]:
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    @torch.inference_mode()
    def embed(self, tokens: Tensor) -> Tensor:
        """The input of layer 0 for ``tokens`` [batch, tokens]: [batch, tokens, channels], on the model's device."""
        return self._model.model.embed_tokens(tokens.to(self._model.device))

    @torch.inference_mode()
    def run(
        self,
        hidden: Tensor,
        pairs: Sequence[Pair] | None = None,
        first: int = 0,
        keep: list[Tensor] | None = None,
        capture: Capture | None = None,
    ) -> Tensor:
        """Run the layers from ``first`` on, whose input is ``hidden``; the output of the last one.

        ``pairs`` has an entry per layer of the model, None is exact; ``keep`` gets the input of every layer that is
        run; ``capture`` is called once per layer.
        """
        positions = torch.arange(hidden.shape[1], device=hidden.device)[None]
        rope = self._model.model.rotary_emb(hidden, positions)
        self._capture = capture
        for il in range(first, self.n_layer):
            if keep is not None:
                keep.append(hidden)
            self._pair = EXACT if pairs is None else pairs[il]
            hidden = self._layer(il, hidden, positions, rope)
        self._capture = None
        return hidden

    def _layer(self, il: int, hidden: Tensor, positions: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        out = self._layers[il](
            hidden, attention_mask=None, position_ids=positions, position_embeddings=rope, use_cache=False
        )
        return out[0] if isinstance(out, tuple) else out

    @torch.inference_mode()
    def final(self, hidden: Tensor) -> Tensor:
        """What the head takes, [rows, channels], for ``hidden`` [rows, channels], the output of the last layer."""
        return self._model.model.norm(hidden)

    @property
    def head(self) -> Tensor:
        """The weights of the head, [vocabulary, channels]."""
        return self._model.lm_head.weight

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [rows, vocabulary] of the next token for ``hidden`` [rows, channels]."""
        return self._model.lm_head(self.final(hidden))

    @torch.inference_mode()
    def log_probs(self, hidden: Tensor) -> Tensor:
        """Log-probabilities [rows, vocabulary] of the next token for ``hidden`` [rows, channels]."""
        return self.logits(hidden).log_softmax(-1)

    def _attention(
        self, module: torch.nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: object, **kwargs: object
    ) -> tuple[Tensor, None]:
        """Causal attention over what the cache gives back; the newest token, too, is read from the cache."""
        if self._capture is not None:
            self._capture(module.layer_idx, query, key, value)
        il = module.layer_idx
        key, value = self.cache.keys(key, self._pair.k, il), self.cache.values(value, self._pair.v, il)
        return attend(query, key, value).transpose(1, 2), None


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention [batch, heads, tokens, head size]; KV heads are shared by groups of query heads."""
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)


def attend_rows(query: Tensor, key: Tensor, value: Tensor, rows: Tensor) -> Tensor:
    """`attend` for the queries at the positions ``rows`` alone, without a square of the tokens."""
    if len(rows) == query.shape[2]:
        return attend(query, key, value)
    mask = seen(rows, key.shape[2]).to(query.device)
    query = query[:, :, rows.to(query.device)]
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)


def seen(rows: Tensor, n_tokens: int) -> Tensor:
    """Whether causality lets the queries at ``rows`` see each token, [rows, tokens]."""
    return torch.arange(n_tokens) <= rows[:, None]
