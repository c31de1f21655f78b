# `make run` and `make test` are all that a newcomer needs. Everything else is
# for those who work on the code; CONTRIBUTING.md says when to use what.

SHELL := /bin/bash
.DEFAULT_GOAL := help

SOURCES := $(shell find . -name '*.go' -not -path './integration/*' -not -path './bench/*') go.mod go.sum

FUZZTIME ?= 20s

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

bin/caddy: $(SOURCES)
	go build -o $@ ./cmd/caddy

# The integration tests drive this one, so that a data race fails them.
bin/caddy-race: $(SOURCES)
	go build -race -o $@ ./cmd/caddy

.PHONY: run
run: bin/caddy ## Serve the example clip behind the gate and print signed URLs
	@examples/run.sh bin/caddy

.PHONY: test
test: test-tools unit fuzz integration ## Run all tests, installing the Debian packages that they need

.PHONY: test-tools
test-tools:
	@integration/install-tools.sh

.PHONY: unit
unit: ## Unit tests, goldens and fuzz seeds, with the race detector
	go test -race ./...

# What fuzzing has found so far lies where `go test -fuzz` looks for it and adds
# to it, and in an archive from which runs start. Without a limit, one input can
# be made smaller for all of FUZZTIME.
CORPUS := testdata/fuzz-corpus.tar.gz
FUZZCACHE = $(shell go env GOCACHE)/fuzz/$(shell go list -m)

# One target at a time is what a test binary fuzzes. It is linked once for all
# targets of its package, which `go test -fuzz` would do for each. There is one
# worker for a target, and as many targets at a time as there are processors.
# What is covered is counted in this module alone: `go test -fuzz` has all of
# Caddy count, which takes minutes to compile, and most of the time of each input.
FUZZDIRS := . token manifest internal/strictjson internal/store
COUNTING = -gcflags='$(shell go list -m)/...=-d=libfuzzer'

.PHONY: fuzz
fuzz: ## Fuzz each target for FUZZTIME
	@mkdir -p $(FUZZCACHE) && tar -xzf $(CORPUS) -C $(FUZZCACHE)
	@for dir in $(FUZZDIRS); do \
		go test -c $(COUNTING) -o bin/fuzz/$$dir/test ./$$dir || exit; \
		grep -q fuzzcntrs bin/fuzz/$$dir/test || { echo "$$dir: nothing counts what is covered" >&2; exit 1; }; \
	done
	@for dir in $(FUZZDIRS); do bin/fuzz/$$dir/test -test.list '^Fuzz' | sed "s|^|$$dir |"; done | \
		xargs -P "$$(nproc)" -L 1 .ci/fuzz-target $(FUZZTIME) $(FUZZCACHE)

.PHONY: fuzz-corpus
fuzz-corpus: ## Keep what fuzzing on this machine has found
	tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf - -C $(FUZZCACHE) . | gzip -9n > $(CORPUS)

.PHONY: integration
integration: bin/caddy bin/caddy-race ## The real binary, a recording origin, real players
	cd integration && go test -race -count=1 -timeout 40m -parallel 4 ./...

# What takes too long for every change: more reloads and a longer soak.
.PHONY: soak
soak: bin/caddy bin/caddy-race ## 200 reloads and 20 minutes of mixed load: by hand
	cd integration && SIGNED_PLAYBACK_RELOADS=200 SIGNED_PLAYBACK_SOAK=20m \
		go test -race -count=1 -timeout 60m -v -run '^(TestReload|TestSoak)$$' .

# Servers and the load generator are Debian packages; the bench names those that
# are missing. BENCHFLAGS=-help lists what can be set; flood, memory and scale, as
# the first word in it, measure those instead of comparing servers.
.PHONY: bench
bench: bin/caddy ## Measure the gate beside bare Caddy, HAProxy, Traffic Server and nginx (BENCHFLAGS=flood|memory|scale: other things; -quick: smoke test)
	cd bench && go test ./... && go run . $(BENCHFLAGS)

.PHONY: lint
lint: ## Linters, formatting, module files
	.ci/lint

.PHONY: xcaddy
xcaddy: ## Build with xcaddy, as users do, and look for the modules
	.ci/xcaddy

.PHONY: vulncheck
vulncheck: ## Look up known vulnerabilities; needs the network
	go run golang.org/x/vuln/cmd/govulncheck@v1.9.0 ./...

.PHONY: clean
clean: ## Remove what was built
	rm -rf bin integration/node_modules
