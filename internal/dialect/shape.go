package dialect

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// ErrShape is the error of CheckTables if the tables differ from the schema.
var ErrShape = errors.New("the tables are not as Schema has them")

// shape describes a table, as it must be or as it is.
type shape struct {
	what    string // the table's name in the template
	columns []columnShape
	indexes []indexShape
	refused string // why the table cannot be used at all, for example because it is a view
	split   bool   // the table is partitioned
}

type columnShape struct {
	name, kind string // such as text, integer or time
	size       int64  // of a text or an integer; a larger size is accepted
	null       bool
	owed       bool   // an insert must give it a value
	refused    string // why its character set or its collation cannot be used
}

type indexShape struct {
	name    string // empty for the primary key
	unique  bool
	columns string
	where   string
	broken  bool
	create  string // the statement that creates it
}

var (
	tableText  = regexp.MustCompile(`(?s)^CREATE TABLE IF NOT EXISTS \{(\w+)\} \((.*)\)( ENGINE=InnoDB)?$`)
	columnText = regexp.MustCompile(`^\{?(\w+)\}?\s+([a-z]+(?:\(\d+\))?)(.*)$`)
	indexText  = regexp.MustCompile(`^CREATE (UNIQUE )?INDEX IF NOT EXISTS (?:\{\w+\.schema\})?\{(\w+)\.(\w+)\} ON \{\S+\} \(([^)]*)\)(?: WHERE (.*))?$`)
	inlineText = regexp.MustCompile(`^(UNIQUE )?INDEX \{(\w+)\.(\w+)\} \(([^)]*)\)$`)
)

// shapes reads a schema's template.
func (b *base) shapes(template string, kind func(string) (string, int64)) (list []*shape) {
	find := func(what string) *shape {
		return list[slices.IndexFunc(list, func(s *shape) bool { return s.what == what })]
	}
	columns := func(text string) string { return plainText(b.render(text)) }
	for s := range strings.SplitSeq(template, ";\n") {
		s = strings.TrimSpace(s)
		if m := indexText.FindStringSubmatch(s); m != nil {
			t := find(m[2])
			t.indexes = append(t.indexes, indexShape{name: b.names.Index(b.tableName(m[2]), m[3]), unique: m[1] != "", columns: columns(m[4]),
				where: plainText(m[5]), create: b.render(s)})
			continue
		}
		m := tableText.FindStringSubmatch(s)
		if m == nil {
			continue
		}
		t := &shape{what: m[1]}
		list = append(list, t)
		for line := range strings.SplitSeq(m[2], "\n") {
			line = strings.TrimSuffix(strings.TrimSpace(line), ",")
			if i := inlineText.FindStringSubmatch(line); i != nil {
				t.indexes = append(t.indexes, indexShape{name: b.names.Index(b.tableName(i[2]), i[3]), unique: i[1] != "", columns: columns(i[4]),
					create: b.render("CREATE " + i[1] + "INDEX {" + i[2] + "." + i[3] + "} ON {" + m[1] + "} (" + i[4] + ")")})
			} else if c := columnText.FindStringSubmatch(line); c != nil {
				col := columnShape{name: c[1], null: !strings.Contains(c[3], "NOT NULL")}
				col.kind, col.size = kind(c[2])
				t.columns = append(t.columns, col)
			}
		}
	}
	return list
}

func (b *base) tableName(what string) string {
	return map[string]string{"tasks": b.names.Tasks, "history": b.names.History, "processes": b.names.Processes, "audit": b.names.Audit,
		"version": b.names.Version}[what]
}

var (
	castText  = regexp.MustCompile(`::[a-z]+( varying)?(\(\d+\))?`)
	spaceText = regexp.MustCompile(`\s*,\s*|\s+`)
)

// plainText removes the differences between databases from the text of a list of columns or of a
// condition.
func plainText(s string) string {
	s = strings.NewReplacer("(", "", ")", "", `"`, "", "`", "").Replace(castText.ReplaceAllString(s, ""))
	return spaceText.ReplaceAllStringFunc(strings.TrimSpace(s), func(space string) string {
		if strings.Contains(space, ",") {
			return ","
		}
		return " "
	})
}

// textLimit is the size of a text that has no limit.
const textLimit = 1 << 30

