"""What others wrote, and the one door to it: data files, records, tokenizers, GPT-2's weights.

    records = interop.load("demonstrations", cfg.data, counts, flag="--data", enc=enc, n=400)
    model, checkpoint = interop.load_model("sft.pt", GPT)
    enc = interop.tokenizer_of(checkpoint)
"""
from interop import gpt2, plan, show
from interop.door import (
    Text,
    hold_out_labelers,
    load,
    load_model,
    load_text,
    true_scores,
)
from interop.formats import files_in, read_records
from interop.gpt2 import model_files, read_model
from interop.records import read_file
from interop.tokenizers import get_tokenizer, tokenizer_id, tokenizer_of

__all__ = [
    "Text",
    "files_in",
    "get_tokenizer",
    "gpt2",
    "hold_out_labelers",
    "load",
    "load_model",
    "load_text",
    "model_files",
    "plan",
    "read_file",
    "read_model",
    "read_records",
    "show",
    "tokenizer_id",
    "tokenizer_of",
    "true_scores",
]
