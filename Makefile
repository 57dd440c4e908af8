# Verbs: build test unit-test soak demo run bench fuzz lint fmt clean help.
# Go is found or fetched by scripts/go, Debian packages by scripts/deps.
# Everything made goes to build/; downloads are kept in a cache outside of the
# repository (SEALROOT_CACHE, else ~/.cache/sealroot).

GO := scripts/go
VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
LDFLAGS := -s -w -X main.version=$(VERSION)
# PID 1 is built without inlining (-gcflags=all=-l): 7 % smaller, no slower to boot. Its
# collector overwrites what it frees (clobberfree): keys in buffers that nobody can wipe. No
# signal interrupts its goroutines (asyncpreemptoff): the kernel would save their registers on a
# stack that nobody wipes, and what copies a key has it there.
# Its functions are not aligned (the linker gives each 16 bytes at least): 139 KB less.
# It lives for a second, in which Go's newer collector (greenteagc) is no gain: 45 KB less.
# And it is the pinned Go that makes it, also where the machine has a newer one: that makes
# another program, perhaps too large a one.
# (INIT_GODEBUG: a comma written out would end the argument of GOBUILD's call.)
INIT_GODEBUG := clobberfree=1,asyncpreemptoff=1
GOBUILD = CGO_ENABLED=0 $(GO) build -buildvcs=false -trimpath -ldflags '$(LDFLAGS)$(1)'

.DEFAULT_GOAL := build
.PHONY: build test unit-test soak demo run bench fuzz lint fmt clean help

build: ## build init, sealroot-mkinitramfs and sealroot into build/; TAGS=minimal: init knows the store gpt only, and no systemd-boot
	@mkdir -p build
	SEALROOT_GO_PINNED=1 GOEXPERIMENT=nogreenteagc $(call GOBUILD, -X runtime.godebugDefault=$(INIT_GODEBUG) -funcalign=1) -tags '$(TAGS)' -gcflags=all=-l -o build/init ./init
	$(call GOBUILD) -o build/sealroot-mkinitramfs ./mkinitramfs
	$(call GOBUILD) -o build/sealroot ./sealroot

test: build ## all tests, then whole machines in QEMU; RUN=regexp chooses tests by name
	@scripts/test '$(RUN)'

unit-test: ## only the tests that need no machine; RUN=regexp
	@scripts/test --unit '$(RUN)'

soak: build ## power cuts at random times, and in recorded writes; TIMES=300 SEED=number WALK=whole RUN=ResizeCuts
	@SEED='$(SEED)' WALK='$(WALK)' scripts/test --soak '$(or $(TIMES),300)' '$(RUN)'

demo: ## a Debian root becomes an A/B image and boots, step by step; FIRMWARE=bios ROOTFS=my.tar
	@FIRMWARE='$(FIRMWARE)' ROOTFS='$(ROOTFS)' scripts/demo

run: ## boot DISK=disk.img with a login on the terminal; TPM=1 UEFI=1|secure (Ctrl-A X leaves)
	@DISK='$(DISK)' TPM='$(TPM)' UEFI='$(UEFI)' scripts/run

bench: build ## guest time from /init to the real init, sizes, hash trees beside veritysetup
	@scripts/bench

fuzz: ## every fuzz target for FUZZTIME=20s
	@scripts/fuzz '$(or $(FUZZTIME),20s)'

lint: ## gofmt, go vet, staticcheck; PID 1's own lines and its parsers of untrusted bytes
	@scripts/lint

fmt: ## gofmt the tree
	$(GO) fmt ./...

clean: ## remove build/
	rm -rf build

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' Makefile | expand -t 12
