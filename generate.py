"""3/8  Sampling with a key-value cache; and a prompt that is computed once for all its responses.

What came before a token is a *past*. Three kinds share one interface, which model.py calls:
positions(t) of new tokens, the mask(T) under which they attend, extend(layer, k, v) by old ones.

    Recorder    sees the prompts pass and keeps their keys and values
    Prefix      prompts that were computed once, continued by any number of rows, with gradients
    Cache       buffers for decoding token by token

Legend: B sequences, T tokens, P tokens of a prompt, S tokens attended to, H heads, D channels of a
head, C channels, V vocabulary, N rows that continue B prompts.
"""
import functools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import data
from model import GPT


# ---- the past ----------------------------------------------------------------------------------
class Recorder:
    """Sees a first pass and keeps each layer's keys and values."""

    def __init__(self):
        self.keys, self.values = [], []

    def positions(self, t):
        return t

    def mask(self, T):
        return None

    def extend(self, layer, k, v):
        self.keys.append(k)
        self.values.append(v)
        return k, v


class Prefix:
    """keys and values: one (B, H, P, D) a layer; length (B,) tokens of each prompt; owner (N,): the
    prompt of each row; context: tokens that the model can read."""

    def __init__(self, keys, values, length, owner, context):
        self.keys, self.values = keys, values
        self.owner, self.context = owner, context
        self.length = length[owner]                                       # (N,)

    def positions(self, t):
        # A response is padded to the longest of the batch: its pads may lie beyond the context.
        return (self.length[:, None] + t).clamp(max=self.context - 1)     # (N, T)

    def mask(self, T):
        """A row sees its prompt without pads, and itself up to each token -> (N, 1, T, P + T)."""
        N, P = len(self.length), self.keys[0].shape[2]
        device = self.length.device
        prompt = torch.arange(P, device=device) < self.length[:, None, None]         # (N, 1, P)
        own = torch.ones(T, T, dtype=torch.bool, device=device).tril()               # (T, T)
        return torch.cat([prompt.expand(N, T, P), own.expand(N, T, T)], 2)[:, None]

    def extend(self, layer, k, v):
        keys, values = self.keys[layer][self.owner], self.values[layer][self.owner]
        return torch.cat([keys, k], 2), torch.cat([values, v], 2)         # (N, H, P + T, D)


def prefix(trunk: GPT, ids, length, owner) -> Prefix:
    """Compute prompts ids (B, P), length (B,) once, for rows that continue them: owner (N,)."""
    recorder = Recorder()
    trunk.hidden(ids, recorder)
    return Prefix(recorder.keys, recorder.values, length, owner, trunk.cfg.block_size)


class Cache:
    """Buffers for decoding. Row b writes its next key at its own length, over its prompt's pads.

    It empties a Recorder of prompts and repeats each n times. length (N,): tokens of each row;
    size: columns, for the longest prompt and the response; static: attend to all of them, which
    never changes a shape, instead of those that may be in use.
    """

    def __init__(self, recorder, n, length, size, static=False):
        P = recorder.keys[0].shape[2]
        self.used = size if static else P + 1
        self.keys, self.values = [], []

        def buffer(recorded):                               # (B, H, P, D) -> (N, H, size, D)
            return F.pad(recorded, (0, 0, 0, size - P)).repeat_interleave(n, 0)

        while recorder.keys:   # layer by layer: what was recorded and the buffers never coexist
            self.keys.append(buffer(recorder.keys.pop(0)))
            self.values.append(buffer(recorder.values.pop(0)))
        self.length, self.static = length.clone(), static
        self.rows = torch.arange(len(length), device=length.device)

    def positions(self, t):
        assert len(t) == 1, f"the cache decodes one token at a time, got {len(t)}"
        return self.length[:, None]                                       # (N, 1)

    def mask(self, T):
        """0 where a row may look, else -inf (N, 1, 1, S): made once, not by each layer."""
        columns = torch.arange(self.used, device=self.length.device)
        beyond = columns > self.length[:, None]                           # (N, S)
        zeros = torch.zeros(beyond.shape, dtype=self.keys[0].dtype, device=beyond.device)
        return zeros.masked_fill_(beyond, -math.inf)[:, None, None]

    def extend(self, layer, k, v):
        self.keys[layer][self.rows, :, self.length] = k[:, :, 0]
        self.values[layer][self.rows, :, self.length] = v[:, :, 0]
        return self.keys[layer][:, :, :self.used], self.values[layer][:, :, :self.used]

    def advance(self):
        self.length += 1
        self.used += not self.static

    def keep(self, rows):
        """Drop all rows but `rows`, an index tensor."""
        self.keys = [k[rows] for k in self.keys]
        self.values = [v[rows] for v in self.values]
        self.length, self.rows = self.length[rows], self.rows[:len(rows)]


