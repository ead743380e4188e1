# make demo: see it work.  make test: everything it promises.  Both create what they need.

PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
	2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
JAVA := $(if $(JAVA_HOME),$(JAVA_HOME)/bin/java,java)
CORES := $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
MODEL ?=
# Processes of the Spark tier. Each has a session of its own and at times one with Delta: 5 GB.
SPARK_WORKERS ?= 2

# Spark's workers run the interpreter that this names, not the driver's.
export PYSPARK_PYTHON := $(CURDIR)/$(BIN)/python
export PYSPARK_DRIVER_PYTHON := $(PYSPARK_PYTHON)
export SPARK_LOCAL_IP := 127.0.0.1
# An activated Spark of another version would be taken in place of the installed one.
unexport SPARK_HOME

# Other Sparks than the one that e5spark is developed on.
VERSIONS := 3.5 4.0 4.2

.PHONY: demo test fuzz quality unit spark cluster chaos chaos-sample check coverage large large-sample s3 recipes versions lowest
.PHONY: schedulers archive kits
.PHONY: clean java python
.PHONY: $(VERSIONS:%=versions-%)

demo: .venv/installed java
	@rm -rf build/demo
	@$(BIN)/spark-submit --properties-file conf/spark-local.conf --master 'local[$(CORES)]' \
		--conf spark.task.cpus=$(CORES) --conf spark.log.level=OFF \
		jobs/demo.py --started "$$(date +%s)" $(if $(MODEL),--model $(MODEL))

# Tiers of tests. make test is all that a change has to pass on a developer's machine; CI adds make
# cluster and the two samples; make chaos, fuzz, large, versions, s3, recipes, schedulers and kits run
# every night.
OTHER_TIERS := cluster or large or s3 or recipes or schedulers or kits or chaos or chaos_sample or browser
PYTEST := $(BIN)/python -m pytest
# A worker of pytest-xdist takes whole files, because a file shares its models and tables.
PARALLEL := --dist loadfile --no-loadscope-reorder --numprocesses

test: unit spark

# Two thirds of the cases. None starts a JVM: a test that tries fails.
unit: .venv/installed
	$(PYTEST) $(PARALLEL) $(CORES) -m 'not spark and not ($(OTHER_TIERS))'

spark: .venv/jars java
	$(PYTEST) $(PARALLEL) $(SPARK_WORKERS) -m 'spark and not ($(OTHER_TIERS))'

# Spark as it is deployed: standalone clusters, a Connect server, spark-submit, the whole benchmark.
cluster: .venv/jars java
	$(PYTEST) $(PARALLEL) $(SPARK_WORKERS) -m 'cluster and not (large or s3 or chaos or chaos_sample)'

# 50 runs on Parquet and 25 on Delta that are killed and run again, and three runs at once: about 40
# minutes on two cores. The sample has some of them, for each kind of table and each process that can
# die; the crash at every single operation of a commit is simulated in make unit.
chaos: .venv/jars java
	$(PYTEST) $(PARALLEL) $(SPARK_WORKERS) -m 'chaos or chaos_sample'

chaos-sample: .venv/jars java
	$(PYTEST) $(PARALLEL) $(SPARK_WORKERS) -m chaos_sample

# The checkpoints at their true size, texts of 200 MB, STSb in four languages, and a search over
# SciFact where E5SPARK_TEST_DATA has it: minutes, and 10 GB of disk and memory. The sample is one
# checkpoint, one text, and MiniLM's vectors and STSb in English.
large: .venv/installed java
	$(PYTEST) -m large

large-sample: .venv/installed java
	$(PYTEST) -m large_sample

# The page of a run in Chromium, light and dark, on a phone and on a desk, printed, and without
# scripts: a minute. Without Chromium the tests are skipped, and say so.
.PHONY: report
report: .venv/installed
	$(PYTEST) -m browser tests/test_report_browser.py

# 20,000 mutated job files, 20,000 models, 5,000 state directories, 300 tables: an error, or the right
# result. Half an hour on two cores; make fuzz FUZZ='states=500 --seed 1' runs others.
FUZZ ?=
fuzz: .venv/installed java
	$(BIN)/python -m tests.fuzz --processes $(CORES) $(FUZZ)

# Published figures of the real e5-small-v2 in fp32, bf16 and int8, from vectors that the job writes;
# E5SPARK_TEST_DATA names the evaluation sets. Tens of minutes on two cores.
quality: .venv/installed java
	$(BIN)/python jobs/quality.py $(if $(MODEL),--model $(MODEL))

# Lines and branches that make test and make cluster run, also those in other processes and in
# Spark's workers.
coverage: .venv/jars java
	rm -rf build/coverage
	$(BIN)/coverage run -m pytest $(PARALLEL) $(CORES) \
		-m 'not spark and not ($(OTHER_TIERS))'
	$(BIN)/coverage run -m pytest $(PARALLEL) $(SPARK_WORKERS) -m 'spark and not (large or s3 or recipes or chaos or chaos_sample)'
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report --skip-covered --skip-empty

# What executors need for a prepared model, for spark-submit --archives; docs/deploy.md. The options
# are those of the script: make archive ARCHIVE='--python 3.12 --machine aarch64'.
ARCHIVE ?=

archive: .venv/archive/installed
	.venv/archive/bin/python examples/archive/build.py build/e5spark-env.tar.gz $(ARCHIVE)

