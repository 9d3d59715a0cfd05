package outbox_test

import (
	"testing"

	"gorm.io/gorm"

	"github.com/gorm-outbox/outbox/testutil/testdb"
)

// mysqlServers are those that understand MySQL's dialect.
var mysqlServers = map[string]func(testing.TB) *gorm.DB{"mariadb": testdb.MariaDB, "mysql": testdb.MySQL}
