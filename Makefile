# The table of contents: every artefact is a target.   make | make test | make seeds | make clean
#   base.pt -> sft.pt -> comparisons.jsonl -> rm.pt -> ppo.pt -> report/
# SEED=1 OUT=runs/1 make   runs the pipeline with another seed in another folder.

PYTHON ?= python3
SEED   ?= 0
OUT    ?= .
PY     := .venv/bin/python

all: $(OUT)/report/report.md

.venv/ready: requirements.txt
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --requirement requirements.txt
	touch $@

$(OUT)/base.pt: | .venv/ready
	mkdir -p $(OUT)
	$(PY) pretrain.py --seed $(SEED) --out $@

$(OUT)/sft.pt: $(OUT)/base.pt
	$(PY) sft.py --seed $(SEED) --init $< --out $@

$(OUT)/comparisons.jsonl: $(OUT)/sft.pt
	$(PY) label.py --seed $(SEED) --init $< --out $@

$(OUT)/rm.pt: $(OUT)/sft.pt $(OUT)/comparisons.jsonl
	$(PY) reward.py --seed $(SEED) --init $< --data $(OUT)/comparisons.jsonl --out $@

$(OUT)/ppo.pt: $(OUT)/sft.pt $(OUT)/rm.pt
	$(PY) ppo.py --seed $(SEED) --init $< --rm $(OUT)/rm.pt --out $@

$(OUT)/report/report.md: $(OUT)/base.pt $(OUT)/sft.pt $(OUT)/ppo.pt $(OUT)/rm.pt
	$(PY) evaluate.py $(OUT)/base.pt $(OUT)/sft.pt $(OUT)/ppo.pt --rm $(OUT)/rm.pt --out $(OUT)/report

# plain PPO, without pretraining gradients: what the mix is for
$(OUT)/ppo-plain.pt: $(OUT)/sft.pt $(OUT)/rm.pt
	$(PY) ppo.py --seed $(SEED) --init $< --rm $(OUT)/rm.pt --ptx-coef 0 --out $@

$(OUT)/report/plain/report.md: $(OUT)/base.pt $(OUT)/sft.pt $(OUT)/ppo-plain.pt $(OUT)/ppo.pt $(OUT)/rm.pt
	$(PY) evaluate.py $(wordlist 1, 4, $^) --rm $(OUT)/rm.pt --out $(dir $@)

# the README's numbers: the whole pipeline over five seeds, mean and 95 % interval; OMP_NUM_THREADS=1 make -j2 seeds
# runs two of them side by side
seeds: $(patsubst %,runs/%.done,1 2 3 4 5)
	$(PY) evaluate.py --seeds runs/*/report/plain/report.json

runs/%.done: | .venv/ready
	$(MAKE) OUT=runs/$* SEED=$* runs/$*/report/plain/report.md
	touch $@

test: .venv/ready
	$(PY) -m pytest -q

clean:
	rm -rf *.pt *.pt.part *.log.jsonl comparisons.jsonl report runs

.PHONY: all seeds test clean
.SECONDARY:
