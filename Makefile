# One command does what CI does: `make test`. Needs a Rust toolchain and root; everything else is installed by
# infra/local/setup, which starts with saying so.

.DEFAULT_GOAL := help
.PHONY: help setup build image dist test lint soak fuzz demo bench evictions load test-faults test-upgrade test-reproducible test-page stress test-apps test-observability test-terraform clean

help: ## This text
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

setup: ## Install what is missing and make the root file systems of the test hosts (half a minute, once)
	@infra/local/setup

build: ## The static release binary, in target/x86_64-unknown-linux-gnu/release/reprieve
	@echo "build: compiling the release binary"
	@infra/packages/build

image: build ## The container image, as `reprieve`, with this machine's Docker (docs/docker.md)
	@infra/image/build --tag reprieve

dist: build ## What a release consists of, in target/dist: tarball, Debian package, checksums (docs/packages.md)
	@infra/packages/dist target/dist

lint: ## Formatting, clippy without warnings, licences of dependencies, what manifests and modules say
	@echo "lint: formatting"
	@cargo fmt --all --check
	@echo "lint: clippy, where warnings are errors"
	@cargo clippy --workspace --all-targets --locked -- -D warnings
	@echo "lint: licences, sources and bans of dependencies"
	@infra/local/licences
	@echo "lint: what Terraform's modules say of the worker, and their documents"
	@infra/local/test-terraform documents contracts
	@echo "lint: manifests for Kubernetes and Nomad"
	@infra/local/test-kubernetes
	@infra/local/test-nomad

test: setup lint ## All that CI checks: setup, lint and every test, end to end on real hosts
	@echo "test: unit tests, contracts and end-to-end tests"
	@cargo test --workspace --locked --no-fail-fast

soak: setup ## 200 generations of a job whose memory churns, half an hour between two hosts, kills at each step with a key and with S3
	@echo "soak: 200 generations of a job whose memory churns"
	@SOAK_GENERATIONS=200 cargo test --locked --package reprieve --test kills many_generations -- --nocapture
	@echo "soak: 2,000 simulated histories of owners, sweepers and an operator"
	@SIMULATIONS=2000 cargo test --locked --package reprieve --lib simulation -- --nocapture
	@echo "soak: half an hour between two hosts"
	@SOAK_MINUTES=$${SOAK_MINUTES:-30} cargo test --locked --package reprieve --test kills moves_between -- --nocapture
	@echo "soak: a kill at each step, with a key and with S3, and a host that stands still there"
	@SOAK_STEPS=all cargo test --locked --package reprieve --test kills at_a_step

stress: setup ## Jobs with 2,000 processes, 200,000 mappings, 10,000 descriptors, 1 GiB in pipes (minutes; docs/reliability.md)
	@echo "stress: very much of each thing, evicted and resumed"
	@STRESS=all cargo test --locked --package reprieve --test resources -- come_back comes_back --nocapture --test-threads 1

fuzz: ## Each parser is fed anything for 20 minutes (hours in all; needs a nightly compiler; docs/development.md)
	@infra/local/fuzz

demo: setup build ## An eviction and a resume, to watch (ten seconds; the first build takes four minutes on two cores)
	@infra/local/demo

bench: ## The benchmarks beside plain CRIU (half an hour; see docs/benchmarks.md)
	@infra/local/setup --bench-paths > /dev/null
	@cargo bench --locked --package reprieve --bench benchmarks

evictions: setup ## What is in time at which notice, size and network (20 minutes; the table goes into docs/deadlines.md)
	@cargo bench --locked --package reprieve --bench evictions

load: setup ## 200 small jobs evicted at the same moment, and what they ask of the store (ten minutes; docs/scale.md)
	@cargo bench --locked --package reprieve --bench load

test-faults: setup ## A store that misbehaves in 30 ways, at three deadlines (ten minutes; the table goes into docs/reliability.md)
	@echo "test-faults: a store that misbehaves while the machine is about to go"
	@FAULTS=$${FAULTS:-all} cargo test --locked --package reprieve --test faults -- --nocapture

# When stores and owners had just come; before the second version of the format.
OLDER ?= 834346f 2b49a4d

test-upgrade: setup ## Two versions in one fleet: earlier commits of this repository, OLDER (ten minutes; docs/reliability.md)
	@for older in $(OLDER); do \
	    binary=$$(infra/local/older $$older) || exit 1; \
	    echo "test-upgrade: the present version and $$older"; \
	    OLDER_REPRIEVE=$$binary cargo test --locked --package reprieve --test upgrade -- --nocapture --test-threads 4 || exit 1; \
	done

test-apps: setup ## Real apps, evicted and resumed in both profiles; the table goes into docs/apps.md (20 minutes; APPS=redis,node for some)
	@echo "test-apps: real apps under work, each on hosts with other addresses and clocks"
	@APPS=$${APPS:-all} cargo test --locked --package reprieve --test apps -- --nocapture
	@echo "test-apps: programs in Node and Java that are told of freezes and resumes"
	@cargo test --locked --package reprieve --test contrib_apps

test-reproducible: ## The release binary is built twice, in other places, and compared (a quarter of an hour)
	@infra/packages/test-reproducible

test-page: setup ## The status page in a headless Chromium; screenshots in target/status-page
	@echo "test-page: the status page during real evictions"
	@cargo test --locked --package reprieve --test page

test-observability: setup ## Dashboard and alert rules, with a real Prometheus
	@echo "test-observability: every query about a real worker"
	@cargo test --locked --package reprieve --test observability

test-terraform: ## The Terraform modules: plans, policies, applies to a look-alike of AWS (needs terraform)
	@infra/local/test-terraform

clean: ## Remove what was built, downloaded and made
	@echo "clean: removing target/"
	@cargo clean
