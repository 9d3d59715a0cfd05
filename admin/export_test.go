package admin

import (
	"net/http"
	"time"
)

// LimitBulk says how long a change of many tasks goes on.
func LimitBulk(pages http.Handler, limit time.Duration) { pages.(*site).bulkLimit = limit }
