# make demo: see it work.  make test: everything it promises.  Both create what they need.

PYTHON ?= $(shell for python in python3 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' \
	2>/dev/null && echo $$python && break; done)
BIN := .venv/bin
JAVA := $(if $(JAVA_HOME),$(JAVA_HOME)/bin/java,java)
CORES := $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
MODEL ?=

# Spark's workers run the interpreter that this names, not the driver's.
export PYSPARK_PYTHON := $(CURDIR)/$(BIN)/python
export PYSPARK_DRIVER_PYTHON := $(PYSPARK_PYTHON)
export SPARK_LOCAL_IP := 127.0.0.1
# An activated Spark of another version would be taken in place of the installed one.
unexport SPARK_HOME

.PHONY: demo test chaos chaos-sample check large s3 clean java python

demo: .venv/installed java
	@rm -rf build/demo
	@$(BIN)/spark-submit --properties-file conf/spark-local.conf --master 'local[$(CORES)]' \
		--conf spark.task.cpus=$(CORES) jobs/demo.py $(if $(MODEL),--model $(MODEL))

test: .venv/installed java
	$(BIN)/python -m pytest -m 'not large and not s3 and not chaos and not chaos_sample'

# 50 runs on Parquet and 25 on Delta that are killed and run again, and three runs at once: about an
# hour on two cores. The sample has nine of them, and kills at each instant of a commit.
chaos: .venv/installed java
	$(BIN)/python -m pytest -m 'chaos or chaos_sample'

chaos-sample: .venv/installed java
	$(BIN)/python -m pytest -m chaos_sample

# The checkpoints at their true size, and texts of 200 MB: minutes, and 10 GB of disk and memory.
large: .venv/installed java
	$(BIN)/python -m pytest -m large

# Storage and the lock on an S3-like store: 18 MB of jars, a few minutes. The store has an environment
# of its own, because botocore wants a dateutil below 3.
s3: .venv/installed .venv/moto/installed java
	$(BIN)/python -m pytest -m s3 tests/test_s3.py

check: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/typos

clean:
	rm -rf .venv build dist

.venv/installed: pyproject.toml conf/constraints.txt | python
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint conf/constraints.txt \
		--editable '.[torch,connect,demo,dev]'
	@touch $@

.venv/moto/installed: conf/constraints-moto.txt .venv/installed
	$(PYTHON) -m venv .venv/moto
	.venv/moto/bin/pip install --quiet --disable-pip-version-check --requirement $<
	@touch $@

python:
	@test -n '$(PYTHON)' || { echo 'e5spark needs Python 3.11, 3.12 or 3.13 with venv; none was \
	found on the PATH. Install one, or name it: make demo PYTHON=/path/to/python3.12' >&2; exit 1; }

java:
	@version=$$($(JAVA) -version 2>&1 | sed -n 's/.*version "\([0-9]*\).*/\1/p' | head -n 1); \
	case "$$version" in 17|21) ;; *) echo "e5spark needs Java 17 or 21, found \
	$${version:-none}. Install one (Debian: apt-get install openjdk-17-jre-headless; macOS: brew \
	install openjdk@21) and set JAVA_HOME to it." >&2; exit 1;; esac
