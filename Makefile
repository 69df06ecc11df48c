# flock: everything a person or CI runs. `make help` lists it.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

export CGO_ENABLED = 0
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS  := -s -w -X flock.fritzlab.net/flock/pkg/version.Version=$(VERSION)
TOOL     := go tool -modfile=tools/go.mod
ROUTING  ?= bgp
PROGRAMS := $(notdir $(wildcard cmd/*))

.PHONY: help
help: ## Say what each target does
	@grep -hE '^[a-z/-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-15s %s\n", $$1, $$2}'

.PHONY: build
build: $(addprefix bin/,$(PROGRAMS)) ## Build flock's programs into bin/

.PHONY: $(addprefix bin/,$(PROGRAMS))
$(addprefix bin/,$(PROGRAMS)): bin/%:
	go build -trimpath -ldflags '$(LDFLAGS)' -o $@ ./cmd/$*

.PHONY: bin/lab
bin/lab: ## Build the lab, a cluster on this machine: bin/lab --help
	cd lab && go build -trimpath -ldflags '$(LDFLAGS)' -o ../$@ ./cmd/lab

.PHONY: lab
lab: bin/lab ## Bring up a cluster on this machine and prove that it works; ROUTING=ospf for OSPF (root)
	@start=$$SECONDS; bin/lab up --routing $(ROUTING) && bin/lab prove && echo "make lab took $$((SECONDS - start)) s"

.PHONY: bench
bench: bin/lab ## Measure flock against its baselines in the lab, also into out/bench.json (root)
	cd lab && go build -trimpath -ldflags '$(LDFLAGS)' -o ../bin/bench ./cmd/bench
	bin/lab up --cni flock
	bin/bench

.PHONY: generate
generate: ## Make the deepcopy code and the CRDs from the API types
	$(TOOL) controller-gen object crd:crdVersions=v1 paths=./pkg/api/... output:crd:dir=deploy/crds

.PHONY: check-generated
check-generated: generate ## Fail if what is generated is not what is committed
	@git diff --exit-code --stat -- pkg/api deploy/crds || { echo "generated files are out of date: run 'make generate' and commit the result" >&2; exit 1; }

.PHONY: lint
lint: ## Run gofmt, go vet and staticcheck
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$unformatted" ] || { echo "not gofmt'ed:" $$unformatted >&2; exit 1; }
	go vet -tags apiserver,cluster ./...
	GOOS=darwin go build ./... # the pure parts are for everyone
	$(TOOL) staticcheck -tags apiserver,cluster ./...
	cd lab && go vet -tags cluster ./...
	cd lab && go tool -modfile=../tools/go.mod staticcheck -tags cluster ./...

.PHONY: packages
packages: bin/lab ## Install the Debian packages that the tests need and that are missing (root)
	@bin/lab packages

.PHONY: test-unit
test-unit: packages ## Run the pure tests and those in network namespaces (root)
	go test ./...
	cd lab && go test ./...
	cd lab && go test -count=1 ./deploy ./image # they read files outside of their module, of which go's cache knows nothing

# One at a time on this machine: their labs have names of their own, and two runs
# would be at the same lab.
LAB_TURN := flock --close /run/lock/flock-lab-tests

.PHONY: test-cluster
test-cluster: bin/lab ## Run the tests in a cluster of their own on this machine (root)
	cd lab && $(LAB_TURN) go test -tags cluster -count=1 -timeout 30m -v ./e2e

.PHONY: test-sources
test-sources: bin/lab ## Hold what tells of pods and exits to one contract, on a real kubelet (root)
	$(LAB_TURN) go test -tags cluster -count=1 -v ./pkg/pods/contract

.PHONY: test-anycast
test-anycast: bin/lab ## Run the story of anycast with the outages that take minutes (root)
	cd lab && $(LAB_TURN) go test -tags cluster,anycast -count=1 -timeout 30m -v -run TestAnycast ./e2e

.PHONY: check
check: lint check-generated test-unit ## What takes a minute: all but the cluster tests

.PHONY: test
test: check test-cluster test-sources ## Run all tests (root)
