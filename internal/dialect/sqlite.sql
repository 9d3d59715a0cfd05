CREATE TABLE IF NOT EXISTS {version} (
    version     integer NOT NULL,
    migrated_at datetime NOT NULL,
    PRIMARY KEY (version, migrated_at)
);
CREATE TABLE IF NOT EXISTS {tasks} (
    id           text     NOT NULL PRIMARY KEY,
    func         text     NOT NULL,
    args         text     NOT NULL,
    key          text,
    queue        text     NOT NULL,
    priority     integer  NOT NULL,
    run_at       datetime NOT NULL,
    state        text     NOT NULL,
    attempt      integer  NOT NULL,
    uncounted    integer  NOT NULL,
    crashes      integer  NOT NULL,
    max_attempts integer  NOT NULL,
    timeout_ms   integer  NOT NULL,
    repeatable   numeric  NOT NULL,
    version      integer  NOT NULL,
    process_id   text,
    rerun_of     text,
    errors       text,
    meta         text,
    created_at   datetime NOT NULL,
    started_at   datetime
);
CREATE INDEX IF NOT EXISTS {tasks.schema}{tasks.claim} ON {tasks.bare} (queue, priority, run_at) WHERE state = 'pending';
CREATE UNIQUE INDEX IF NOT EXISTS {tasks.schema}{tasks.key} ON {tasks.bare} (key) WHERE key IS NOT NULL;
CREATE INDEX IF NOT EXISTS {tasks.schema}{tasks.process} ON {tasks.bare} (process_id) WHERE state = 'running';
CREATE INDEX IF NOT EXISTS {tasks.schema}{tasks.parked} ON {tasks.bare} (func) WHERE state = 'parked';
CREATE TABLE IF NOT EXISTS {history} (
    id           text     NOT NULL PRIMARY KEY,
    func         text     NOT NULL,
    args         text     NOT NULL,
    key          text,
    queue        text     NOT NULL,
    priority     integer  NOT NULL,
    run_at       datetime NOT NULL,
    attempt      integer  NOT NULL,
    uncounted    integer  NOT NULL,
    crashes      integer  NOT NULL,
    max_attempts integer  NOT NULL,
    timeout_ms   integer  NOT NULL,
    version      integer  NOT NULL,
    process_id   text,
    rerun_of     text,
    errors       text,
    meta         text,
    created_at   datetime NOT NULL,
    started_at   datetime,
    status       text     NOT NULL,
    reason       text     NOT NULL,
    result       text,
    error        text,
    finished_at  datetime NOT NULL,
    rerun_id     text
);
CREATE INDEX IF NOT EXISTS {history.schema}{history.status} ON {history.bare} (status, finished_at);
CREATE INDEX IF NOT EXISTS {history.schema}{history.key} ON {history.bare} (key) WHERE key IS NOT NULL;
CREATE TABLE IF NOT EXISTS {processes} (
    id           text     NOT NULL PRIMARY KEY,
    host         text     NOT NULL,
    pid          integer  NOT NULL,
    functions    text     NOT NULL,
    queues       text,
    slots        integer  NOT NULL,
    started_at   datetime NOT NULL,
    beat_at      datetime NOT NULL,
    beats        integer  NOT NULL
);
CREATE TABLE IF NOT EXISTS {audit} (
    id      text     NOT NULL PRIMARY KEY,
    at      datetime NOT NULL,
    actor   text     NOT NULL,
    action  text     NOT NULL,
    task_id text     NOT NULL,
    func    text     NOT NULL,
    reason  text     NOT NULL,
    before  text     NOT NULL,
    after   text     NOT NULL
);
CREATE INDEX IF NOT EXISTS {audit.schema}{audit.task} ON {audit.bare} (task_id);
INSERT INTO {version} (version, migrated_at) SELECT {v}, {now} WHERE NOT EXISTS (SELECT 1 FROM {version} WHERE version = {v});
