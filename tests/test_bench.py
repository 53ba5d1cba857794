"""evidence/bench.py: what the floor counts, and that a race measures."""

import multiprocessing
import os
import sys
import time

import pytest
from orphans import hello, outlives
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from evidence import bench
from model import GPT, GPTConfig
from plumbing import cli

CFG = GPTConfig(vocab_size=23, block_size=40, n_layer=2, n_head=2, n_embd=16)
NANO = """
from types import SimpleNamespace
import torch
GPTConfig = SimpleNamespace
class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()
        assert config.bias is True and config.dropout == 0.0 and config.n_layer == 1
        self.table = torch.nn.Embedding(config.vocab_size, config.vocab_size)
    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        return torch.optim.AdamW(self.parameters(), lr=learning_rate, betas=betas)
    def forward(self, x, y):
        logits = self.table(x)
        return logits, torch.nn.functional.cross_entropy(logits.view(-1, 23), y.view(-1))
    def generate(self, idx, max_new_tokens):
        assert not self.training and idx.shape == (2, 4) and max_new_tokens == 3
"""


def test_floors_count_the_arithmetic_that_pytorch_counts():
    """PyTorch counts a causal row as a full square, and attention only where it is made of
    products."""
    gpt, ids = GPT(CFG), bench.tokens_of(CFG, 3, 12)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        gpt(ids)
    assert bench.flops(CFG, 36, 3 * 12 * 12, 36) == counter.get_total_flops()


def test_a_rollout_reads_the_weights_and_the_cache_once_a_step():
    prefill, steps = bench.decoding(CFG, B=3, P=5, R=2, dtype="fp32")
    weights = 12 * 2 * 16 * 16 + 23 * 16
    assert steps[1] == 4 * (2 * weights + 3 * 2 * 2 * 16 * (6 + 7))  # 2 layers' K, V of 6, 7 tokens
    assert prefill[0] == bench.flops(CFG, 15, 3 * 15, 3)


def test_the_floor_is_the_longer_of_arithmetic_and_traffic_of_each_part():
    assert bench.floor([(100, 1), (0, 30)], flops_per_second=10, bytes_per_second=3) == 10 + 10


@pytest.mark.parametrize(
    ("case", "shape", "tokens"),
    [
        ("train", (2, 8), 16),
        ("sft", (2, 8), 16),
        ("generate", (4, 4, 5), 20),
        ("rm", (2, 3, 4, 5), 38),
        ("ppo", (4, 4, 5), 20),
    ],
)
def test_a_case_does_its_work_and_knows_its_size(case, shape, tokens):
    made = bench.OURS[case](CFG, shape, bench.Config(device="cpu"))
    made.run()
    made.run()
    assert made.tokens == tokens and all(flops > 0 for flops, _ in made.work)


def test_processes_take_turns():
    systems = {
        "copy": (bench.copy, (1000, "cpu"), True),
        "ours": (bench.train, (CFG, (2, 8), bench.Config(device="cpu")), False),
    }
    results = bench.race(systems, 3, "cpu")
    assert list(results) == ["copy", "ours"] and results["ours"].tokens == 16
    for result in results.values():
        assert len(result.seconds) == 3 and min(result.seconds) > 0 and result.memory > 50


def test_systems_are_compared_by_medians_of_their_rounds():
    """The machine does 10 FLOPs and 4 bytes a second; ours takes 2 s for what needs 1.5 s."""
    results = {
        "matmul": bench.Result([9.0, 10.0, 30.0], 0.0, 0, [(100, 0)]),
        "copy": bench.Result([1.0, 2.0, 3.0], 0.0, 0, [(0, 8)]),
        "ours": bench.Result([2.0, 4.0, 1.0], 70.0, 6, [(10, 1), (1, 2)]),
        "peer": bench.Result([4.0, 4.0, 4.0], 80.0, 6, []),
    }
    ours, peer = bench.compare(results)
    assert ours["system"] == "ours" and ours["ratio"] == ours["ratio_most"] == 1
    assert (ours["seconds"], ours["tokens_per_second"], ours["peak_mb"]) == (2, 3, 70)
    assert (ours["floor_seconds"], ours["of_floor"], ours["mfu"]) == (1.5, 0.75, 11 / 2 / 10)
    assert ours["of_bytes"] == 3 / 2 / 4
    assert (peer["ratio"], peer["ratio_least"], peer["ratio_most"]) == (2, 1, 4)
    ours, _ = bench.compare(results, stated=(55, 6))
    assert (ours["mfu"], ours["of_bytes"], ours["of_floor"]) == (11 / 2 / 55, 3 / 2 / 6, 0.75)


