"""2/8  The GPT, and the Scorer: a GPT's trunk with one number at each token instead of logits.

The architecture is GPT-2's: learned positions, pre-norm blocks, GELU (tanh), tied embeddings; its
names too, so that its weights load. (GPT-3 has sparse attention in every other layer.) Nothing
takes an attention mask: rows are padded on the right, and causal attention sees no trailing pad.

    python model.py plan --preset paper-6b --gpus 8      # the memory that each stage needs
    python model.py export ppo.pt folder                 # a folder for Hugging Face's transformers

Legend: B sequences, T tokens, S tokens attended to, C channels, H heads, D = C / H, V vocabulary,
M marked actions.
[IG] Ouyang et al. 2022, arXiv 2203.02155   [S20] Stiennon et al. 2020, arXiv 2009.01325
"""
import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint as recomputed


@dataclass(frozen=True)
class GPTConfig:
    vocab_size: int = 50257
    block_size: int = 1024      # context, tokens
    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768           # channels
    dropout: float = 0.0        # of what each block adds to the residual stream


def attention(q, k, v, mask):
    """softmax(q k^T / sqrt(D)) v, with q (B, H, T, D) and k, v (B, H, S, D) -> (B, H, T, D).

    mask: None is causal; else bool (B, 1, T, S), True where q may look. In decoding, where T is 1,
    it holds 0 or -inf, added to the products.
    """
    B, H, T, D = q.shape
    S = k.shape[2]
    slow_on_cpu = q.device.type == "cpu" and q.dtype == torch.bfloat16
    if T == 1 or not slow_on_cpu:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
    # On a CPU the fused kernel's bf16 backward takes 2-6 times as long as two plain products.
    if mask is None:
        blocked = torch.ones(T, S, dtype=torch.bool).triu(1)              # (T, S)
    else:
        blocked = ~mask.expand(B, H, T, S).reshape(B * H, T, S)
    bias = torch.zeros_like(blocked, dtype=q.dtype).masked_fill_(blocked, -math.inf)
    q, k, v = (z.reshape(B * H, -1, D) for z in (q, k, v))
    products = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=D**-0.5)   # (B H, T, S)
    return (products.softmax(-1) @ v).view(B, H, T, D)


class Attention(nn.Module):
    def __init__(self, cfg: GPTConfig):
        super().__init__()
        self.n_head = cfg.n_head
        self.c_attn = nn.Linear(cfg.n_embd, 3 * cfg.n_embd)
        self.c_proj = nn.Linear(cfg.n_embd, cfg.n_embd)

    def forward(self, x, layer, past, mask):
        B, T, C = x.shape
        q, k, v = self.c_attn(x).split(C, dim=2)                          # (B, T, C)
        q, k, v = (z.view(B, T, self.n_head, -1).transpose(1, 2) for z in (q, k, v))
        if past is not None:
            k, v = past.extend(layer, k, v)                               # (B, H, S, D)
        y = attention(q, k, v, mask)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))            # (B, T, C)


class Block(nn.Module):
    def __init__(self, cfg: GPTConfig):
        super().__init__()
        self.ln_1 = nn.LayerNorm(cfg.n_embd)
        self.attn = Attention(cfg)
        self.ln_2 = nn.LayerNorm(cfg.n_embd)
        self.c_fc = nn.Linear(cfg.n_embd, 4 * cfg.n_embd)
        self.c_proj = nn.Linear(4 * cfg.n_embd, cfg.n_embd)
        self.dropout = nn.Dropout(cfg.dropout)      # residual only: [IG] C.1 uses 0.2 in SFT
        self.compiled = None

    def compute(self, x, layer=0, past=None, mask=None):
        x = x + self.dropout(self.attn(self.ln_1(x), layer, past, mask))
        h = F.gelu(self.c_fc(self.ln_2(x)), approximate="tanh")           # (B, T, 4 C)
        return x + self.dropout(self.c_proj(h))

    def forward(self, x, layer, past, mask):
        if past is None and self.compiled is not None:
            return self.compiled(x)
        return self.compute(x, layer, past, mask)

    def compile(self):
        """Compile the pass without a past: its shapes are few, those with one are many."""
        self.compiled = torch.compile(self.compute)