// compare returns the differences between a table and its required shape, and the indexes that the
// table lacks.
func compare(name string, want, have *shape) (wrong []string, lacks []indexShape) {
	bad := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	if have.refused != "" {
		bad("%s %s", name, have.refused)
		return wrong, nil
	}
	if have.split && want.what != "history" {
		bad("%s is partitioned, which only history may be", name)
		return wrong, nil
	}
	for _, c := range want.columns {
		i := slices.IndexFunc(have.columns, func(h columnShape) bool { return h.name == c.name })
		if i < 0 {
			bad("%s has no column %s", name, c.name)
			continue
		}
		h := have.columns[i]
		switch {
		case h.kind != c.kind:
			bad("%s.%s is of type %s, not %s", name, c.name, h.kind, c.kind)
		case h.size < c.size:
			bad("%s.%s is too small", name, c.name)
		case h.null && !c.null:
			bad("%s.%s may be NULL", name, c.name)
		case !h.null && c.null:
			bad("%s.%s must not be NULL", name, c.name)
		case h.refused != "":
			bad("%s.%s %s", name, c.name, h.refused)
		}
	}
	for _, h := range have.columns {
		if h.owed && !slices.ContainsFunc(want.columns, func(c columnShape) bool { return c.name == h.name }) {
			bad("%s.%s, a column of somebody else, needs a default or to be NULL", name, h.name)
		}
	}
	if first := want.columns[0].name; !slices.ContainsFunc(have.indexes, func(h indexShape) bool {
		return h.unique && !h.broken && h.where == "" && (h.columns == first || (want.what == "history" && have.split || want.what == "version") &&
			strings.HasPrefix(h.columns, first+","))
	}) {
		bad("%s has no primary key of %s", name, first)
	}
	for _, w := range want.indexes {
		i := slices.IndexFunc(have.indexes, func(h indexShape) bool { return h.name == w.name })
		if i < 0 {
			lacks = append(lacks, w)
			continue
		}
		// A unique index of all rows is accepted where one of some rows is required.
		h := have.indexes[i]
		if h.broken || h.unique != w.unique || h.columns != w.columns || h.where != w.where && (h.where != "" || !w.unique) {
			bad("index %s is not %s: drop it", w.name, strings.TrimPrefix(w.create, "CREATE "))
		}
	}
	return wrong, lacks
}

// checkTables compares all tables. It returns the tables that are absent, and the statements that
// create missing indexes.
func (b *base) checkTables(want []*shape, read func(schema, bare, what string) (*shape, error)) (absent []string, create []string, err error) {
	var wrong []string
	for _, w := range want {
		schema, bare := b.names.place(b.tableName(w.what))
		have, err := read(schema, bare, w.what)
		if err != nil {
			return nil, nil, err
		}
		if have == nil {
			absent = append(absent, b.tableName(w.what))
			continue
		}
		bad, lacks := compare(b.tableName(w.what), w, have)
		wrong = append(wrong, bad...)
		for _, l := range lacks {
			create = append(create, l.create)
		}
	}
	if len(wrong) > 0 {
		return absent, create, fmt.Errorf("%w: %s", ErrShape, strings.Join(wrong, "; "))
	}
	return absent, create, nil
}

var typeText = regexp.MustCompile(`^([a-z ]+?)(?:\((\d+)\))?( with time zone)?$`)

// postgresKind understands the types of the template and of format_type.
func postgresKind(text string) (string, int64) {
	m := typeText.FindStringSubmatch(strings.ToLower(text))
	if m == nil {
		return text, 0
	}
	size := int64(textLimit)
	if m[2] != "" {
		_, _ = fmt.Sscan(m[2], &size)
	}
	switch m[1] + m[3] {
	case "varchar", "character varying", "text":
		return "text", size
	case "smallint":
		return "integer", 2
	case "integer":
		return "integer", 4
	case "bigint":
		return "integer", 8
	case "timestamptz", "timestamp with time zone":
		return "timestamptz", min(size, 6)
	}
	return m[1] + m[3], 0
}