# ---- sampling ----------------------------------------------------------------------------------
def next_token(logits, u, temperature=1.0, top_k=0, top_p=1.0):
    """Sample from logits (B, V): invert the cumulative distribution at u (B,), uniform in [0, 1).

    temperature 0 is greedy. top_k keeps the k likeliest tokens, top_p the smallest set of
    probability >= top_p. -> (B,), V where the logits are not finite
    """
    V = logits.shape[-1]
    if temperature == 0:
        best = logits.max(-1)
        return best.indices.masked_fill(~best.values.isfinite(), V)
    p = (logits.float() / temperature).softmax(-1)                        # (B, V)
    if top_k:
        least = p.topk(min(top_k, V)).values[:, -1:]
        p = p.where(p >= least, 0.0)
    if top_p < 1:
        ranked, order = p.sort(-1, descending=True)
        before = ranked.cumsum(-1) - ranked
        beyond = before >= top_p * ranked.sum(-1, keepdim=True)
        beyond[:, 0] = False                                # the likeliest token always stays
        ranked = ranked.masked_fill(beyond, 0.0)
        p = torch.zeros_like(p).scatter(-1, order, ranked)
    cdf = p.cumsum(-1)
    total = cdf[:, -1:]
    # u * total may round up to total, where no token is: stay below it.
    below = torch.nextafter(total, torch.zeros_like(total))
    at = torch.minimum(u[:, None] * total, below)
    token = torch.searchsorted(cdf, at, right=True).squeeze(1)
    return token.masked_fill(~total.squeeze(1).isfinite(), V)


def decode(model, cache, token, u, temperature, top_k, top_p):
    """One step for all rows: the token that follows `token` (B,), drawn with u (B,)."""
    h = model.hidden(token[:, None], cache)[:, 0]                         # (B, C)
    cache.advance()
    return next_token(model.logits(h, few=True), u, temperature, top_k, top_p)


@functools.cache
def compiled_decode():
    """`decode` compiled for fixed shapes: where the launching of kernels is what takes the time."""
    return torch.compile(decode, dynamic=False)


def decode_all(model, cache, h, u, eos, sampling, compile):
    """Sample until every row has ended -> tokens (B, max_new), junk after a row's end.

    h (B, C): the last hidden state of each prompt; u (max_new, B): the numbers to draw with;
    sampling: (temperature, top_k, top_p).
    """
    max_new, B = u.shape
    step_of = compiled_decode() if compile else decode
    new = torch.full((B, max_new), eos, device=h.device)
    rows = torch.arange(B, device=h.device)                 # those that are still computed
    done = torch.zeros(B, dtype=torch.bool, device=h.device)
    token = next_token(model.logits(h, few=True), u[0], *sampling)
    for step in range(max_new):
        if step > 0:
            token = step_of(model, cache, token, u[step, rows], *sampling)
        new[rows, step] = token
        token = token.clamp(max=model.cfg.vocab_size - 1)
        done |= token == eos
        # To look at `done` is to wait for a GPU.
        if h.device.type == "cpu" or step % 8 == 7:
            alive = (~done).nonzero().squeeze(1)
            if len(alive) == 0:
                break
            # Compiled, all rows stay: fewer would be another shape.
            if not compile and len(alive) <= 0.75 * len(rows):
                rows, token, done = rows[alive], token[alive], done[alive]
                cache.keep(alive)
    if (new == model.cfg.vocab_size).any():
        raise ValueError("the model's logits are not finite: use an earlier checkpoint")
    return new


