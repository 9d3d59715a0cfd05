.PHONY: help check test test-versions soak mutants model fuzz bench bench-quick bench-admin screenshots

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | sort

check: ## gofmt, go vet, staticcheck and govulncheck, in every module
	@scripts/check.sh

test: ## every test of every module on every database; TESTFLAGS go to go test
	@scripts/test.sh $(TESTFLAGS)

test-versions: ## the tests of the promises on the oldest and the newest version of each server that can be had
	@scripts/test-versions.sh

DURATION ?= 30m
DATABASE ?= postgres
soak: ## four processes under load, killed, paused and cut off, for DURATION on DATABASE (postgres, mariadb, mysql, sqlite); SEED repeats the faults
	@go run ./internal/soak -duration $(DURATION) -database $(DATABASE) $(if $(SEED),-seed $(SEED))

mutants: ## takes each guard away in turn and shows which test notices; ONLY="words" chooses by name
	@go run ./scripts/mutants $(ONLY)

model: ## checks docs/model with spin: clean as designed, a violation without each guard
	@scripts/model.sh

fuzz: ## each fuzz test for FUZZTIME, by default 1m
	@scripts/fuzz.sh

bench: ## this library beside its peers: every table, on a quiet machine; the figures go to docs/benchmarks.md
	@cd benchmarks && go run . -json results.json all && go run . -render

bench-quick: ## the same with a tenth of the tasks and one round, to see that everything works
	@cd benchmarks && go run . -quick all

bench-admin: ## time the administrator's pages on a million tasks and a million rows of history
	@OUTBOX_ADMIN_ROWS=1000000 go test -v -timeout 30m -run TestMillion ./admin

screenshots: ## pictures of the administrator's pages, both themes and a phone's width, in SCREENSHOTS
	@mkdir -p "$(SCREENSHOTS)"
	@cd admin/browsertest && OUTBOX_SCREENSHOTS="$(abspath $(SCREENSHOTS))" go test -count=1 -run TestScreenshots .
SCREENSHOTS ?= screenshots
