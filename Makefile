# `make run` and `make test` are all that you need to start with. The other targets
# help you to work on the code; CONTRIBUTING.md says when to use which.

SHELL := /bin/bash
.DEFAULT_GOAL := help

# How long `make fuzz` fuzzes each target.
FUZZTIME ?= 3s

.PHONY: help
help: ## List the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

# `go build` itself knows whether there is something to do.
.PHONY: bin/caddy bin/caddy-race
bin/caddy:
	go build -o $@ ./cmd/caddy

# The integration tests run this binary, so that a data race fails them.
bin/caddy-race:
	go build -race -o $@ ./cmd/caddy

.PHONY: run
run: bin/caddy ## Serve the example clip behind the gate, with a page of signed links
	@examples/run.sh bin/caddy

# At most 12 minutes on 2 processors, once everything has been compiled.
.PHONY: test
test: test-tools unit fuzz integration ## Run all tests but the long ones, installing the Debian packages that they need

# About an hour: 20 minutes of fuzzing, 20 of the soak, and the other tests whose names
# begin with TestLong, with the race detector in the tests themselves, too.
.PHONY: test-long
test-long: test-tools bin/caddy bin/caddy-race ## Long tests: soak, 200 reloads, floods, fuzzing, all players with all clips
	$(MAKE) fuzz FUZZTIME=2m
	cd integration && go test -race -count=1 -timeout 120m -v -run '^TestLong' .

.PHONY: test-tools
test-tools:
	@integration/install-tools.sh

.PHONY: unit
unit: ## Unit tests, goldens, fuzz seeds and Wycheproof's vectors
	go test -race ./...
	cd integration && go test ./wycheproof

.PHONY: fuzz
fuzz: ## Fuzz each target for FUZZTIME
	.ci/fuzz $(FUZZTIME)

.PHONY: fuzz-corpus
fuzz-corpus: ## Keep the inputs that fuzzing on this machine has found
	tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -cf - -C "$$(go env GOCACHE)/fuzz/$$(go list -m)" . | \
		gzip -9n > testdata/fuzz-corpus.tar.gz

# SHARD=2/3 runs the second of three parts.
.PHONY: integration
integration: bin/caddy bin/caddy-race ## Tests of the real binary: a recording origin, raw sockets, real players
	cd integration && go test -count=1 -timeout 20m -parallel 4 $(if $(SHARD),-run '$(shell .ci/shard $(SHARD))',-skip '^TestLong') .

.PHONY: bin/bench
bin/bench:
	cd bench && go test ./... && go build -o ../$@ .

# The bench names the Debian packages that are missing, and refuses to start on a
# busy machine: if this has compiled something, wait a few minutes. BENCHFLAGS=flood
# measures floods instead, BENCHFLAGS=growth more objects and viewers, BENCHFLAGS=-help lists what can be set.
.PHONY: bench
bench: bin/caddy bin/bench ## Measure the gate beside bare Caddy, HAProxy, Traffic Server, nginx and Varnish, on an idle machine
	cd bench && ../bin/bench $(BENCHFLAGS)

.PHONY: lint
lint: ## Linters, formatting, module files
	.ci/lint

.PHONY: xcaddy
xcaddy: ## Build with xcaddy, as users do, and look for the modules
	.ci/xcaddy

# Of the last tag, or in a repository without tags of the last commit.
VERSION ?= $(shell (git describe --tags --match 'v*' 2>/dev/null || git log -1 --format=v0.0.0~%cd.%h --date=format:%Y%m%d) | sed 's/^v//; s/-/+/')
NFPM = $$(.ci/tool github.com/goreleaser/nfpm/v2/cmd/nfpm v2.45.2)

.PHONY: deb rpm
deb rpm: ## Make a Debian or RPM package in dist/
	packaging/root dist/root
	VERSION='$(VERSION)' ARCH=$$(go env GOARCH) $(NFPM) package --config packaging/nfpm.yaml --packager $@ --target dist/

# Needs buildah, and no registry.
.PHONY: image
image: ## Make an OCI image in dist/
	packaging/image dist/image
	rm -f dist/signed-playback-$(VERSION).tar
	buildah --storage-driver vfs build --format docker --isolation chroot --build-context files=dist/image/.. \
		--build-arg VERSION='$(VERSION)' -f packaging/Dockerfile -t signed-playback:build .
	buildah --storage-driver vfs push signed-playback:build oci-archive:dist/signed-playback-$(VERSION).tar:signed-playback:$(VERSION)

# The pages have the diagrams as files, so that they show without a build.
D2 = $$(.ci/tool oss.terrastruct.com/d2 v0.7.2)
.PHONY: diagrams
diagrams: ## Draw the diagrams of docs/how-it-works.md from text
	for source in docs/diagrams/*.d2; do \
		$(D2) --theme 0 --dark-theme 200 --pad 8 --scale 0.75 --omit-version $$source $${source%.d2}.svg && chmod 644 $${source%.d2}.svg || exit; \
	done

.PHONY: vulncheck
vulncheck: ## Look up known vulnerabilities; needs the network
	go run golang.org/x/vuln/cmd/govulncheck@v1.9.0 ./...

.PHONY: clean
clean: ## Remove what was built
	rm -rf bin dist integration/node_modules
