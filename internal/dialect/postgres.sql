CREATE TABLE IF NOT EXISTS {version} (
    version     integer NOT NULL,
    migrated_at timestamptz NOT NULL,
    PRIMARY KEY (version, migrated_at)
);
CREATE TABLE IF NOT EXISTS {tasks} (
    id           varchar(36)  COLLATE "C" NOT NULL PRIMARY KEY,
    func         varchar(255) NOT NULL,
    args         json         NOT NULL,
    key          varchar(255),
    queue        varchar(64)  NOT NULL,
    priority     smallint     NOT NULL,
    run_at       timestamptz  NOT NULL,
    state        varchar(16)  NOT NULL,
    attempt      integer      NOT NULL,
    uncounted    integer      NOT NULL,
    crashes      integer      NOT NULL,
    max_attempts integer      NOT NULL,
    timeout_ms   bigint       NOT NULL,
    repeatable   boolean      NOT NULL,
    version      bigint       NOT NULL,
    process_id   varchar(36),
    rerun_of     varchar(36),
    errors       json,
    meta         json,
    created_at   timestamptz  NOT NULL,
    started_at   timestamptz
);
CREATE INDEX IF NOT EXISTS {tasks.claim} ON {tasks} (queue, priority, run_at, id) WHERE state = 'pending';
CREATE UNIQUE INDEX IF NOT EXISTS {tasks.key} ON {tasks} (key) WHERE key IS NOT NULL;
CREATE INDEX IF NOT EXISTS {tasks.process} ON {tasks} (process_id) WHERE state = 'running';
CREATE INDEX IF NOT EXISTS {tasks.parked} ON {tasks} (func) WHERE state = 'parked';
CREATE TABLE IF NOT EXISTS {history} (
    id           varchar(36)  COLLATE "C" NOT NULL PRIMARY KEY,
    func         varchar(255) NOT NULL,
    args         json         NOT NULL,
    key          varchar(255),
    queue        varchar(64)  NOT NULL,
    priority     smallint     NOT NULL,
    run_at       timestamptz  NOT NULL,
    attempt      integer      NOT NULL,
    uncounted    integer      NOT NULL,
    crashes      integer      NOT NULL,
    max_attempts integer      NOT NULL,
    timeout_ms   bigint       NOT NULL,
    version      bigint       NOT NULL,
    process_id   varchar(36),
    rerun_of     varchar(36),
    errors       json,
    meta         json,
    created_at   timestamptz  NOT NULL,
    started_at   timestamptz,
    status       varchar(16)  NOT NULL,
    reason       varchar(32)  NOT NULL,
    result       json,
    error        text,
    finished_at  timestamptz  NOT NULL,
    rerun_id     varchar(36)
);
CREATE INDEX IF NOT EXISTS {history.status} ON {history} (status, finished_at);
CREATE INDEX IF NOT EXISTS {history.key} ON {history} (key) WHERE key IS NOT NULL;
CREATE TABLE IF NOT EXISTS {processes} (
    id          varchar(36)  NOT NULL PRIMARY KEY,
    host        varchar(255) NOT NULL,
    pid         bigint       NOT NULL,
    functions   json         NOT NULL,
    queues      json,
    slots       integer      NOT NULL,
    started_at  timestamptz  NOT NULL,
    beat_at     timestamptz  NOT NULL,
    beats       bigint       NOT NULL
);
CREATE TABLE IF NOT EXISTS {audit} (
    id      varchar(36)  NOT NULL PRIMARY KEY,
    at      timestamptz  NOT NULL,
    actor   varchar(255) NOT NULL,
    action  varchar(32)  NOT NULL,
    task_id varchar(36)  NOT NULL,
    func    varchar(255) NOT NULL,
    reason  text         NOT NULL,
    before  json         NOT NULL,
    after   json         NOT NULL
);
CREATE INDEX IF NOT EXISTS {audit.task} ON {audit} (task_id);
INSERT INTO {version} (version, migrated_at) SELECT {v}, {now} WHERE NOT EXISTS (SELECT 1 FROM {version} WHERE version = {v});
