# What people type. Every target first makes sure that .venv is there and fits the project (scripts/setup.sh).
PYTHON := .venv/bin/python
# Tests run in as many processes as there are cores, at most 8: each one holds a torch of its own.
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n < 8 ? n : 8)))
TASK := $(if $(ENV),--env $(ENV)) $(if $(CATEGORY),--category $(CATEGORY)) $(if $(RUN),--run $(RUN)) $(if $(SEED),--seed $(SEED)) $(if $(DEVICE),--device $(DEVICE))
# MuJoCo's own renderer, which is measured beside ours, must be told its platform.
GL := $(if $(filter Linux,$(shell uname -s)),MUJOCO_GL=$${MUJOCO_GL:-egl})
PRESETS := $(if $(PRESET),--preset $(PRESET))
CAMERA := $(if $(CAMERAS),--cameras "$(CAMERAS)")

.DEFAULT_GOAL := help
.PHONY: help setup tasks study train pretrain bootstrap keypointnet geometry-aware evaluate export probe video view card sweep report bench profile soak preview doctor test test-all lint clean

help: ## list the targets and their options
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "Options: ENV=reach-multiview (or any Gymnasium id with CAMERAS=file.yaml)  RUN=name  SEED=0  DEVICE=auto|cpu|cuda"
	@echo "         PLAN=file.yaml of sweep; RUNS=\"folders or data\" of report"
	@echo "         PRESET=fast|paper  (of train and pretrain: sizes and steps for two cores, or those of the original)"
	@echo "         RESUME=runs/…/name  goes on with a run that was stopped or killed, as if nothing had happened"
	@echo "         ARGS=\"--total-steps 20000\"  (any option of the program; ARGS=--help lists them)"
	@echo "Set-up:  INTERPRETER=python3.12 (default: the first Python >= 3.11 found)"
	@echo "         TORCH_INDEX=<package index>  takes torch from there, e.g. an index of small CPU-only builds;"
	@echo "         the default build brings CUDA, several GB on Linux. Your own pip configuration is respected."

setup: ## create or update .venv
	@INTERPRETER="$(INTERPRETER)" TORCH_INDEX="$(TORCH_INDEX)" bash scripts/setup.sh

train: setup ## train 3D keypoints and a policy together: make train ENV=reach-multiview; go on: make train RESUME=…
	$(if $(and $(RESUME),$(RUN)$(SEED)$(DEVICE)$(CAMERAS)$(PRESET)),$(error RESUME goes on with the options that the run has: leave out RUN, SEED, DEVICE, PRESET and CAMERAS))
	@exec $(PYTHON) -m $(if $(RESUME),experiments.resume $(if $(ENV),--env $(ENV)) --run $(RESUME),experiments.train $(TASK) $(PRESETS) $(CAMERA)) $(ARGS)

pretrain: setup ## the keypoints alone, in minutes: make pretrain ENV=reach-multiview
	@exec $(PYTHON) -m experiments.pretrain $(TASK) $(PRESETS) $(CAMERA) $(ARGS)

bootstrap: setup ## a keypoint detector that teaches itself by many cameras: make bootstrap; go on: make bootstrap RESUME=…
	$(if $(and $(RESUME),$(ENV)$(RUN)$(SEED)$(DEVICE)$(PRESET)$(ARGS)),$(error RESUME goes on with the options that the run has: leave out all others))
	@exec $(PYTHON) -m experiments.bootstrap $(if $(RESUME),--resume $(RESUME),$(TASK) $(PRESETS) $(ARGS))

keypointnet: setup ## 3D keypoints of chairs, planes or cars from pairs of views: make keypointnet CATEGORY=chair; go on: RESUME=…
	$(if $(and $(RESUME),$(CATEGORY)$(RUN)$(SEED)$(DEVICE)$(PRESET)$(ARGS)),$(error RESUME goes on with the options that the run has: leave out all others))
	@exec $(PYTHON) -m experiments.keypointnet $(if $(RESUME),--resume $(RESUME),$(TASK) $(PRESETS) $(ARGS))

