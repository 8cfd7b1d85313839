# `make` lists what there is. Tools are run at pinned versions and are no part of go.mod.

GO           ?= go
VERSION      ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
PG           ?= $(WALHOOK_TEST_POSTGRES_VERSION)
GOVULNCHECK  := golang.org/x/vuln/cmd/govulncheck@v1.9.0
GOLANGCI     := github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v2.15.0

.DEFAULT_GOAL := help
.PHONY: help demo build test test-pg check manifests vulncheck bench bench-smoke faults faults-quick faults-switches release release-check image-check clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## show it all, on a throwaway PostgreSQL: needs nothing but Go and a source of PostgreSQL
	@$(GO) run . demo

build: ## a static binary: bin/walhook
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o bin/walhook .

# internal/store takes longest: what begins first does not end alone. On two busy cores it takes more than the ten minutes that
# go test grants.
test: ## all tests, with the race detector; each has a real PostgreSQL. Then the simulations at full size, without it
	$(GO) test -race -shuffle=on -timeout 40m ./internal/store ./...
	$(GO) test -shuffle=on ./deliver ./deliver/schedule

# The alerts are Prometheus's.
test-pg: ## the tests that speak to PostgreSQL, with another major version of it: make test-pg PG=17 (14 to 18)
	WALHOOK_TEST_POSTGRES_VERSION=$(or $(PG),$(error say which: make test-pg PG=17)) $(GO) test -timeout 40m -skip '^TestAlert' ./internal/store . ./cdc ./outbox ./internal/admin

check: ## read-only checks: format, vet, go.mod, lint (staticcheck is in it)
	@unformatted="$$(gofmt -l .)"; if [ -n "$$unformatted" ]; then echo "gofmt has changes for:"; echo "$$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(GO) run ./internal/failpoint/overlay bin/overlay && $(GO) vet -overlay bin/overlay/overlay.json ./...
	$(GO) mod tidy -diff
	$(GO) run $(GOLANGCI) run ./...

manifests: ## compose.yaml and deploy: read as Compose, Kubernetes and Helm read them, and run as far as that goes without an engine
	cd deploy/check && $(GO) mod tidy -diff && $(GO) vet ./... && $(GO) test ./...

# govulncheck exits with 3 where it found some; anything else means that it could not look. `go run` would make both 1.
vulncheck: ## known vulnerabilities of what is called, in the binary and in Go; asks vuln.go.dev, and says so where that cannot be reached
	@GOBIN=$(CURDIR)/bin $(GO) install $(GOVULNCHECK) && bin/govulncheck ./... || { code=$$?; \
		[ $$code -ne 3 ] || exit 1; \
		echo "NOT CHECKED for known vulnerabilities: see above. govulncheck needs the module proxy and vuln.go.dev"; }

release: ## everything that a release has, for VERSION: dist/
	$(GO) run ./internal/release -version $(VERSION)

release-check: ## make a release of the last commit twice, in two checkouts and with two caches: the same bytes, and complete
	@folder="$$(mktemp -d)"; trap 'chmod -R u+w "$$folder"; rm -rf "$$folder"' EXIT; \
	git clone -q . "$$folder/one" && git clone -q "$$folder/one" "$$folder/two" && \
	( cd "$$folder/one" && $(GO) run ./internal/release -version $(VERSION) ) && \
	( cd "$$folder/two" && $(GO) run ./internal/release -version $(VERSION) -cache "$$folder/cache" ) && \
	diff "$$folder/one/dist/SHA256SUMS" "$$folder/two/dist/SHA256SUMS" && cat "$$folder/two/dist/SHA256SUMS" && \
	WALHOOK_TEST_RELEASE="$$folder/two/dist" $(GO) test -count=1 -run '^TestTheRelease$$' ./internal/release

image-check: ## build the image with what is on this machine, look into it, and deliver with it; without a Docker engine it says so
	@.ci/image

bench: ## measure the release binary beside a bare client and a poller: some fifteen minutes, on a machine that does nothing else
	$(GO) run ./internal/bench

bench-smoke: ## go through every measurement once with small numbers, in under two minutes: whether it runs, not how fast
	$(GO) run ./internal/bench -smoke -plots bin/plots

faults: ## every fault in full, more than an hour on two cores, into docs/faults.md; one of them: make faults RUN=Freeze; on one version: PG=17
	WALHOOK_TEST_POSTGRES_VERSION=$(PG) $(GO) test -count=1 -v -timeout 180m ./internal/faults -run 'TestFaults/$(RUN)' -faults -faults.write $(CURDIR)/docs/faults.md

faults-quick: ## the faults that every change has to survive, for a shorter time, two scenarios at once: some five minutes
	WALHOOK_TEST_POSTGRES_VERSION=$(PG) $(GO) test -count=1 -v -timeout 40m ./internal/faults -run 'TestFaults/$(RUN)' -faults.quick -parallel 4

faults-switches: ## break each rule of the design in turn, and see a scenario go red for it: some five minutes
	$(GO) test -count=1 -v -timeout 30m ./internal/faults -run '^TestSwitches$$' -faults.switches

clean: ## remove what was built
	rm -rf bin dist
