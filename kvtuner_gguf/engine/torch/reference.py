"""The reference model: torch, float32, loaded from the GGUF itself, run layer by layer with any cache types."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from kvtuner_gguf.engine.attention import Rope
from kvtuner_gguf.engine.cachemodel import CacheModel, rotated_sides
from kvtuner_gguf.engine.ends import KeysValues, attend_with_ends
from kvtuner_gguf.engine.torch.loading import load
from kvtuner_gguf.errors import KvtunerError
from kvtuner_gguf.plan.centers import Centers
from kvtuner_gguf.plan.ends import Ends
from kvtuner_gguf.plan.pairs import EXACT, Pair
from kvtuner_gguf.plan.scales import Scales

ATTENTION = "kvtuner"

# architectures whose layers run as `Reference.run` runs them, and whether the runtime interleaves their RoPE
INTERLEAVED_ROPE = {"llama": True, "qwen2": False, "qwen3": False}

Capture = Callable[[int, Tensor, Tensor, Tensor], None]
"""Called with the layer and its queries, keys and values [batch, heads, tokens, head size], after RoPE."""

SeeReads = Callable[[tuple[KeysValues, KeysValues]], None]
"""Called with what a layer has written to an exact cache and what it has read from it, of which gradients are known."""


class Reference:
    """A causal language model whose every layer can be run with the K and V types of a pair, on a torch ``device``.

    Raises `KvtunerError` where torch cannot load the model or has no such device.
    """

    def __init__(self, path: Path, architecture: str, device: str = "cpu") -> None:
        if architecture not in INTERLEAVED_ROPE:
            raise KvtunerError(
                f"{path}: the torch reference knows {', '.join(INTERLEAVED_ROPE)}, not {architecture}: "
                "write the plan by hand, see configs/plan.schema.json"
            )
        where = _device(device)
        model, self._tokenizer = load(path, architecture)
        self._model = model.to(where).requires_grad_(False)
        self._model.config._attn_implementation = ATTENTION
        self._layers = self._model.model.layers
        interleaved = INTERLEAVED_ROPE[architecture]
        self.rope = Rope(self._model.model.rotary_emb.inv_freq, interleaved)  # in the runtime's order of channels
        self.cache = CacheModel(interleaved, rope=self.rope)
        self._pair = EXACT
        self._rotated = (False, False)
        self._capture: Capture | None = None
        self._see_reads: SeeReads | None = None

    @property
    def n_layer(self) -> int:
        return len(self._layers)

    def reading(
        self, centers: Centers | None = None, ends: Ends | None = None, start: int = 0, scales: Scales | None = None
    ) -> Reference:
        """The same model, whose caches take ``centers`` off, have ``ends`` and scale keys by ``scales``.

        Positions are counted from ``start``.
        """
        other = copy.copy(self)
        other.cache = replace(self.cache, centers=centers, ends=ends, start=start, scales=scales)
        return other

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

        ``pairs`` has an entry per layer of the model, None is exact: which sides are rotated depends on all of them.
        ``keep`` gets the input of every layer that is run; ``capture`` is called once per layer.
        """
        self._capture = capture
        self._rotated = (False, False) if pairs is None else rotated_sides(pairs)
        for il in range(first, self.n_layer):
            if keep is not None:
                keep.append(hidden)
            self._pair = EXACT if pairs is None else pairs[il]
            hidden = self._layer(il, hidden)
        self._capture = None
        return hidden

    def layer(self, il: int, hidden: Tensor, see: SeeReads) -> Tensor:
        """The output of layer ``il`` with an exact cache; ends are apart from it. Gradients are kept if torch does."""
        self._pair, self._see_reads = EXACT, see
        out = self._layer(il, hidden)
        self._see_reads = None
        return out

    def _layer(self, il: int, hidden: Tensor) -> Tensor:
        start = self.cache.start
        positions = torch.arange(start, start + hidden.shape[1], device=hidden.device)[None]
        rope = self._model.model.rotary_emb(hidden, positions)
        ALL_ATTENTION_FUNCTIONS.register(ATTENTION, self._attention)
        out = self._layers[il](
            hidden, attention_mask=None, position_ids=positions, position_embeddings=rope, use_cache=False
        )
        return out[0] if isinstance(out, tuple) else out

    def norm(self, hidden: Tensor) -> Tensor:
        """What the head takes, [..., channels], for ``hidden``, the output of the last layer."""
        return self._model.model.norm(hidden)

    @torch.inference_mode()
    def final(self, hidden: Tensor) -> Tensor:
        """`norm` without gradients."""
        return self.norm(hidden)

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
        self, module: Any, query: Tensor, key: Tensor, value: Tensor, mask: object, **kwargs: object
    ) -> tuple[Tensor, None]:
        """Causal attention over what the cache gives back; the newest token, too, is read from it or from the ends."""
        il = module.layer_idx
        if self._capture is not None:
            self._capture(il, query, key, value)
        if self._see_reads is not None:
            return self._seen_attention(query, KeysValues(key, value), self._see_reads).transpose(1, 2), None
        cached = self.cache.cached(key, value, self._pair, il, self._rotated)
        exact = self.cache.exact(key, value, self._pair, il, self._rotated)
        if exact is None or self.cache.ends is None:
            return attend(query, *cached).transpose(1, 2), None
        return attend_with_ends(query, cached, exact, self.cache.ends).transpose(1, 2), None

    def _seen_attention(self, query: Tensor, written: KeysValues, see: SeeReads) -> Tensor:
        """Of an exact cache, whose reads have a place of their own in the graph of gradients."""
        read = KeysValues(*(x.clone() for x in written))
        see((written, read))
        ends = self.cache.ends
        return attend(query, *read) if ends is None else attend_with_ends(query, read, written, ends)


def _device(name: str) -> torch.device:
    """The device ``name``, once something was put there."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as err:
        reason = str(err).strip().splitlines()[0] if str(err).strip() else type(err).__name__
        raise KvtunerError(f"torch cannot use the device {name!r} ({reason}): give --device cpu, or cuda") from err
    return device


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Causal attention [batch, heads, tokens, head size]; KV heads are shared by groups of query heads."""
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