class GPT(nn.Module):
    """A decoder-only transformer. `hidden` runs the trunk; `logits` unembeds any rows of it.

    A `past` (generate.py) holds what came before: positions(t), mask(T), extend(layer, k, v). What
    is special about a model it declares itself: undecayed, blocks, transformer.
    """
    kind = "gpt"
    config_class = GPTConfig
    undecayed = ("wpe.weight",)     # matrices without weight decay, by the end of their names
    logits_at_once = 1 << 26        # numbers, 256 MB in fp32; 16 times as many on a GPU

    def __init__(self, cfg: GPTConfig):
        super().__init__()
        self.cfg = cfg
        self.wte = nn.Embedding(cfg.vocab_size, cfg.n_embd)
        self.wpe = nn.Embedding(cfg.block_size, cfg.n_embd)
        self.h = nn.ModuleList(Block(cfg) for _ in range(cfg.n_layer))
        self.ln_f = nn.LayerNorm(cfg.n_embd)
        # GPT-2: N(0, 0.02), what ends in the residual stream scaled by depth. 0.02 belongs to a
        # width of 768: narrow models start with larger matrices, and learn to copy twice as fast.
        std = 0.02 * math.sqrt(max(1.0, 768 / cfg.n_embd))
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Embedding):
                nn.init.normal_(layer.weight, 0.0, 0.02)
            elif isinstance(layer, nn.Linear):
                depth = math.sqrt(2 * cfg.n_layer) if name.endswith("c_proj") else 1.0
                nn.init.normal_(layer.weight, 0.0, std / depth)
                nn.init.zeros_(layer.bias)
        if not self.wpe.weight.is_meta:
            # Waves (Vaswani et al. 2017): from random positions, copying is learned later.
            t, c = torch.arange(cfg.block_size)[:, None], torch.arange(cfg.n_embd)
            angle = t / 300 ** (c // 2 * 2 / cfg.n_embd) + c % 2 * math.pi / 2
            self.wpe.weight.data = 0.04 * angle.sin()                     # (block_size, C)

    def blocks(self):
        """The modules that are compiled, recomputed and sharded one by one."""
        return list(self.h)

    @property
    def transformer(self):
        """What --shard splits over processes; its `hidden` gathers the parts."""
        return self

    def hidden(self, ids, past=None):
        """ids (B, T) -> final hidden states (B, T, C)."""
        _B, T = ids.shape
        t = torch.arange(T, device=ids.device)
        positions = t if past is None else past.positions(t)              # (T,) or (B, T)
        mask = None if past is None else past.mask(T)
        x = self.wte(ids) + self.wpe(positions)                           # (B, T, C)
        for layer, block in enumerate(self.h):
            x = block(x, layer, past, mask)
        return self.ln_f(x)

    def logits(self, h, few=False):
        """(..., C) -> (..., V): the unembedding is the embedding, transposed. few: h is (B, C)."""
        unembedding = self.wte.weight                                     # (V, C)
        if few and self.cfg.vocab_size >= 10_000:
            # On a CPU two thirds of the time of F.linear, with 50k words and 8 rows.
            return (unembedding @ h.t()).t()
        return F.linear(h, unembedding)

    def forward(self, ids, past=None):
        """ids (B, T) -> logits (B, T, V)."""
        return self.logits(self.hidden(ids, past))

    def in_chunks(self, f, h, actions):
        """f(logits, actions) -> tensors, over h (M, C) and actions (M,) in chunks: all logits of a
        large vocabulary never exist at once; the backward pass computes each chunk's again."""
        def of_chunk(h, actions):
            return f(self.logits(h).float(), actions)

        numbers = self.logits_at_once * (16 if h.is_cuda else 1)
        rows = max(1, numbers // self.cfg.vocab_size)
        if len(h) <= rows:
            parts = [of_chunk(h, actions)]
        else:
            parts = [recomputed(of_chunk, x, a, use_reentrant=False, preserve_rng_state=False)
                     for x, a in zip(h.split(rows), actions.split(rows))]
        return [torch.cat([x.reshape(-1) for x in part]) for part in zip(*parts)]

    def marked(self, ids, mask):
        """Where actions of ids (B, T) are that mask (B, T-1) marks: an index (M,) into B T tokens.

        A mask on the CPU is read there, so that nothing waits for a GPU."""
        at = mask.flatten().nonzero().squeeze(1)            # (M,) of B (T-1); B T has a column more
        return (at + at // mask.shape[1]).to(ids.device, non_blocking=True)

    def loss(self, ids, mask):
        """Mean cross-entropy, nats, of the actions of ids (B, T) that mask (B, T-1) marks.

        Logits are computed at marked positions only: the same number, a fraction of the work.
        """
        def total(logits, actions):
            return (F.cross_entropy(logits, actions, reduction="sum"),)

        at = self.marked(ids, mask)
        h = self.hidden(ids).flatten(0, 1)[at]              # (M, C)
        [totals] = self.in_chunks(total, h, ids.flatten()[at + 1])        # (chunks,)
        return totals.sum() / len(h)

    def logp(self, ids, mask, temperature=1.0, past=None):
        """Log-probabilities and entropies, nats, of the actions of ids (B, T) that mask marks.

        mask (B, T-1) -> logp (B, T-1), entropy (B, T-1), 0 where mask is False. The temperature
        divides the logits, as it did when the tokens were sampled.
        """
        def chosen_and_entropy(logits, actions):            # (m, V), (m,) -> (m,), (m,)
            logq = F.log_softmax(logits / temperature, dim=-1)
            chosen = logq.gather(1, actions[:, None]).squeeze(1)
            return chosen, -(logq.detach().exp() * logq.detach()).sum(1)

        at = self.marked(ids, mask)
        h = self.hidden(ids, past).flatten(0, 1)[at]        # (M, C)
        found = self.in_chunks(chosen_and_entropy, h, ids.flatten()[at + 1])
        zeros = torch.zeros(ids.numel(), device=ids.device)
        return [zeros.index_put((at,), x).view(ids.shape)[:, :-1] for x in found]


class Scorer(nn.Module):
    """A GPT's trunk with a projection to one number ([IG] 3.5): reward model, value function."""
    kind = "scorer"
    config_class = GPTConfig
    undecayed = GPT.undecayed

    def __init__(self, cfg: GPTConfig):
        super().__init__()
        self.cfg = cfg
        self.trunk = GPT(cfg)
        self.head = nn.Linear(cfg.n_embd, 1)
        std = 1 / math.sqrt(cfg.n_embd + 1)                 # [S20]; not in [IG]
        nn.init.normal_(self.head.weight, 0.0, std)
        nn.init.zeros_(self.head.bias)

    def blocks(self):
        return self.trunk.blocks()

    @property
    def transformer(self):
        return self.trunk

    def forward(self, ids, past=None):
        """ids (B, T) -> (B, T): column t has seen ids[:, :t+1]. Values end before the last one."""
        return self.head(self.trunk.hidden(ids, past)).squeeze(-1).float()

    def score(self, ids, length, past=None):
        """The score: the number at the last token of each row. ids (B, T), length (B,) -> (B,)."""
        return self(ids, past).gather(1, length[:, None] - 1).squeeze(1)


def scorer_from(gpt: GPT) -> Scorer:
    """A Scorer whose trunk starts as a copy of `gpt`; no dropout, of which [IG] says nothing."""
    scorer = Scorer(replace(gpt.cfg, dropout=0.0))
    scorer.trunk.load_state_dict(gpt.state_dict())
    return scorer


if __name__ == "__main__":
    from interop import plan  # not needed to understand what stands above
    plan.main()
