package admin

import (
	"net/http"
	"time"
)

// LimitBulk says how long a change of many tasks goes on.
func LimitBulk(pages http.Handler, limit time.Duration) { pages.(*site).bulkLimit = limit }

// RoundsOfUnknown is what BasicAuth spends on a name that it does not have.
func RoundsOfUnknown(users map[string]string) int { return newBasic(users).none.rounds }