geometry-aware: setup ## 3D points of people from drawing other views: make geometry-aware; go on: RESUME=…
	$(if $(and $(RESUME),$(ENV)$(CATEGORY)$(RUN)$(SEED)$(DEVICE)$(PRESET)$(ARGS)),$(error RESUME goes on with the options that the run has: leave out all others))
	@exec $(PYTHON) -m experiments.geometry_aware $(if $(RESUME),--resume $(RESUME),$(TASK) $(PRESETS) $(ARGS))

evaluate: setup ## success and return of a run on fixed seeds: make evaluate ENV=… RUN=…
	@exec $(PYTHON) -m experiments.evaluate $(TASK) $(ARGS)

probe: setup ## what a run's keypoints are worth, against the simulator: make probe ENV=… RUN=…
	@exec $(PYTHON) -m experiments.probe $(TASK) $(ARGS)

video: setup ## an mp4 of a run with its keypoints drawn in: make video ENV=… RUN=…
	@exec $(PYTHON) -m experiments.video $(TASK) $(ARGS)

view: setup ## an episode in rerun's 3D viewer, recorded to a file: make view ENV=… RUN=…
	@exec $(PYTHON) -m experiments.view $(TASK) $(ARGS)

card: setup ## a folder for a model hub: weights, configuration, card with results, video: make card ENV=… RUN=…
	@exec $(PYTHON) -m experiments.card $(if $(ENV),--env $(ENV)) $(if $(RUN),--run $(RUN)) $(ARGS)

export: setup ## a policy as one ONNX graph, which needs no torch: make export ENV=… RUN=… (docs/export.md)
	@exec $(PYTHON) -m experiments.export $(if $(ENV),--env $(ENV)) $(if $(RUN),--run $(RUN)) $(ARGS)

tasks: setup ## what every registered environment's cameras see, and what its script solves; into docs/
	@exec $(PYTHON) -m experiments.tasks $(ARGS)

study: setup ## conditions against each other over seeds, into docs/: make study ARGS="--name learning"
	@exec $(PYTHON) -m experiments.study $(ARGS)

sweep: setup ## every run of a plan, on this machine or a ray cluster: make sweep PLAN=docs/plans/reach.yaml
	@exec $(PYTHON) -m experiments.sweep $(if $(PLAN),--plan $(PLAN)) $(ARGS)

report: setup ## many runs on one page, with bands and comparisons: make report RUNS=runs/sweeps/<plan>
	@exec $(PYTHON) -m experiments.report $(if $(RUNS),--runs "$(RUNS)") $(ARGS)

bench: setup ## how fast it is here, against what one would write without it; into docs/: minutes
	@$(GL) exec $(PYTHON) -m experiments.bench $(ARGS)

profile: setup ## where a training step goes, stage by stage; options of train: make profile ARGS="--threads 1"
	@exec $(PYTHON) -m experiments.bench.profile $(TASK) $(CAMERA) $(ARGS)

soak: setup ## trainings killed 200 times, 10,000 damaged files, an hour watched; into docs/: an hour and a half
	@exec $(PYTHON) -m experiments.soak $(ARGS)

preview: setup ## one picture of all views of an environment: make preview ENV=…
	@exec $(PYTHON) -m experiments.preview $(if $(ENV),--env $(ENV)) $(CAMERA) $(ARGS)

doctor: setup ## versions, renderer, speed, and what to fix
	@exec $(PYTHON) -m experiments.doctor $(ARGS)

test: setup ## all tests, and 90 % coverage of kp3d_rl and agents; some of them: make test ARGS=tests/envs
	@OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 exec $(PYTHON) -m pytest -n $(WORKERS) --dist worksteal \
		$(or $(ARGS),--cov --cov-fail-under=90)

test-all: setup ## the same with every registered task where make test takes a few: an hour
	@KP3D_TEST_ALL=1 OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 exec $(PYTHON) -m pytest -n $(WORKERS) \
		--dist worksteal $(ARGS)

lint: setup ## ruff over everything
	@$(PYTHON) -m ruff check .

clean: ## remove .venv, caches and build leftovers (runs stay)
	@rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis .coverage .coverage.* htmlcov
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
