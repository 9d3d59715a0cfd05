.PHONY: help check test soak

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | sort

check: ## gofmt, go vet, staticcheck and govulncheck, in every module
	@scripts/check.sh

test: ## every test of every module on every database; TESTFLAGS go to go test
	@scripts/test.sh $(TESTFLAGS)

DURATION ?= 30m
DATABASE ?= postgres
soak: ## four processes under load, killed, paused and cut off, for DURATION on DATABASE (postgres, sqlite); SEED repeats the faults
	@go run ./internal/soak -duration $(DURATION) -database $(DATABASE) $(if $(SEED),-seed $(SEED))