def test_a_card_is_known_by_its_name():
    assert bench.stated_peak("NVIDIA H100 80GB HBM3", "bf16") == (989e12, 3.35e12)
    assert bench.stated_peak("NVIDIA H100 PCIe", "bf16") == (756e12, 2.0e12)
    assert bench.stated_peak("NVIDIA H100 80GB HBM3", "fp32") is None
    assert bench.stated_peak("cpu", "bf16") is None


@pytest.mark.parametrize(
    "bad",
    ["--cases train,ppoo", "--size L", "--dtype fp8", "--peer trlx", "--rounds 0", "--device tpu",
     "--peer nanogpt", "--peer nanogpt=nowhere", "--peer trl=x"],
)
def test_what_cannot_be_measured_is_a_sentence(bad):
    with pytest.raises(ValueError, match=bad.split()[0]):
        bench.main(cli.parse(bench.Config, bench.PRESETS, "", bad.split()))


def test_a_peer_that_is_not_installed_is_named_with_its_version(monkeypatch):
    monkeypatch.setitem(sys.modules, "trl", None)
    with pytest.raises(ValueError, match="--peer trl: `pip install trl==1.10.0` first"):
        bench.main(bench.Config(peer="trl"))


def test_nanogpts_own_code_is_raced(tmp_path):
    """Of a folder's model.py, called as its train.py and sample.py do."""
    (tmp_path / "model.py").write_text(NANO)
    cfg = bench.Config(peer=f"nanogpt={tmp_path}", device="cpu")
    bench.check_peer(cfg.peer)
    c = GPTConfig(23, 16, 1, 2, 8)
    for case, shape, tokens in (("train", (2, 8), 16), ("generate", (2, 4, 3), 6)):
        [(name, make)] = bench.peers_of(cfg, case).items()
        peer = make(c, shape, cfg)
        peer.run()
        assert (name, peer.tokens) == ("nanoGPT", tokens)
    assert bench.peers_of(cfg, "ppo") == {}


def test_a_plot_that_is_there_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.delattr(bench, "measure")
    pytest.importorskip("matplotlib")
    path = tmp_path / "bench.png"
    path.write_text("mine")
    with pytest.raises(ValueError, match="bench.png is there already"):
        bench.main(bench.Config(sweep=True, out=str(path)))
    assert path.read_text() == "mine"


def test_a_sweep_draws_what_it_measured(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    path = tmp_path / "bench.png"
    path.write_text("mine")
    point = {"seconds": 2.0, "floor_seconds": 1.0}
    monkeypatch.setattr(bench, "measure", lambda case, c, shape, cfg: [point])
    bench.main(bench.Config(sweep=True, out=str(path), overwrite=True))
    assert path.read_bytes()[:4] == b"\x89PNG" and os.listdir(tmp_path) == ["bench.png"]


def endless_case():
    def run():
        hello()
        time.sleep(60)

    return bench.Case(run, 0, [])


def race_without_end():
    bench.race({"ours": (endless_case, (), False)}, 1, "cpu")


def test_no_process_outlives_the_race(monkeypatch):
    fork = multiprocessing.get_context("fork")
    monkeypatch.setattr(bench.multiprocessing, "get_context", lambda kind: fork)
    assert not outlives(race_without_end)


def test_a_sweep_replaces_no_file_that_appeared_while_it_ran(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    out = tmp_path / "sweep.png"

    def measure(*_):
        out.write_text("somebody else's")
        return [{"seconds": 1.0, "floor_seconds": 0.5}]

    monkeypatch.setattr(bench, "measure", measure)
    with pytest.raises(ValueError, match=r"sweep\.png is there already"):
        bench.sweep(bench.Config(out=str(out), device="cpu"))
    assert out.read_text() == "somebody else's"
