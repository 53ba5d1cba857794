"""What several tests of the network share: a tiny GPT in which every weight matters."""

import torch

from model import GPT, GPTConfig

CFG = GPTConfig(vocab_size=23, block_size=40, n_layer=2, n_head=2, n_embd=16)


def lively(module, seed=0):
    """The module with weights so large that tokens, positions and biases all matter, to be read."""
    torch.manual_seed(seed)
    for name, p in module.named_parameters():
        is_gain = "ln_" in name and name.endswith("weight")
        torch.nn.init.normal_(p, 1.0 if is_gain else 0.0, 0.3)
    return module.eval()


def gpt(seed=0, cfg=CFG):
    return lively(GPT(cfg), seed)


def tokens(*shape, seed=0):
    return torch.randint(CFG.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def ragged(lengths, seed):
    """Rows of these lengths, right-padded with junk -> ids, length."""
    return tokens(len(lengths), max(lengths), seed=seed), torch.tensor(lengths)
