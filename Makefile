.PHONY: help check test

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | sort

check: ## gofmt, go vet, staticcheck and govulncheck, in every module
	@scripts/check.sh

test: ## every test of every module on every database; TESTFLAGS go to go test
	@scripts/test.sh $(TESTFLAGS)
