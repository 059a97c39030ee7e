# make            build bin/fieldgate
# make demo       see it work: no hardware, no root
# make test       every test, with -race; sets itself up first
# make check      gofmt, go vet, staticcheck, tests
# make cross      the release binaries in dist/
# make bench      the figures of docs/performance.md, about ten minutes
# make soak       the long tests, about an hour
# make fuzz       every fuzz target for FUZZTIME each

GO       ?= go
VERSION  := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
FUZZTIME ?= 10s
TARGETS  := linux-amd64 linux-arm64 linux-armv7 linux-armv6 linux-riscv64

.PHONY: all build demo test check lint cross bench soak fuzz clean test-setup

all: build

build:
	GO=$(GO) scripts/build bin/fieldgate $(VERSION)

demo: build
	bin/fieldgate demo

# The tests speak to the Debian peers that scripts/test-setup names. Two cores
# are enough; packages run one after the other where they measure time.
test: test-setup
	$(GO) test -race -timeout 12m ./...

test-setup:
	@scripts/test-setup

check: lint test

lint:
	@unformatted=$$(gofmt -l cmd internal test); if [ -n "$$unformatted" ]; then \
		echo "not formatted, run gofmt -w: $$unformatted"; exit 1; fi
	$(GO) vet ./...
	$(GO) tool -modfile=tools/go.mod staticcheck ./...

cross: $(TARGETS:%=dist/fieldgate-%)

dist/fieldgate-linux-armv%: FORCE
	GO=$(GO) GOOS=linux GOARCH=arm GOARM=$* scripts/build $@ $(VERSION)
dist/fieldgate-linux-%: FORCE
	GO=$(GO) GOOS=linux GOARCH=$* scripts/build $@ $(VERSION)
FORCE:

bench: test-setup build
	$(GO) run ./test/bench -out docs/performance.md

# What holds times against the wire has the machine to itself.
soak: test-setup build
	$(GO) test -timeout 60m -count=1 -tags soak -run SoakEmergency ./test
	$(GO) test -timeout 60m -count=1 -tags soak -run Soak -skip SoakEmergency ./...

fuzz:
	@FUZZTIME=$(FUZZTIME) GO=$(GO) scripts/fuzz

clean:
	rm -rf bin dist
