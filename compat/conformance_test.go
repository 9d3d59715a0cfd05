package compat

import (
	"testing"

	"gorm.io/gorm"
	"gorm.io/plugin/dbresolver"

	"github.com/gorm-outbox/outbox/testutil"
)

// The library's promises, through the drivers and settings that applications have.
func TestConformance(t *testing.T) {
	t.Run("sqlite in pure Go", func(t *testing.T) {
		testutil.Conformance(t, func(t testing.TB) *gorm.DB { return pure.open(t, nil) })
	})
	for _, d := range []database{maria, my} {
		t.Run(d.name+" with interpolated parameters and found rows", func(t *testing.T) {
			testutil.Conformance(t, func(t testing.TB) *gorm.DB {
				return d.openDSN(t, d.dsn(t)+"&interpolateParams=true&clientFoundRows=true", nil)
			})
		})
	}
	for _, d := range []database{mattn, pgx, maria, my} {
		t.Run(d.name+" with PrepareStmt", func(t *testing.T) {
			testutil.Conformance(t, func(t testing.TB) *gorm.DB { return d.open(t, &gorm.Config{PrepareStmt: true}) })
		})
	}
	t.Run("postgres with dbresolver", func(t *testing.T) {
		testutil.Conformance(t, func(t testing.TB) *gorm.DB {
			dsn := pgx.dsn(t)
			db := pgx.openDSN(t, dsn, nil)
			resolver := dbresolver.Register(dbresolver.Config{Replicas: []gorm.Dialector{pgx.dialector(dsn)}})
			if err := db.Use(resolver); err != nil {
				t.Fatal(err)
			}
			closePools(t, resolver)
			return db
		})
	})
}
