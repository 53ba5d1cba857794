# The table of contents: every artefact is a target.
#   base.pt -> sft.pt -> comparisons.jsonl -> rm.pt -> ppo.pt -> report/
# Each says first what it is and how long it takes on two cores.
#   make | make -j2 | make compare | make codex | make seeds | make rounds
#   make claims | make quick-claims | make page | make test | make clean
# SEED=1 OUT=runs/1 make   runs the pipeline with another seed in another folder.

PYTHON ?= python3
SEED   ?= 0
OUT    ?= .
PY     := .venv/bin/python
# Commands quote the folder, so the shell sees no ~ there; in targets its spaces are escaped.
override OUT := $(patsubst ~/%,$(HOME)/%,$(OUT))
AT     := $(subst $() ,\ ,$(OUT))

all: $(AT)/report/report.md
	@$(PY) -m evidence.report "$(OUT)/report"

# every system beside one another: the prompted base, FLAN, FeedME, plain PPO, and PPO-ptx with a
# perfect reward model
compare: $(AT)/report/compare/report.md
	@$(PY) -m evidence.report "$(OUT)/report/compare"

.venv/ready: requirements.txt
	@$(PYTHON) -c 'import sys, ensurepip, venv; assert sys.version_info >= (3, 11)' 2> /dev/null \
	  || { echo "error: PYTHON=$(PYTHON) is not Python 3.11 or newer with its venv" \
	    "($$($(PYTHON) --version 2>&1)): install one, then make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --requirement requirements.txt
	touch $@

# A folder has one seed: who comes with another is told so before anything is made with it. What is
# older than this file somebody made by hand: the stages see whether it is theirs.
$(AT)/make.seed: ALWAYS | .venv/ready
	@mkdir -p "$(OUT)"
	@test -e "$@" || (set -C; echo "$(SEED)" > "$@") || test -e "$@"
	@test "$$(cat "$@")" = "$(SEED)" \
	  || { echo "error: $@ says that OUT was begun with SEED=$$(cat "$@"), not SEED=$(SEED):" \
	    "choose another OUT, or remove with make clean what was made in this one" >&2; exit 2; }

$(AT)/base.pt: $(AT)/make.seed
	@echo "1/6 base: a GPT reads the corpus, about 145 s"
	$(PY) pretrain.py --seed $(SEED) --out "$@"

$(AT)/sft.pt: $(AT)/base.pt
	@echo "2/6 SFT: it learns 60 demonstrations, about 10 s"
	$(PY) sft.py --seed $(SEED) --init "$<" --out "$@"

$(AT)/comparisons.jsonl: $(AT)/sft.pt
	@echo "3/6 comparisons: labelers rank what SFT answers, about 55 s"
	$(PY) label.py --seed $(SEED) --init "$<" --out "$@"

$(AT)/rm.pt: $(AT)/sft.pt $(AT)/comparisons.jsonl
	@echo "4/6 reward model: it learns what labelers prefer, about 100 s"
	$(PY) reward.py --seed $(SEED) --init "$<" --data "$(OUT)/comparisons.jsonl" --out "$@"

$(AT)/ppo.pt: $(AT)/sft.pt $(AT)/rm.pt
	@echo "5/6 PPO-ptx: SFT learns from the reward model, about 105 s"
	$(PY) ppo.py --seed $(SEED) --init "$<" --rm "$(OUT)/rm.pt" --out "$@"

$(AT)/report/report.md: $(foreach x,base sft ppo rm,$(AT)/$(x).pt)
	@echo "6/6 report: all answer the same held-out prompts, about 50 s"
	$(PY) evaluate.py "$(OUT)/base.pt" "$(OUT)/sft.pt" "bon16:$(OUT)/sft.pt" "$(OUT)/ppo.pt" \
	  --rm "$(OUT)/rm.pt" --seed $(SEED) --out "$(OUT)/report"

# FeedME: demonstrations and the samples that labelers rated 7 of 7
$(AT)/ratings.jsonl: $(AT)/sft.pt
	@echo "compare 1/6 ratings: labelers rate what SFT answers, about 10 s"
	$(PY) label.py --seed $(SEED) --init "$<" --rate --swap 0 --n 1000 --out "$@"

$(AT)/feedme.pt: $(AT)/base.pt $(AT)/ratings.jsonl
	@echo "compare 2/6 FeedME: SFT on demonstrations and the best answers, about 40 s"
	$(PY) sft.py --seed $(SEED) --init "$<" --rated "$(OUT)/ratings.jsonl" --epochs 4 --out "$@"

# FLAN: SFT on twenty times as many rows of the kind that public data sets have, and of its epochs
# the one that the reward model likes best ([IG] 3.5)
$(AT)/mixture.jsonl: | $(AT)/make.seed
	$(PY) -m sandbox --mixture "$@"

$(AT)/flan.pt: $(AT)/base.pt $(AT)/mixture.jsonl $(AT)/rm.pt
	@echo "compare 3/6 FLAN: SFT on a mixture of data sets, about 30 s"
	$(PY) sft.py --seed $(SEED) --init "$<" --data "$(OUT)/mixture.jsonl" --epochs 4 \
	  --select rm --rm "$(OUT)/rm.pt" --out "$@"

# plain PPO, without pretraining gradients: what the mix is for
$(AT)/ppo-plain.pt: $(AT)/sft.pt $(AT)/rm.pt
	@echo "compare 4/6 PPO without pretraining gradients, about 90 s"
	$(PY) ppo.py --seed $(SEED) --init "$<" --rm "$(OUT)/rm.pt" --ptx-coef 0 --out "$@"

$(AT)/ceiling.pt: $(AT)/sft.pt $(AT)/rm.pt
	@echo "compare 5/6 ceiling: PPO-ptx with the true score as reward, about 110 s"
	$(PY) -m evidence.ceiling --seed $(SEED) --init "$<" --rm "$(OUT)/rm.pt" --out "$@"

$(AT)/report/compare/report.md: \
  $(foreach x,base sft feedme flan ppo-plain ppo ceiling rm,$(AT)/$(x).pt)
	@echo "compare 6/6 report: all answer the same held-out prompts, about 90 s"
	$(PY) evaluate.py "$(OUT)/base.pt" "prompted:$(OUT)/base.pt" "$(OUT)/sft.pt" \
	  "$(OUT)/flan.pt" "$(OUT)/feedme.pt" "bon16:$(OUT)/sft.pt" "$(OUT)/ppo-plain.pt" \
	  "$(OUT)/ceiling.pt" "$(OUT)/ppo.pt" --rm "$(OUT)/rm.pt" --seed $(SEED) --out "$(OUT)/report/compare"

# [Codex]: a base reads the files of a toy language, SFT learns right functions, RLOO has the tests
# as its reward; then pass@k of the three
codex: $(AT)/report/codex/report.md
	@cat "$(OUT)/report/codex/report.md"

$(AT)/toy/corpus.jsonl: | $(AT)/make.seed
	@echo "codex 1/5 toy language: files, functions and prompts, about 5 s"
	$(PY) -m codex.language --seed $(SEED) --out "$(OUT)/toy"

$(AT)/code.pt: $(AT)/toy/corpus.jsonl
	@echo "codex 2/5 base: a GPT reads the files, about 60 s"
	$(PY) pretrain.py --seed $(SEED) --data "$<" --tokenizer "$(OUT)/toy/toy.tiktoken" \
	  --tokens 1_500_000 --n-embd 96 --context 256 --block 256 --batch 8 --out "$@"

$(AT)/code-s.pt: $(AT)/code.pt
	@echo "codex 3/5 Codex-S: it learns 4,000 right functions, about 60 s"
	$(PY) sft.py --seed $(SEED) --init "$<" --data "$(OUT)/toy/functions.jsonl" --ptx-mix 0 \
	  --epochs 2 --lr 2e-3 --max-new 100 --out "$@"

$(AT)/code-rl.pt: $(AT)/code-s.pt
	@echo "codex 4/5 RLOO, whose reward is that the tests pass, about 80 s"
	$(PY) -m forks.rloo --seed $(SEED) --init "$<" --prompts "$(OUT)/toy/prompts.jsonl" \
	  --reward codex.language:passes --k 8 --max-new 100 --kl-coef 0.01 --lr 1e-4 --warmup 5 \
	  --out "$@"

$(AT)/report/codex/report.md: $(foreach x,code code-s code-rl,$(AT)/$(x).pt)
	@echo "codex 5/5 report: 100 programs for each of 48 problems, about 180 s"
	$(PY) -m codex.evaluate "$(OUT)/code.pt" "$(OUT)/code-s.pt" "$(OUT)/code-rl.pt" \
	  --seed $(SEED) --toy 48 --max-new 112 --out "$(OUT)/report/codex" > /dev/null

# people rank what SFT answers, in a browser; after ten they are told how often they agree with the
# sandbox's rubric
page: $(AT)/tasks.jsonl
	$(PY) page.py rank "$<" --out "$(OUT)/human"

$(AT)/tasks.jsonl: $(AT)/sft.pt
	@echo "tasks: SFT answers 300 prompts for people to rank, about 10 s"
	$(PY) label.py --seed $(SEED) --init "$<" --unlabeled --n 300 --out "$@"

# `make compare` with several seeds -> the table and the picture of README.md, docs/WORLD.md
SEEDS ?= 306 307 308 309 310
seeds: .venv/ready
	@set -e; for seed in $(SEEDS); do \
	  $(MAKE) -o .venv/ready compare SEED=$$seed OUT=runs/$$seed; \
	done
	$(PY) -m pip install --quiet matplotlib
	$(PY) -m evidence.seeds $(SEEDS:%=runs/%/report/compare/report.json)

# [IG] 3.1, ROUNDS times: comparisons of the policy's outputs -> reward model -> PPO from SFT.
# KEEP=1 trains each reward model on the comparisons of all rounds so far, KEEP=0 on the new only.
# What a round has made already each command knows, and refuses what was made with other settings.
ROUNDS ?= 2
KEEP   ?= 1
rounds: $(AT)/sft.pt
	@set -e; policy="$<"; \
	for r in $$(seq $(ROUNDS)); do \
	  at="$(OUT)/round-$$r"; \
	  $(PY) label.py --seed $(SEED)$$r --init "$$policy" --n 4000 --out "$$at.jsonl"; \
	  if [ $(KEEP) = 0 ]; then set --; fi; \
	  set -- "$$@" "$$at.jsonl"; \
	  $(PY) reward.py --seed $(SEED) --init "$<" --data "$$@" --out "$$at-rm.pt"; \
	  $(PY) ppo.py --seed $(SEED) --init "$<" --rm "$$at-rm.pt" --iterations 40 --out "$$at.pt"; \
	  policy="$$at.pt"; \
	done; \
	$(PY) evaluate.py "$<" $(foreach r,$(shell seq $(ROUNDS)),"$(OUT)/round-$(r).pt") \
	  --rm "$$at-rm.pt" --out "$(OUT)/report/rounds-$(ROUNDS)"

# the papers' claims, tested over five to ten seeds -> docs/RESULTS.md and the verdicts of README.md;
# some hours on 2 cores, and it goes on where it was interrupted
claims: .venv/ready
	$(PY) -m pip install --quiet matplotlib
	$(PY) -m evidence.claims

# a look at four of them, with smaller models -> runs/quick/RESULTS.md
quick-claims: .venv/ready
	$(PY) -m evidence.claims 4 11a 15 --quick --seeds 1 2 3 4 --runs runs/quick \
	  --docs runs/quick --readme ""

# on all cores, a file in one process; a process of one thread
test: .venv/ready
	$(PY) -m pip install --quiet pytest-xdist
	OMP_NUM_THREADS=1 $(PY) -m pytest -q -n auto --maxprocesses=4 --dist loadfile \
	  --no-loadscope-reorder

# what the targets above made in $(OUT) and what a kill left beside it, no other file; what `make
# seeds` and `make claims` made stays in runs/, what people did in human/. Where make.seed is, each
# stage has refused to replace what it had not made, so names tell what is ours; without it nothing
# is. It goes last: a clean may fail midway.
ROUND   := round-[1-9] round-[1-9][0-9]
MODELS  := $(addsuffix .pt,base sft rm ppo ppo-plain flan feedme ceiling \
  code code-s code-rl $(ROUND) $(ROUND:=-rm))
RECORDS := $(addsuffix .jsonl,comparisons ratings mixture tasks $(ROUND))
REPORTS := report/compare report/codex report/rounds-[1-9] report/rounds-[1-9][0-9] report
PAGES   := report.json report.md systems.png matrix.png use_cases.png \
  samples.jsonl samples.part made.json
TOY     := corpus.jsonl functions.jsonl prompts.jsonl toy.tiktoken made.json
BESIDE  := .part .log.jsonl .made.json .lock
RESULTS := $(foreach x,$(MODELS) $(RECORDS),$(x) $(addprefix $(x),$(BESIDE)))
LOCKS   := $(filter %.lock,$(RESULTS)) $(REPORTS:=.lock) toy.lock
# A run holds OUT.lock; a killed one only leaves the file.
define REFUSE_HELD
import fcntl, os, sys
for path in filter(os.path.isfile, sys.argv[1:]):
    with open(path, errors="replace") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"error: {path} is held by {lock.read()}: wait until it ends, or end it")
