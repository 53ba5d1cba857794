"""What others wrote, and the one door to it: files of data, tokenizers, GPT-2's weights.

    records = interop.load("demonstrations", cfg.data, counts, flag="--data", enc=enc, n=400)
    model, checkpoint = interop.load_model("sft.pt", GPT)
    enc = interop.tokenizer_of(checkpoint)
"""
# ruff: noqa: F401, I001 (what others use, in few lines)
from interop import gpt2, plan, show
from interop.door import (
    hold_out_labelers, load, load_corpus, load_model, load_text, true_score,
)
from interop.encode import encode_demonstrations, encode_prompts, encode_rankings, report
from interop.formats import read_records
from interop.gpt2 import model_files, read_model
from interop.records import agreement, split
from interop.rows import read_file
from interop.texts import pack
from interop.tokenizers import (
    EOS, get_tokenizer, tokenizer_files_of, tokenizer_id, tokenizer_of,
)
