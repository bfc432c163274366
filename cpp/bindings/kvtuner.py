"""Per-layer K and V cache types: the native calls of ``kvtuner.h`` for `llama_cpp.Llama`."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Mapping
from typing import Any, Union

from llama_cpp import llama_cpp
from llama_cpp._ggml import libggml

# "auto": the plan in the model's metadata; None or "none": no plan; else a plan, or the path of its JSON
KvConfig = Union[None, str, "os.PathLike[str]", Mapping[str, Any]]

KV_CONFIG = "Plan of KV cache data types per layer: auto (the model's metadata), none or the path of a JSON file."
KV_CENTER = "Center keys where the plan has vectors for it."
KV_ENDS = "Read the first and last positions exactly where the plan says so."

_MESSAGE_SIZE = 1024
_FINGERPRINT_SIZE = 17

_lib = llama_cpp._lib
_context = llama_cpp.llama_context_p_ctypes
_model = llama_cpp.llama_model_p_ctypes


def _declare(name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(_lib, name)
    function.restype = result
    function.argtypes = arguments
    return function


_set_kv_config = _declare(
    "kvtuner_model_set_kv_config",
    ctypes.c_bool,
    _model,
    ctypes.c_char_p,
    ctypes.c_bool,
    ctypes.c_bool,
    ctypes.c_char_p,
    ctypes.c_size_t,
)
_needs_flash_attn = _declare(
    "kvtuner_needs_flash_attn", ctypes.c_bool, _model, ctypes.POINTER(llama_cpp.llama_context_params)
)
_check_context = _declare(
    "kvtuner_check_context",
    ctypes.c_bool,
    _model,
    ctypes.POINTER(llama_cpp.llama_context_params),
    ctypes.c_char_p,
    ctypes.c_size_t,
)
_n_layer = _declare("kvtuner_n_layer", ctypes.c_int32, _context)
_type_k = _declare("kvtuner_type_k", ctypes.c_int32, _context, ctypes.c_int32)
_type_v = _declare("kvtuner_type_v", ctypes.c_int32, _context, ctypes.c_int32)
_kv_bytes = _declare("kvtuner_kv_bytes", ctypes.c_uint64, _context)
_centers_bytes = _declare("kvtuner_centers_bytes", ctypes.c_uint64, _context)
_has_plan = _declare("kvtuner_has_plan", ctypes.c_bool, _context)
_fingerprint = _declare("kvtuner_fingerprint", ctypes.c_size_t, _context, ctypes.c_char_p, ctypes.c_size_t)
_source = _declare("kvtuner_source", ctypes.c_char_p, _context)
_take_reason = _declare("kvtuner_take_reason", ctypes.c_char_p)
_take_state_refusal = _declare("kvtuner_take_state_refusal", ctypes.c_char_p)
_type_name = libggml.ggml_type_name
_type_name.restype = ctypes.c_char_p
_type_name.argtypes = [ctypes.c_int]


def _text(kv_config: KvConfig) -> str:
    """The native form of a `KvConfig`: a word, a path or JSON text."""
    if kv_config is None:
        return "none"
    if isinstance(kv_config, Mapping):
        return _json(kv_config)
    text = os.fspath(kv_config) if isinstance(kv_config, os.PathLike) else kv_config
    if not isinstance(text, str):
        raise TypeError(f'kv_config is {kv_config!r:.40}: give "auto", None, the path of a plan, or a plan as a dict')
    if "\0" in text:
        raise ValueError(f"kv_config {text!r:.40} holds a NUL: give the path of a plan, or a plan as a dict")
    try:
        os.fsencode(text)
    except UnicodeEncodeError as err:
        raise ValueError(f"kv_config {text!r:.40} is no text that can be encoded ({err.reason}): correct it") from err
    return text


def _json(plan: Mapping[str, Any]) -> str:
    try:
        return json.dumps(dict(plan), allow_nan=False)
    except (TypeError, ValueError, RecursionError) as err:
        raise type(err)(f"kv_config is no plan as JSON has it ({err}): correct it or tune the model again") from err


def _raise_on_failure(function: Any, *arguments: Any) -> None:
    message = ctypes.create_string_buffer(_MESSAGE_SIZE)
    if not function(*arguments, message, len(message)):
        raise ValueError(message.value.decode("utf-8", errors="replace"))


def set_kv_config(model: Any, kv_config: KvConfig, kv_center: bool = True, kv_ends: bool = True) -> None:
    """Select the plan for contexts created from `model` afterwards, with its centers and exact ends or without.

    Raises ValueError where it is of no use.
    """
    _raise_on_failure(_set_kv_config, model, os.fsencode(_text(kv_config)), kv_center, kv_ends)


def configure(
    model: Any,
    params: llama_cpp.llama_context_params,
    flash_attn: bool | None,
    *,
    kv_config: KvConfig,
    kv_center: bool,
    kv_ends: bool,
    type_k: int | None,
    type_v: int | None,
) -> None:
    """Select the plan and set FlashAttention in `params` as it needs, unless the caller decided that.

    Raises ValueError where plan, model and parameters do not fit, naming the layer, the value and the remedy.
    """
    types_given = type_k is not None or type_v is not None
    if types_given and kv_config not in (None, "", "auto", "none"):
        raise ValueError("kv_config and type_k/type_v ask for different caches: keep one")
    set_kv_config(model, None if types_given else kv_config, kv_center, kv_ends)
    if flash_attn is None and _needs_flash_attn(model, ctypes.byref(params)):
        params.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED
    _raise_on_failure(_check_context, model, ctypes.byref(params))


def kv_cache_types(context: Any) -> list[tuple[str, str] | None]:
    """The (K, V) type names of each layer as allocated; None for a layer without a cache."""

    def pair(il: int) -> tuple[str, str] | None:
        k, v = _type_k(context, il), _type_v(context, il)
        return None if k < 0 else (_type_name(k).decode(), _type_name(v).decode())

    return [pair(il) for il in range(_n_layer(context))]


def kv_cache_bytes(context: Any) -> int:
    """Bytes of all K and V as allocated, the rows of exact ends among them."""
    return int(_kv_bytes(context))


def kv_centers_bytes(context: Any) -> int:
    """Bytes of the tables of centers that turn with positions, which `kv_cache_bytes` leaves out."""
    return int(_centers_bytes(context))


def types_of(llama: Any) -> list[tuple[str, str] | None]:
    """The (K, V) cache type names of each layer as allocated; None for a layer without a cache."""
    return kv_cache_types(llama._ctx.ctx)


def bytes_of(llama: Any) -> int:
    """Bytes of all K and V as allocated, the rows of exact ends among them."""
    return kv_cache_bytes(llama._ctx.ctx)


def has_plan(context: Any) -> bool:
    """Whether the context's cache follows a plan."""
    return bool(_has_plan(context))


def plan_fingerprint(context: Any) -> str | None:
    """The fingerprint of the plan that the context's cache follows, 16 hex digits; None without a plan."""
    text = ctypes.create_string_buffer(_FINGERPRINT_SIZE)
    _fingerprint(context, text, len(text))
    return text.value.decode() or None


def plan_source(context: Any) -> str:
    """Where that plan was read from: "metadata", "JSON", the path of a file, or "none"."""
    return os.fsdecode(_source(context))


def forget_reason() -> None:
    """What failed in this thread before is none of what comes."""
    _take_reason()
    _take_state_refusal()


def failure(message: str) -> str:
    """`message`, with the first error that the library has logged in this thread since `forget_reason`."""
    reason = _take_reason().decode("utf-8", errors="replace")
    return f"{message}: {reason}" if reason else message


class StateRefused(RuntimeError):
    """A state was saved with another plan; the context is as it was."""


def state_failure(message: str) -> RuntimeError:
    """The error for this thread's last state, with the reason; of its own kind where it was refused for its plan."""
    refusal = _take_state_refusal().decode()
    return StateRefused(f"{message}: {refusal}") if refusal else RuntimeError(failure(message))
