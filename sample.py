"""Talk to a model: complete a prompt, chat, or keep the best of n responses.

    python sample.py ppo.pt --prompt "What is the capital of Velia?"
    python sample.py ppo.pt --chat
    python sample.py sft.pt --prompt "Name three animals." --rm rm.pt --best-of 16
    python sample.py base.pt --raw --prompt "Facts: Velia is"    # no template: continue the text

[IG] Ouyang et al. 2022, arXiv 2203.02155
"""
import itertools
import sys
from collections import Counter
from dataclasses import dataclass

import torch

import data
import generate
import interop
from model import GPT, Scorer
from plumbing import cli
from plumbing.processes import get_device


@dataclass(frozen=True)
class Config:
    model: tuple[str, ...] = ()     # the model to talk to, made by pretrain.py, sft.py or ppo.py
    prompt: str = ""                # what to say to it; none: one prompt of each of the sandbox's
                                    # use cases
    chat: bool = False              # a conversation in the terminal; an empty line ends it
    raw: bool = False               # continue the prompt as plain text, without the chat template
    n: int = 1                      # responses to each prompt; [1, 100_000]
    rm: str = ""                    # the reward model that scores the responses, made by reward.py
    best_of: int = 0                # sample this many, show the --n that --rm scores highest;
                                    # [0, 100_000]
    temperature: float = 1.0        # 0 is greedy, else at least 0.01 ([IG] F: 1); >= 0
    top_k: int = 0                  # keep the k likeliest tokens, 0 for all; >= 0
    top_p: float = 1.0              # keep the likeliest tokens of this probability together; (0, 1]
    max_new: int = 32               # longest response, tokens; >= 1
    seed: int = 0                   # of the samples; >= 0
    device: str = "auto"            # cpu, cuda, mps, or auto: cuda where there is one


PRESETS = {"sandbox": {}}


def draw(model, enc, prompt_ids, cfg, seed):
    """Sample max(n, best_of) responses to one prompt -> generate.Samples"""
    return generate.sample(
        model, [prompt_ids], cfg.max_new, enc.eot_token, n=max(cfg.n, cfg.best_of),
        temperature=cfg.temperature, top_k=cfg.top_k, top_p=cfg.top_p, seed=seed)


def respond(model, rm, enc, prompt_ids, cfg, seed=0):
    """Sample max(n, best_of) responses to one prompt.

    Returns [(response text, score or None), ...], best first if a reward model scores them. Raises
    ValueError if a score is not finite.
    """
    samples = draw(model, enc, prompt_ids, cfg, seed)
    texts = []
    for response in samples.responses:
        if cfg.raw:     # the space that the text goes on with belongs to it
            tokens = [t for t in response if t != enc.eot_token]
            texts.append(enc.decode(tokens).strip("\n"))
        else:
            texts.append(data.decode_response(enc, response))
    if rm is None:
        return [(text, None) for text in texts]
    with torch.no_grad():
        scores = rm.score(samples.ids, samples.length)
    if not scores.isfinite().all():
        raise ValueError("the reward model gives scores that are not finite numbers: train it "
                         "again, or name another with --rm")
    ranked = sorted(zip(texts, scores.tolist()), key=lambda scored: -scored[1])
    return ranked[:cfg.n] if cfg.best_of else ranked


def listen():
    """What somebody types next, "" at the end of the input. Raises ValueError if it is no text."""
    try:
        return input("You: ").strip()
    except EOFError:
        return ""
    except UnicodeDecodeError as e:
        raise ValueError(f"what was typed is not UTF-8 ({e.reason})") from e


def chat(model, enc, cfg, room):
    """Read lines, answer them and remember both; what no longer fits is forgotten by whole turns.

    An answer ends where the model ends it, and may hold empty lines: those of real data do. One
    that has not ended after max_new tokens is forgotten with its question: in a small model noise
    begets noise. Raises ValueError if nothing can be read.
    """
    if sys.stdin is None:
        raise ValueError("--chat reads what you type, and standard input is closed: leave it open")
    messages = []
    for turn in itertools.count():
        said = listen()
        if not said:
            return
        asked = [*messages, {"role": "user", "content": said}]
        [ids] = interop.encode_prompts([data.Prompt(asked)], enc, room, Counter())
        [response] = draw(model, enc, ids, cfg, cfg.seed + turn).responses
        reply = data.decode_response(enc, response)
        if response[-1] == enc.eot_token:
            print(f"Assistant: {reply}")
            messages = [*asked, {"role": "assistant", "content": reply}]
        else:
            print(f"Assistant: {reply} ... (not ended after --max-new {cfg.max_new} tokens: this "
                  f"turn is forgotten)")


def show(model, rm, enc, cfg, room, prompt):
    """Print the responses to one prompt, with their scores where there is a reward model."""
    if cfg.raw:
        ids = enc.encode_ordinary(cfg.prompt)[-room:]
    else:
        [ids] = interop.encode_prompts([prompt], enc, room, Counter())
    if not cfg.prompt:
        print(" | ".join(m["content"] for m in prompt.messages))
    for text, score in respond(model, rm, enc, ids, cfg, cfg.seed):
        print(text if score is None else f"{score:+.2f}  {text}")


def check(cfg):
    """Raise ValueError for settings that do not go together: none is accepted and ignored."""
    if len(cfg.model) != 1:
        raise ValueError("name one model to talk to, e.g. `python sample.py ppo.pt --chat`; "
                         "`make` trains one")
    if cfg.best_of and not cfg.rm:
        raise ValueError("--best-of needs --rm FILE: the reward model that says which response "
                         "is best")
    if cfg.raw and (cfg.chat or not cfg.prompt):
        raise ValueError("--raw needs a --prompt to continue, and no --chat")
    if cfg.chat and (cfg.prompt or cfg.n > 1 or cfg.best_of or cfg.rm):
        raise ValueError("--chat gives one answer to each line that you type: leave out --prompt, "
                         "--n, --best-of and --rm")
    if 0 < cfg.best_of < cfg.n:
        raise ValueError(f"--n {cfg.n} is more than --best-of {cfg.best_of} samples")
    if 0 < cfg.temperature < 0.01:
        raise ValueError(f"--temperature {cfg.temperature} is too small to divide by: use 0, which "
                         f"is greedy, or at least 0.01")
    if cfg.temperature == 0 and (cfg.top_k, cfg.top_p) != (Config.top_k, Config.top_p):
        raise ValueError("--temperature 0 takes the likeliest token: leave out --top-k and --top-p")


def main(cfg):
    check(cfg)
    device = get_device(cfg)
    model, checkpoint = interop.load_model(cfg.model[0], GPT, device=device)
    enc = interop.tokenizer_of(checkpoint)
    context = model.cfg.block_size
    if cfg.chat:
        return chat(model, enc, cfg, context - cfg.max_new)
    rm = None
    if cfg.rm:
        rm, _ = interop.load_model(cfg.rm, Scorer, checkpoint["tokenizer"], device, context=context)
        rm.eval()
    if cfg.prompt:
        prompts = [data.Prompt([{"role": "user", "content": cfg.prompt}])]
    else:
        drawn = interop.load("held-out prompts", (), Counter(), flag="--prompt", n=200,
                             seed=cfg.seed)
        prompts = list({p.use_case: p for p in drawn}.values())
    for prompt in prompts:
        show(model, rm, enc, cfg, context - cfg.max_new, prompt)


if __name__ == "__main__":
    cli.run(main, Config, PRESETS, __doc__, positional="model")
