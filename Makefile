# The table of contents: every artefact is a target.
#   base.pt -> sft.pt -> comparisons.jsonl -> rm.pt -> ppo.pt -> report/
#                     -> ratings.jsonl -> feedme.pt
#   make | make rounds | make claims | make test | make clean
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

# plain PPO, without pretraining gradients: what the mix is for
$(OUT)/ppo-plain.pt: $(OUT)/sft.pt $(OUT)/rm.pt
	$(PY) ppo.py --seed $(SEED) --init $< --rm $(OUT)/rm.pt --ptx-coef 0 --out $@

# FeedME: demonstrations and the samples that labelers rated 7 of 7
$(OUT)/ratings.jsonl: $(OUT)/sft.pt
	$(PY) label.py --seed $(SEED) --init $< --rate --swap 0 --n 1000 --out $@

$(OUT)/feedme.pt: $(OUT)/base.pt $(OUT)/ratings.jsonl
	$(PY) sft.py --seed $(SEED) --init $< --rated $(OUT)/ratings.jsonl --epochs 4 --out $@

$(OUT)/report/report.md: $(addprefix $(OUT)/,base.pt sft.pt feedme.pt ppo-plain.pt ppo.pt rm.pt)
	$(PY) evaluate.py $(OUT)/base.pt prompted:$(OUT)/base.pt $(OUT)/sft.pt $(OUT)/feedme.pt \
	  bon16:$(OUT)/sft.pt $(OUT)/ppo-plain.pt $(OUT)/ppo.pt --rm $(OUT)/rm.pt --out $(OUT)/report

# [IG] 3.1, ROUNDS times: comparisons of the policy's outputs -> reward model -> PPO from SFT.
# KEEP=1 trains each reward model on the comparisons of all rounds so far, KEEP=0 on the new only.
ROUNDS ?= 2
KEEP   ?= 1
rounds: $(OUT)/sft.pt
	@set -e; policy=$<; kept=; \
	for r in $$(seq $(ROUNDS)); do \
	  at=$(OUT)/round-$$r; \
	  test -f $$at.jsonl || \
	    $(PY) label.py --seed $(SEED)$$r --init $$policy --n 4000 --out $$at.jsonl; \
	  if [ $(KEEP) = 1 ]; then kept="$$kept $$at.jsonl"; else kept=$$at.jsonl; fi; \
	  $(PY) reward.py --seed $(SEED) --init $< --data $$kept --out $$at-rm.pt; \
	  $(PY) ppo.py --seed $(SEED) --init $< --rm $$at-rm.pt --iterations 40 --out $$at.pt; \
	  policy=$$at.pt; \
	done; \
	$(PY) evaluate.py $< $$(seq -f $(OUT)/round-%g.pt $(ROUNDS)) --rm $$at-rm.pt \
	  --out $(OUT)/report/rounds

# the papers' claims, tested over five seeds -> docs/RESULTS.md and the tables of README.md;
# about an hour and a half on 2 cores
claims: .venv/ready
	$(PY) -m pip install --quiet matplotlib
	$(PY) -m evidence.claims

test: .venv/ready
	$(PY) -m pytest -q

# what the targets above made in $(OUT), no other file; the models of `make claims` stay in runs/
MODELS  := base sft rm ppo ppo-plain feedme round-[1-9] round-[1-9]-rm
BESIDE  := .pt .pt.tmp .pt.part .pt.part.tmp .pt.log.jsonl
REPORTS := report.json report.md systems.png matrix.png use_cases.png
clean:
	rm -f $(foreach model,$(MODELS),$(addprefix $(OUT)/$(model),$(BESIDE)))
	rm -f $(addprefix $(OUT)/,comparisons.jsonl ratings.jsonl round-[1-9].jsonl)
	rm -f $(addprefix $(OUT)/report/rounds/,$(REPORTS)) $(addprefix $(OUT)/report/,$(REPORTS))
	rmdir $(OUT)/report/rounds $(OUT)/report 2> /dev/null || true

.PHONY: all rounds claims test clean
.SECONDARY:
