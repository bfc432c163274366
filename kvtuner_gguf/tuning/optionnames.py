"""What the facts of a tuning are called on the command line, for messages."""

from __future__ import annotations

_OPTIONS = {
    "text": "--text",
    "text_sha256": "--text",
    "text_tokens": "--tokens",
    "n_ctx": "--ctx",
    "seed": "--seed",
    "engine": "--engine",
    "device": "--device",
    "center": "--center",
    "ends": "--ends",
}
_WORDS = {"center_span": "span of centers", "scale": "scaled keys", "llama_cpp": "llama.cpp"}


def option_name(fact: str) -> str:
    """The option that decides ``fact``, or else words for it."""
    return _OPTIONS.get(fact) or _WORDS.get(fact) or fact.replace("_", " ")