func (p *postgres) CheckTables(ctx context.Context, c Conn) (absent, create []string, err error) {
	return p.checkTables(p.shapes(postgresSchema, postgresKind), func(schema, bare, what string) (*shape, error) {
		var s *shape
		table := p.render("{" + what + "}")
		r, err := c.QueryContext(ctx, `SELECT relkind::text, EXISTS (SELECT 1 FROM pg_inherits WHERE inhparent = c.oid)
FROM pg_class c WHERE oid = to_regclass($1)`, table)
		if err := each(r, err, func(r Row) error {
			var kind string
			s = &shape{}
			err := r.Scan(&kind, &s.split)
			if s.split = s.split || kind == "p"; kind != "r" && kind != "p" {
				s.refused = "is not a table"
			}
			return err
		}); err != nil || s == nil {
			return nil, err
		}
		// Go code compares ids, too, as bytes.
		r, err = c.QueryContext(ctx, `SELECT a.attname, format_type(a.atttypid, a.atttypmod), NOT a.attnotnull,
	a.attnotnull AND NOT a.atthasdef AND a.attidentity = '', CASE
	WHEN NOT coalesce(o.collisdeterministic, true) THEN 'has a nondeterministic collation'
	WHEN $2 AND a.attname = 'id' AND o.collname NOT IN ('C', 'POSIX') AND (o.collname <> 'default' OR
		(SELECT datcollate FROM pg_database WHERE datname = current_database()) NOT IN ('C', 'POSIX'))
		THEN 'needs COLLATE "C"' ELSE '' END
FROM pg_attribute a LEFT JOIN pg_collation o ON o.oid = a.attcollation
WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped`, table, what == "tasks")
		if err := each(r, err, func(r Row) error {
			var col columnShape
			var kind string
			err := r.Scan(&col.name, &kind, &col.null, &col.owed, &col.refused)
			col.kind, col.size = postgresKind(kind)
			s.columns = append(s.columns, col)
			return err
		}); err != nil {
			return nil, err
		}
		r, err = c.QueryContext(ctx, `SELECT x.relname, i.indisunique, NOT i.indisvalid, coalesce(pg_get_expr(i.indpred, i.indrelid), ''),
	coalesce((SELECT string_agg(pg_get_indexdef(i.indexrelid, k, true), ',' ORDER BY k) FROM generate_series(1, i.indnkeyatts) k), '')
FROM pg_index i JOIN pg_class x ON x.oid = i.indexrelid WHERE i.indrelid = to_regclass($1)`, table)
		return s, each(r, err, func(r Row) error {
			var i indexShape
			err := r.Scan(&i.name, &i.unique, &i.broken, &i.where, &i.columns)
			i.where, i.columns = plainText(i.where), plainText(i.columns)
			s.indexes = append(s.indexes, i)
			return err
		})
	})
}

// mysqlKind understands the types of the template and of information_schema.
func mysqlKind(text string) (string, int64) {
	m := typeText.FindStringSubmatch(strings.ToLower(text))
	if m == nil {
		return text, 0
	}
	var size int64
	if m[2] != "" {
		_, _ = fmt.Sscan(m[2], &size)
	}
	switch m[1] {
	case "varchar":
		return "text", size
	case "longtext":
		return "text", textLimit
	case "boolean", "tinyint":
		return "integer", 1
	case "smallint":
		return "integer", 2
	case "int", "integer":
		return "integer", 4
	case "bigint":
		return "integer", 8
	}
	return m[1], size
}

