"""A Llama of 93 million parameters from `transformers`, one sequence of so many tokens, with random weights.

manualgrad bench --model manualgrad.bench.language_model:make --batch 16 64 256 1024
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def make(tokens: int) -> tuple[nn.Module, dict[str, Any], None]:
    """The model has its loss itself."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(vocab_size=8000, hidden_size=1024, intermediate_size=2816, num_hidden_layers=6,
                         num_attention_heads=16, use_cache=False, max_position_embeddings=max(2048, tokens))  # fmt: skip
    ids = torch.randint(8000, (1, tokens), generator=torch.Generator().manual_seed(0))
    return LlamaForCausalLM(config), {"input_ids": ids, "labels": ids}, None
