# Two commands do everything from a bare Python 3.11+ machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
NEWEST ?= .venv-newest
RUN = $(VENV)/bin/python
DEMO = runs/demo

.PHONY: demo demo-relations demo-full app paper test test-slow test-newest lint clean

# Generates the demo data, trains MNER with and without pictures, evaluates the restored checkpoint, predicts one post.
demo: $(VENV)/.installed
	$(RUN) data_prep/make_demo.py --out=$(DEMO)/data
	$(RUN) experiments/mner.py --config=experiments/configs/mner.py:demo --workdir=$(DEMO)/text --config.method=bert_crf
	$(RUN) experiments/mner.py --config=experiments/configs/mner.py:demo --workdir=$(DEMO)/full
	$(RUN) experiments/evaluate.py --workdir=$(DEMO)/full --split=test
	$(RUN) experiments/predict.py --workdir=$(DEMO)/full --input=$(DEMO)/data/posts.jsonl --output=$(DEMO)/entities.jsonl
	head -n 3 $(DEMO)/entities.jsonl

# A page to try the demo model on, at http://localhost:7860; trains it first where it is not there. OPTIONS: of app.py.
app: $(VENV)/.app
	test -f $(DEMO)/data/dataset.json || $(RUN) data_prep/make_demo.py --out=$(DEMO)/data
	test -f $(DEMO)/full/report.json || \
		$(RUN) experiments/mner.py --config=experiments/configs/mner.py:demo --workdir=$(DEMO)/full
	$(RUN) experiments/app.py --model=$(DEMO)/full --examples=$(DEMO)/data/posts.jsonl $(OPTIONS)

# The same for relations between two marked entities.
demo-relations: $(VENV)/.installed
	$(RUN) data_prep/make_demo.py --out=$(DEMO)/relations-data --task=re
	$(RUN) experiments/mre.py --config=experiments/configs/mre.py:demo --workdir=$(DEMO)/relations-text --config.method=mtb
	$(RUN) experiments/mre.py --config=experiments/configs/mre.py:demo --workdir=$(DEMO)/relations
	$(RUN) experiments/evaluate.py --workdir=$(DEMO)/relations --subset=complementary
	$(RUN) experiments/predict.py --workdir=$(DEMO)/relations --input=$(DEMO)/relations-data/posts.jsonl --output=$(DEMO)/relations.jsonl
	head -n 3 $(DEMO)/relations.jsonl

# The same posts with learned scores: corpus, divergence estimator, scores, MNER with them, with the drawn ones, without.
demo-full: $(VENV)/.installed
	$(RUN) data_prep/make_demo.py --out=$(DEMO)/data
	$(RUN) data_prep/make_divergence_demo.py --out=$(DEMO)/corpus
	$(RUN) experiments/mde.py --config=experiments/configs/mde.py:demo --workdir=$(DEMO)/estimator
	test -d $(DEMO)/scored || cp -r $(DEMO)/data $(DEMO)/scored
	$(RUN) data_prep/score_divergence.py $(DEMO)/scored --checkpoint=$(DEMO)/estimator
	$(RUN) experiments/mner.py --config=experiments/configs/mner.py:demo --workdir=$(DEMO)/full
	$(RUN) experiments/mner.py --config=experiments/configs/mner.py:demo --workdir=$(DEMO)/learned --config.data.root=$(DEMO)/scored
	$(RUN) experiments/mner.py --config=experiments/configs/mner.py:demo --workdir=$(DEMO)/unscored --config.model.use_scores=False
	$(RUN) -m benchmarks.demo_scores $(DEMO)

# The paper's tables and figures as one report. DATA: folder of prepared sets; TEXT_ENCODER, PICTURE_ENCODER,
# CLIP_ENCODER, ESTIMATOR_ENCODER: folders or hub names; without DATA small demo worlds. OPTIONS: of experiments/study.py.
PAPER = runs/paper
STUDIES = table1 table2 table3 figure4
SMALL = --set=epochs=4 --set=steps=300 --set=evaluate_every=100 --seeds=0
paper: $(VENV)/.studies
ifndef DATA
	test -f $(PAPER)/data/demo/dataset.json || $(RUN) data_prep/make_demo.py --out=$(PAPER)/data/demo --posts=480
	test -f $(PAPER)/data/demo-relations/dataset.json || \
		$(RUN) data_prep/make_demo.py --out=$(PAPER)/data/demo-relations --posts=480 --task=re
	test -f $(PAPER)/data/demo-pairs/corpus.json || \
		$(RUN) data_prep/make_divergence_demo.py --out=$(PAPER)/data/demo-pairs --pairs=800
endif
	$(RUN) experiments/study.py --workdir=$(PAPER) --data=$(or $(DATA),$(PAPER)/data) \
		$(foreach name,$(STUDIES),--study=experiments/studies/$(name).py) \
		--text-encoder=$(TEXT_ENCODER) --picture-encoder=$(PICTURE_ENCODER) --clip-encoder=$(CLIP_ENCODER) \
		--estimator-encoder=$(ESTIMATOR_ENCODER) $(if $(DATA),,$(SMALL)) $(OPTIONS)

test: $(VENV)/.tested
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(RUN) -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST)

# Many seeds, real sizes.
test-slow: $(VENV)/.tested
	$(RUN) -m pytest -m slow $(PYTEST)

# The core with the newest packages that pyproject.toml allows (transformers 5), so without the extras that pin older ones.
test-newest: $(NEWEST)/.tested
	$(NEWEST)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(PYTEST)

lint: $(VENV)/.tested
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.studies: $(VENV)/.installed
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[studies]'
	touch $@

$(VENV)/.app: $(VENV)/.installed
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[app]'
	touch $@

$(VENV)/.tested: $(VENV)/.installed
	$(RUN) -m pip install --quiet torch==2.13.0
	$(RUN) -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $(VENV)/.studies $@

# torch is the reference of the tests, so its version stays.
$(NEWEST)/.tested: pyproject.toml
	$(PYTHON) -m venv $(NEWEST)
	$(NEWEST)/bin/python -m pip install --quiet torch==2.13.0
	$(NEWEST)/bin/python -m pip install --quiet --upgrade --editable '.[test-core]'
	touch $@

clean:
	rm -rf $(DEMO)