func (m *mysql) CheckTables(ctx context.Context, c Conn) (absent, create []string, err error) {
	return m.checkTables(m.shapes(strings.ReplaceAll(mysqlSchema, "{exact}", ""), mysqlKind), func(schema, bare, what string) (*shape, error) {
		var s *shape
		r, err := c.QueryContext(ctx, `SELECT COALESCE(engine, ''), COALESCE(create_options, '') FROM information_schema.tables
WHERE table_schema = COALESCE(NULLIF(?, ''), DATABASE()) AND table_name = ?`, schema, bare)
		if err := each(r, err, func(r Row) error {
			var engine, options string
			s = &shape{}
			err := r.Scan(&engine, &options)
			if s.split = strings.Contains(options, "partitioned"); !strings.EqualFold(engine, "InnoDB") {
				s.refused = "is not a table of InnoDB, but of " + quoteText(engine)
			}
			return err
		}); err != nil || s == nil {
			return nil, err
		}
		r, err = c.QueryContext(ctx, `SELECT column_name, data_type, COALESCE(character_maximum_length, datetime_precision, 0), is_nullable = 'YES',
	is_nullable = 'NO' AND column_default IS NULL AND extra = '', COALESCE(character_set_name, ''), COALESCE(collation_name, '')
FROM information_schema.columns WHERE table_schema = COALESCE(NULLIF(?, ''), DATABASE()) AND table_name = ?`, schema, bare)
		if err := each(r, err, func(r Row) error {
			var col columnShape
			var kind, charset, collation string
			var size int64
			err := r.Scan(&col.name, &kind, &size, &col.null, &col.owed, &charset, &collation)
			if col.kind, col.size = mysqlKind(kind); col.kind == kind || strings.EqualFold(kind, "varchar") {
				col.size = size
			}
			if charset != "" && charset != "utf8mb4" {
				col.refused = "has the character set " + charset + ", not utf8mb4"
			} else if strings.EqualFold(kind, "varchar") && collation != "utf8mb4_0900_bin" && collation != "utf8mb4_nopad_bin" {
				col.refused = "has the collation " + collation + ", which takes different texts for one"
			}
			s.columns = append(s.columns, col)
			return err
		}); err != nil {
			return nil, err
		}
		r, err = c.QueryContext(ctx, `SELECT index_name, non_unique = 0, COALESCE(column_name, ''), COALESCE(sub_part, 0)
FROM information_schema.statistics WHERE table_schema = COALESCE(NULLIF(?, ''), DATABASE()) AND table_name = ?
ORDER BY index_name, seq_in_index`, schema, bare)
		return s, each(r, err, func(r Row) error {
			var i indexShape
			var part int64
			err := r.Scan(&i.name, &i.unique, &i.columns, &part)
			if i.broken = part > 0; len(s.indexes) > 0 && s.indexes[len(s.indexes)-1].name == i.name {
				last := &s.indexes[len(s.indexes)-1]
				last.columns, last.broken = last.columns+","+i.columns, last.broken || i.broken
				return err
			}
			s.indexes = append(s.indexes, i)
			return err
		})
	})
}

func quoteText(s string) string { return fmt.Sprintf("%q", s) }

// sqliteKind returns the affinity, except for times: drivers recognise times by the declared type.
func sqliteKind(text string) (string, int64) {
	text = strings.ToLower(text)
	switch {
	case strings.Contains(text, "int"):
		return "integer", 0
	case strings.Contains(text, "char"), strings.Contains(text, "text"), strings.Contains(text, "clob"):
		return "text", 0
	case text == "datetime", text == "timestamp":
		return "datetime", 0
	}
	return text, 0
}

func (s *sqlite) CheckTables(ctx context.Context, c Conn) (absent, create []string, err error) {
	return s.checkTables(s.shapes(sqliteSchema, sqliteKind), func(schema, bare, what string) (*shape, error) {
		if schema == "" {
			schema = "main"
		}
		have := &shape{}
		r, err := c.QueryContext(ctx, `SELECT name, type, "notnull" = 0, "notnull" AND dflt_value IS NULL, pk FROM pragma_table_info(?1, ?2)`, bare, schema)
		if err := each(r, err, func(r Row) error {
			var col columnShape
			var kind string
			var key int
			err := r.Scan(&col.name, &kind, &col.null, &col.owed, &key)
			col.kind, col.size = sqliteKind(kind)
			if key > 0 {
				col.null = false // GORM creates keys without NOT NULL; the library writes no NULL
			}
			if key == 1 && col.kind == "integer" { // the rowid, which has no index of its own
				have.indexes = append(have.indexes, indexShape{unique: true, columns: col.name})
			}
			have.columns = append(have.columns, col)
			return err
		}); err != nil || have.columns == nil {
			return nil, err
		}
		r, err = c.QueryContext(ctx, `SELECT l.name, l."unique", coalesce(substr(m.sql, nullif(instr(upper(m.sql), ' WHERE '), 0) + 7), ''),
	(SELECT group_concat(coalesce(name, '')) FROM (SELECT name FROM pragma_index_xinfo(l.name, ?2) WHERE key ORDER BY seqno)),
	EXISTS (SELECT 1 FROM pragma_index_xinfo(l.name, ?2) WHERE key AND coll <> 'BINARY')
FROM pragma_index_list(?1, ?2) l LEFT JOIN `+s.identifier(schema)+`.sqlite_master m ON m.type = 'index' AND m.name = l.name`, bare, schema)
		return have, each(r, err, func(r Row) error {
			var i indexShape
			var columns sql.NullString
			err := r.Scan(&i.name, &i.unique, &i.where, &columns, &i.broken)
			i.columns, i.where = columns.String, plainText(i.where)
			have.indexes = append(have.indexes, i)
			return err
		})
	})
}
