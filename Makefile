# flock: everything a person or CI runs. `make help` lists it.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

export CGO_ENABLED = 0
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS  := -s -w -X flock.fritzlab.net/flock/internal/version.Version=$(VERSION)
TOOL     := go tool -modfile=tools/go.mod
ROUTING  ?= bgp
PROGRAMS := $(notdir $(wildcard cmd/*))

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z/-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-15s %s\n", $$1, $$2}'

.PHONY: build
build: $(addprefix bin/,$(PROGRAMS)) ## Build flock's programs into bin/

.PHONY: $(addprefix bin/,$(PROGRAMS))
bin/flock: LDFLAGS += -E flock.fritzlab.net/flock/pkg/cni/plugin.start
$(addprefix bin/,$(PROGRAMS)): bin/%:
	go build -trimpath -ldflags '$(LDFLAGS)' -o $@ ./cmd/$*

.PHONY: bin/lab
bin/lab: ## Build the lab, a cluster on this machine: bin/lab --help
	cd lab && go build -trimpath -ldflags '$(LDFLAGS)' -o ../$@ ./cmd/lab

.PHONY: lab
lab: bin/lab ## Bring up a cluster on this machine and prove that it works; ROUTING=ospf for OSPF (root)
	@start=$$SECONDS; bin/lab up --routing $(ROUTING) && bin/lab prove && echo "make lab took $$((SECONDS - start)) s"

.PHONY: release
release: ## Make a release in out/release, without a container engine: IMAGE=registry.example/flock
	cd lab && go run ./cmd/release make $(if $(IMAGE),--image=$(IMAGE))

.PHONY: push
push: ## Push the image of out/release: IMAGE=registry.example/flock
	@[ -n "$(IMAGE)" ] || { echo "say where: make push IMAGE=registry.example/flock" >&2; exit 2; }
	cd lab && go run ./cmd/release push $(IMAGE)

.PHONY: release-lock
release-lock: ## Pin the Debian packages of the image at the versions that apt offers now
	cd lab && go run ./cmd/release lock

.PHONY: bench
bench: bin/lab bin/flock-agent ## Measure flock against its baselines in the lab, also into out/bench.json (root)
	cd bench && go build -trimpath -ldflags '$(LDFLAGS)' -o ../bin/bench ./cmd/bench
	bin/lab up --cni flock
	bin/bench

.PHONY: generate
generate: ## Make the deepcopy code and the CRDs from the API types, and the pages of docs/ that are made from code
	$(TOOL) controller-gen object crd:crdVersions=v1 paths=./pkg/api/... output:crd:dir=deploy/chart/base/crds
	go test ./pkg/agent -run TestMetricsPage -args -update
	go test . -run 'TestCRDPage|TestFlagsPage' -args -update

.PHONY: check-generated
check-generated: generate ## Fail if what is generated is not what is committed
	@git diff --exit-code --stat -- pkg/api deploy/chart/base/crds docs/metrics.md docs/crds.md docs/flags.md || { echo "generated files are out of date: run 'make generate' and commit the result" >&2; exit 1; }

.PHONY: lint
lint: ## Run gofmt, go vet and staticcheck
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$unformatted" ] || { echo "not gofmt'ed:" $$unformatted >&2; exit 1; }
	go vet -tags apiserver,cluster ./...
	GOOS=darwin go build ./... # the pure parts are for everyone
	$(TOOL) staticcheck -tags apiserver,cluster ./...
	for module in lab bench; do \
	  (cd $$module && go vet -tags apiserver,cluster ./... && go tool -modfile=../tools/go.mod staticcheck -tags apiserver,cluster ./...) || exit 1; \
	done

.PHONY: packages
packages: bin/lab ## Install the Debian packages that the tests need and that are missing (root)
	@bin/lab packages

.PHONY: test-unit
test-unit: packages ## Run the pure tests and those in network namespaces (root)
	go test ./...
	cd lab && go test -timeout 30m ./... # cold, the release test builds all programs
	cd bench && go test ./...
	cd lab && go test -count=1 ./deploy ./image # they read files outside of their module, of which go's cache knows nothing

# One at a time on this machine: their labs have names of their own, and two runs
# would be at the same lab.
LAB_TURN := flock --close /run/lock/flock-lab-tests

.PHONY: test-cluster
test-cluster: bin/lab ## Run the tests in a cluster of their own on this machine (root)
	cd lab && $(LAB_TURN) go test -tags cluster -count=1 -timeout 30m -v ./e2e

.PHONY: test-sources
test-sources: bin/lab ## Test the sources of pods and of exits against one contract, with a real kubelet (root)
	$(LAB_TURN) go test -tags cluster -count=1 -v ./pkg/pod/source/contract

.PHONY: test-crash
test-crash: packages bin/lab ## Kill the agent at each step and fail each of its system calls, with all outcomes (root)
	go test ./pkg/agent/crash -count=1 -timeout 120m -v -run 'TestKill|TestFail|TestFullDisk|TestPlanted' -args -full -planted -seed 0
	cd lab && go test -tags cluster,crash -count=1 -timeout 300m -v -run TestCrash ./e2e

.PHONY: soak
soak: packages bin/lab ## Attach and detach SOAK_PODS pods (100,000) amid kills and changes; plot in out/soak.svg (root)
	mkdir -p out
	cd lab && SOAK_PODS=$${SOAK_PODS:-100000} SOAK_OUT=$(CURDIR)/out/soak.svg go test -tags cluster,crash -count=1 -timeout 300m -v -run TestCrash ./e2e

.PHONY: test-anycast
test-anycast: bin/lab ## Run the cluster test of anycast with the outages that take minutes (root)
	cd lab && $(LAB_TURN) go test -tags cluster,anycast -count=1 -timeout 30m -v -run TestAnycast ./e2e

.PHONY: test-alerts
test-alerts: bin/lab ## Cause more alerts in a cluster, and see them fire and end in a real Prometheus (root)
	cd lab && $(LAB_TURN) go test -tags cluster,alerts -count=1 -timeout 30m -v -run TestAlerts ./e2e

.PHONY: test-services
test-services: bin/lab ## Run the cluster test of Services' addresses with the outages that take minutes: FLOCK_SERVICES=1000 FLOCK_SEED=N (root)
	cd lab && $(LAB_TURN) go test -tags cluster,services -count=1 -timeout 90m -v -run TestServices ./e2e

.PHONY: test-migration
test-migration: bin/lab ## Move nodes from a real kube-router to flock and back, in a lab without another plugin (root)
	mkdir -p out # where it keeps what it saw of a failure
	cd lab && $(LAB_TURN) env FLOCK_TEST_LAB=migration go test -tags cluster,migration -count=1 -timeout 30m -v -artifacts -outputdir $(CURDIR)/out -run TestMigration ./e2e

.PHONY: test-oldest
test-oldest: bin/lab ## Run a part of the cluster tests with the oldest Kubernetes that flock supports (root)
	bin/lab build --kubernetes oldest # takes minutes the first time, which are not the test's
	cd lab && $(LAB_TURN) go test -tags cluster,oldest -count=1 -timeout 60m -v -run TestOldest ./e2e

.PHONY: test-bird
test-bird: packages ## Run the tests of routing with another BIRD: BIRD=/path/to/bird (root)
	@[ -x "$(BIRD)" ] || { echo "say which: make test-bird BIRD=/path/to/bird" >&2; exit 2; }
	@$(BIRD) --version
	FLOCK_TEST_BIRD=$(abspath $(BIRD)) go test -count=1 ./pkg/routing/...

.PHONY: test-release
test-release: ## Make a release twice, in two places, and compare the bytes: ARCH=amd64,arm64
	cd lab && ARCH=$(ARCH) go test -tags release -count=1 -timeout 60m -v -run TestSameBytesTwice ./release

export SUITE    ?= kubernetes
export FOCUS    ?=
export SKIP     ?=
export FAMILIES ?= dual
export LOAD_BALANCERS ?=
export KEEP     ?=

.PHONY: conformance
conformance: bin/lab ## Run Kubernetes' own tests: SUITE=kubernetes|network-policy-api FOCUS=REGEX SKIP=REGEX FAMILIES=dual|ipv6|ipv4 LOAD_BALANCERS=1 KEEP=1 (root)
	$(LAB_TURN) bash -c 'lab="bin/lab --name conformance"; $$lab up --families "$$FAMILIES" || exit 1; status=0; \
	  $$lab conformance --suite "$$SUITE" $${FOCUS:+--focus "$$FOCUS"} --skip "$$SKIP" $${LOAD_BALANCERS:+--load-balancers} || status=$$?; [ -n "$$KEEP" ] || $$lab down; exit $$status'

.PHONY: check
check: lint check-generated test-unit ## Run everything but the cluster tests: a minute

.PHONY: test
test: check test-release test-cluster test-sources ## Run what every change must pass (root)