# That archive on a standalone cluster whose workers have Python and Java alone, and the files of
# examples/ against the schemas of those who read them: 100 MB of packages, a few minutes.
kits: ARCHIVE :=
kits: .venv/kits/installed archive java
	PYTHONPATH=$(CURDIR)/.venv/kits $(PYTEST) -m kits tests/test_archive.py tests/test_kits.py

# Storage and the lock on an S3-like store: 18 MB of jars, a few minutes. The store has an environment
# of its own, because botocore wants a dateutil below 3.
s3: .venv/installed .venv/moto/installed java
	$(BIN)/python -m pytest -m s3 tests/test_s3.py

# The recipes of examples/ against the stores that they load: 380 MB of packages, one of which is a
# PostgreSQL with pgvector. A minute or two.
recipes: .venv/recipes/installed java
	PYTHONPATH=$(CURDIR)/.venv/recipes $(BIN)/python -m pytest -m recipes tests/test_recipes.py

# The examples for Airflow and Dagster, which have an environment of their own: 700 MB. No JVM.
schedulers: .venv/installed .venv/schedulers/installed
	$(PYTEST) -m schedulers tests/test_schedulers.py

# What depends on Spark, on its other minor versions: embed and both kinds of UDF, the job on
# Parquet run again and again, and Delta's rows and columns with the jars of each version. make
# versions-3.5 is one of them: 600 MB of disk, and its jars.
VERSION_TESTS := $(patsubst %,tests/test_%.py,embed udf bad_input worker columns hashes job \
	incremental refresh evolution select delta delta_target delta_columns nearest search \
	quality)

versions: $(VERSIONS:%=versions-%)

$(VERSIONS:%=versions-%): versions-%: .venv/spark-%/installed java
	PYTHONPATH=$(CURDIR)/.venv/spark-$* $(BIN)/python -m pytest \
		-m '(delta or not cluster) and not (chaos or chaos_sample)' $(VERSION_TESTS)

# The lowest versions of its dependencies that e5spark allows, all at once: the encoder without
# Spark, then columns, UDFs and jobs on PySpark 3.5.0. Python 3.11 on Linux; 3 GB to fetch, 6 GB of
# disk.
LOWEST_TESTS := $(patsubst %,tests/test_%.py,batching digest encoder fingerprint hub models openvino \
	packed prompts recipe text tokenizer windows columns udf)

lowest: .venv/lowest/installed java
	PYTHONPATH=$(CURDIR)/.venv/lowest $(BIN)/python -m pytest -m 'not large' $(LOWEST_TESTS)

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/typos

# The site, in build/docs: a warning or a broken link is an error. Sphinx has an environment of its
# own, without torch and PySpark: the API reference is read from the source text.
.PHONY: docs
docs: .venv/docs/installed
	.venv/docs/bin/sphinx-build --builder html --fail-on-warning --keep-going --fresh-env --quiet \
		docs build/docs

clean:
	rm -rf .venv build dist

# The file has the seconds that this took: the demo reports them.
.venv/installed: pyproject.toml conf/constraints.txt | python
	@started=$$(date +%s); set -ex; \
	$(PYTHON) -m venv .venv; \
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint conf/constraints.txt \
		--editable '.[torch,connect,demo,dev]'; \
	set +x; echo $$(($$(date +%s) - started)) > $@

# Delta's jars: two processes that fetch them into one empty cache would disturb each other.
.venv/jars: .venv/installed e5spark/tables/delta_session.py | java
	$(BIN)/python -m tests.delta_driver
	@touch $@

.venv/moto/installed: conf/constraints-moto.txt .venv/installed
	$(PYTHON) -m venv .venv/moto
	.venv/moto/bin/pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

.venv/schedulers/installed: conf/constraints-schedulers.txt .venv/installed
	$(PYTHON) -m venv .venv/schedulers
	.venv/schedulers/bin/pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

# pip alone, which fetches the archive's packages.
.venv/archive/installed: | python
	$(PYTHON) -m venv .venv/archive
	@touch $@

.venv/docs/installed: conf/constraints-docs.txt | python
	$(PYTHON) -m venv .venv/docs
	.venv/docs/bin/pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

# Packages that stand before those of .venv: an environment of their own would have 5 GB of torch.
$(VERSIONS:%=.venv/spark-%/installed): .venv/spark-%/installed: conf/constraints-spark-%.txt
.venv/lowest/installed: conf/constraints-lowest.txt
.venv/kits/installed: conf/constraints-kits.txt
.venv/recipes/installed: conf/constraints-recipes.txt
$(VERSIONS:%=.venv/spark-%/installed) .venv/lowest/installed .venv/recipes/installed .venv/kits/installed: | .venv/installed
	rm -rf $(@D)
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target $(@D) --requirement $<
	@touch $@

python:
	@test -n '$(PYTHON)' || { echo 'e5spark needs Python 3.11, 3.12 or 3.13 with venv; none was \
	found on the PATH. Install one, or name it: make demo PYTHON=/path/to/python3.12' >&2; exit 1; }

java:
	@version=$$($(JAVA) -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1); \
	case "$$version" in 17|21) ;; *) echo "e5spark needs Java 17 or 21, found \
	$${version:-none}. Install one (Debian: apt-get install openjdk-17-jre-headless; macOS: brew \
	install openjdk@21) and set JAVA_HOME to it." >&2; exit 1;; esac
