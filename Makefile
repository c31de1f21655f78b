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
# begin with TestLong, with the race detector in the tests themselves, too. Each leaves a
# log in bench/logs/. RUN=TestLongSoak runs only the long tests that match.
.PHONY: test-long
test-long: test-tools bin/caddy bin/caddy-race ## Long tests: soak, 200 reloads, floods, fuzzing, all players with all clips
	$(if $(RUN),,$(MAKE) fuzz FUZZTIME=2m)
	.ci/test-long $(RUN)

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

# The last tag, or in a repository without tags a version before all others.
VERSION ?= $(shell (git describe --tags --match 'v*' 2>/dev/null || git log -1 --format=v0.0.0-dev.%cd.%h --date=format:%Y%m%d) | sed -E 's/^v//; s/-([0-9]+-g)/+\1/')
# Packages and images are for ARCH, and made of BINARY if there is one for it already.
ARCH ?= $(shell go env GOARCH)
BINARY ?=
ROOT = dist/root_$(ARCH)
IMAGE = signed-playback:$(subst +,-,$(VERSION))

.PHONY: $(ROOT)
$(ROOT):
	packaging/root $@ $(ARCH) $(BINARY)

.PHONY: deb rpm
deb rpm: $(ROOT) ## Make a Debian or RPM package in dist/
	VERSION='$(VERSION)' ARCH=$(ARCH) ROOT=$(ROOT) $$(.ci/tool github.com/goreleaser/nfpm/v2/cmd/nfpm v2.45.2) \
		package --config packaging/nfpm.yaml --packager $@ --target dist/

# Needs buildah, and no registry.
.PHONY: image
image: $(ROOT) ## Make an OCI image in dist/
	packaging/image dist/image_$(ARCH)/image $(ROOT)
	buildah --storage-driver vfs build --format docker --isolation chroot --timestamp $(shell git log -1 --format=%ct) --arch $(ARCH) --build-context files=dist/image_$(ARCH) \
		--build-arg VERSION='$(VERSION)' -f packaging/Dockerfile -t $(IMAGE) .
	packaging/oci-archive $(IMAGE) $(IMAGE) dist/signed-playback_$(VERSION)_$(ARCH).oci.tar
	buildah --storage-driver vfs rmi $(IMAGE)

# What a program has beside it.
.PHONY: bin/beside
bin/beside:
	packaging/hls-js $@
	packaging/drop-in $@/caddy.service.d/signed-playback.conf

# The tools of a release, in the order in which they compile fastest. cosign is for `make release` alone.
GORELEASER = sbom=$$(.ci/tool github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod v1.10.0) && \
	PATH="$${sbom%/*}:$$PATH" VERSION='$(VERSION)' $$(.ci/tool github.com/goreleaser/goreleaser/v2 v2.16.0) \
	release --clean --parallelism 1 --timeout 2h --release-notes bin/release-notes.md

.PHONY: release-dry-run
release-dry-run: ## Make what a release has in dist/, and publish nothing
	mkdir -p bin
	packaging/release-notes >bin/release-notes.md
	$(GORELEASER) --snapshot --skip=sign

# The workflow `release` calls it for a tag. The release stays a draft until the workflow has done the rest.
.PHONY: release
release:
	mkdir -p bin
	packaging/release-notes '$(VERSION)' >bin/release-notes.md
	$(GORELEASER)

# Hugo fails where a link leads to no page, or docs/README.md lacks one. It takes minutes to compile, once.
HUGO = $$(CGO_ENABLED=0 .ci/tool github.com/gohugoio/hugo v0.164.0) --source site --noBuildLock
.PHONY: docs docs-build
docs: ## Serve the documentation as a site, and follow changes of the pages
	$(HUGO) server --disableFastRender --renderToMemory
docs-build: ## Write the documentation as a site to dist/docs
	$(HUGO) --destination ../dist/docs --cleanDestinationDir --panicOnWarning

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
