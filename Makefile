# nasfleet: `make demo` to see it work, `make help` for the rest.
SHELL := /bin/bash
TAGS := libvirt_dlopen
VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS := -s -w -X main.version=$(VERSION)
LINT_VERSION := v2.15.0
LINT := .tools/golangci-lint-$(LINT_VERSION)
FUZZTIME ?= 20s
# The longest first: it takes as long as all the others. Tests wait more than they work.
TESTS := -parallel 4 ./tests/integration ./...

.PHONY: help build deps demo test test-ceph soak race lint fuzz bench generate clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

build: deps-build ## build bin/publisher and bin/hostworker
	CGO_ENABLED=0 go build -ldflags '$(LDFLAGS)' -o bin/publisher ./cmd/publisher
	CGO_ENABLED=1 go build -tags $(TAGS) -ldflags '$(LDFLAGS)' -o bin/hostworker ./cmd/hostworker

demo: deps-demo build ## back up, encrypt, verify and restore a real disk image through NATS
	@scripts/demo.sh

test: deps ## run every test, unit and integration, against the real parts (root)
	go test -tags $(TAGS) -timeout 30m -count=1 $(TESTS)

soak: deps ## 500 jobs on two hosts while everything around them fails at random; 3000 random steps of a chain
	NASFLEET_SOAK_JOBS=500 go test -tags $(TAGS) -timeout 120m -count=1 -v ./tests/soak
	NASFLEET_CHAIN_STEPS=3000 go test -tags $(TAGS) -timeout 240m -count=1 -v ./tests/chain

race: deps ## run every test under the race detector
	go test -race -tags $(TAGS) -timeout 45m -count=1 $(TESTS)

test-ceph: deps-ceph ## back up RBD disks of a real one-node Ceph cluster (root)
	go test -tags $(TAGS),ceph -timeout 20m -count=1 -run '^TestCeph$$' -v ./tests/integration

lint: $(LINT) ## gofmt, go vet, golangci-lint
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo 'not gofmt-ed:'; gofmt -l $$(git ls-files '*.go'); exit 1; }
	go vet -tags $(TAGS),ceph ./...
	$(LINT) run --build-tags $(TAGS),ceph ./...

fuzz: ## run each fuzz test for FUZZTIME
	scripts/fuzz.sh $(FUZZTIME)

bench: deps-bench build ## measure against other tools, and what a guest feels
	scripts/bench.sh

generate: ## write the JSON Schemas in docs/schema from the types
	go generate ./messages/...

clean: ## remove what was built
	rm -rf bin .tools

.PHONY: deps-build deps-demo deps-bench deps-ceph
deps: ; @scripts/deps.sh build run test ## install what the tests need (apt)
deps-build: ; @scripts/deps.sh build
deps-demo: ; @scripts/deps.sh build run
deps-ceph: ; @scripts/deps.sh build run test ceph
deps-bench: ; @scripts/deps.sh build run test bench

$(LINT):
	GOBIN=$(CURDIR)/.tools/tmp go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(LINT_VERSION)
	mv .tools/tmp/golangci-lint $@