@torch.no_grad()
def generate(model: GPT, prompts, prompt_len, max_new, eos, n=1, temperature=1.0, top_k=0,
             top_p=1.0, seed=0, compile=False, draws=None):
    """Continue prompts (B, P), right-padded with lengths prompt_len (B,), n times each.

    Returns ids (B*n, P + max_new), right-padded with `eos`, the rows of a prompt side by side, and
    their total length (B*n,), EOS included where one was sampled. Each prompt is computed once. A
    row draws the same numbers whatever the others do; draws = (rows, N): these are `rows` of a
    batch of N, and draw the same numbers as in it.
    Raises ValueError if prompt and response do not fit the context.
    """
    B, P, device = len(prompts), prompts.shape[1], prompts.device
    if P + max_new > model.cfg.block_size:
        raise ValueError(f"a prompt of {P} tokens and {max_new} new ones do not fit the context of "
                         f"{model.cfg.block_size}: shorten the prompt or lower --max-new")
    was_training = model.training
    model.eval()
    recorder = Recorder()
    h = model.hidden(prompts, recorder)                                   # (B, P, C)
    h = h[torch.arange(B, device=device), prompt_len - 1].repeat_interleave(n, 0)   # (B n, C)
    start = prompt_len.repeat_interleave(n)                               # (B n,)
    # Compiled, the cache has one size for all prompts: another would be compiled anew.
    size = model.cfg.block_size if compile else P + max_new
    cache = Cache(recorder, n, start, size, static=compile)
    rng = torch.Generator(device).manual_seed(seed)
    rows, N = draws or (slice(None), B * n)
    u = torch.rand(max_new, N, generator=rng, device=device)[:, rows]     # (max_new, B n)
    new = decode_all(model, cache, h, u, eos, (temperature, top_k, top_p), compile)
    model.train(was_training)
    return join(prompts, start, new, eos)


def join(prompts, start, new, eos):
    """Put tokens new (B n, R) behind prompts (B, P) of length start (B n,) -> ids, total length."""
    P, (N, R) = prompts.shape[1], new.shape
    after = (new == eos).cumsum(1) > (new == eos).int()     # columns behind the first EOS
    new = new.masked_fill(after, eos)
    ids = F.pad(prompts, (0, R)).repeat_interleave(N // len(prompts), 0)  # (B n, P + R)
    columns = torch.arange(P + R, device=ids.device)
    ids.masked_fill_(columns >= start[:, None], eos)
    ids.scatter_(1, start[:, None] + torch.arange(R, device=ids.device), new)
    return ids, start + (~after).sum(1)


class Samples(NamedTuple):
    ids: Tensor         # (N, T)  prompt and response, right-padded
    length: Tensor      # (N,)    tokens of both, EOS included where one was sampled
    responses: list     # N lists of the response's tokens, EOS included where one was sampled


def sample(model: GPT, prompts, max_new, eos, n=1, **how) -> Samples:
    """`generate` for encoded prompts, lists of ids, on the model's device; **how is handed on."""
    device = next(model.parameters()).device
    ids, length = generate(model, *data.pad(prompts, device), max_new, eos, n=n, **how)
    ends = zip(ids.tolist(), length.tolist())
    responses = [row[len(prompts[i // n]):end] for i, (row, end) in enumerate(ends)]
    return Samples(ids, length, responses)


@torch.no_grad()
def answer(model, rm, prompts, enc, max_new, seed, at_once=0, mine=lambda chunks: chunks):
    """Sample an answer to each prompt, a list of ids, and show three -> rm's scores, [] without rm.

    at_once: prompts sampled together, 0 for all; mine(chunks) keeps those of this process.
    """
    scores = []
    for rows in mine(data.chunks(range(len(prompts)), at_once)):
        asked = [prompts[i] for i in rows]
        samples = sample(model, asked, max_new, enc.eot_token, seed=seed,
                         draws=(list(rows), len(prompts)))
        if rm is not None:
            scores += rm.score(samples.ids, samples.length).tolist()
        for i in range(min(3, len(rows)) if rows[0] == 0 else 0):
            text = enc.decode(asked[i] + samples.responses[i]).replace("\n\n", " | ")
            tqdm.write(text if rm is None else f"{scores[i]:+.2f}  {text}")
    return scores