endef
export REFUSE_HELD
clean:
	@set -e; \
	if ! test -f "$(OUT)/make.seed"; then \
	  echo "nothing in $(OUT) was made by make: it has no make.seed"; exit 0; \
	fi; \
	$(PYTHON) -c "$$REFUSE_HELD" $(LOCKS:%="$(OUT)"/%); \
	CDPATH= cd -- "$(OUT)/."; \
	rm -f $(RESULTS) $(RESULTS:%=.%.????????.tmp); \
	test -L report || rm -f $(REPORTS:=.lock); \
	for x in $(REPORTS); do \
	  if test -L report || test -L $$x; then continue; fi; \
	  rm -f $(foreach x,$(PAGES),$$x/$(x) $$x/.$(x).????????.tmp); \
	  rmdir $$x 2> /dev/null || true; \
	done; \
	if test -e toy/made.json; then \
	  rm -f $(foreach x,$(TOY),toy/$(x) toy/.$(x).????????.tmp) toy.lock; \
	  rmdir toy 2> /dev/null || true; \
	fi; \
	rm -f make.seed

# What is written is whole: an interrupted make is not to delete it.
.PRECIOUS: $(foreach x,$(MODELS) $(RECORDS) report/report.md report/compare/report.md \
  report/codex/report.md toy/corpus.jsonl,$(AT)/$(x))
.PHONY: all compare codex page seeds rounds claims quick-claims test clean ALWAYS
