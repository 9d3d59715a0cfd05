package testdb

import (
	"errors"
	"fmt"
	"os"
	"testing"
	"time"
)

var errNoGalera = fmt.Errorf("the library of Galera is %w: libgalera_smm.so belongs to a MariaDB server that can be part of a cluster"+
	" (Debian: apt-get install galera-4)", errNotInstalled)

// galeraProvider finds the library that replicates between servers, where packages install it.
func galeraProvider() (string, error) {
	for _, path := range []string{"/usr/lib/galera/libgalera_smm.so", "/usr/lib64/galera-4/libgalera_smm.so", "/usr/lib/libgalera_smm.so"} {
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", errNoGalera
}

// StartGalera starts a Galera cluster of MariaDB servers from installed programs and removes it
// when the test ends. Each node accepts writes, and all nodes have the same databases. Settings are
// as for [StartMariaDB], the same for every node. Without installed programs the test is skipped,
// or fails when the environment variable CI is not empty.
func StartGalera(t testing.TB, nodes int, settings ...string) []*MySQLServer {
	t.Helper()
	provider, err := galeraProvider()
	if err != nil {
		unavailable(t, err)
	}
	cluster := "gcomm://" // for the first node, which founds the cluster
	var list []*MySQLServer
	for range nodes {
		var ports [3]int // for the group, for transfers of changes, and for transfers of all data
		for i := range ports {
			if ports[i], err = freePort(); err != nil {
				t.Fatalf("testdb: %v", err)
			}
		}
		group := fmt.Sprintf("127.0.0.1:%d", ports[0])
		node, err := mariaDB.start(append([]string{
			"--binlog-format=ROW", "--innodb-autoinc-lock-mode=2", "--wsrep-on=ON", "--wsrep-provider=" + provider,
			"--wsrep-cluster-address=" + cluster, "--wsrep-node-address=127.0.0.1",
			"--wsrep-sst-method=rsync", fmt.Sprintf("--wsrep-sst-receive-address=127.0.0.1:%d", ports[2]),
			fmt.Sprintf("--wsrep-provider-options=base_port=%d;gmcast.listen_addr=tcp://%s;ist.recv_addr=127.0.0.1:%d;gcache.size=32M",
				ports[0], group, ports[1]),
		}, settings...))
		if err != nil {
			unavailable(t, err)
		}
		node.t = t
		t.Cleanup(func() {
			if err := node.close(); err != nil {
				t.Errorf("testdb: %v", err)
			}
		})
		// A node answers before it accepts writes.
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		limit := time.Now().Add(60 * time.Second)
		for execMySQL(node.dsn(""), "CREATE DATABASE IF NOT EXISTS app CHARACTER SET utf8mb4") != nil {
			if time.Now().After(limit) {
				t.Fatalf("testdb: %v", node.failed(errors.New("the node does not join the cluster")))
			}
			<-tick.C
		}
		if len(list) == 0 {
			cluster += group
		}
		list = append(list, node)
	}
	return list
}
