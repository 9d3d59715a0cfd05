CREATE TABLE IF NOT EXISTS {version} (
    version     integer NOT NULL,
    migrated_at datetime(6) NOT NULL,
    PRIMARY KEY (version, migrated_at)
) ENGINE=InnoDB;
CREATE TABLE IF NOT EXISTS {tasks} (
    id           varchar(36)  {exact} NOT NULL PRIMARY KEY,
    func         varchar(255) {exact} NOT NULL,
    args         longtext     {exact} NOT NULL,
    {key}        varchar(255) {exact},
    queue        varchar(64)  {exact} NOT NULL,
    priority     smallint     NOT NULL,
    run_at       datetime(6)  NOT NULL,
    state        varchar(16)  {exact} NOT NULL,
    attempt      integer      NOT NULL,
    uncounted    integer      NOT NULL,
    crashes      integer      NOT NULL,
    max_attempts integer      NOT NULL,
    timeout_ms   bigint       NOT NULL,
    repeatable   boolean      NOT NULL,
    version      bigint       NOT NULL,
    process_id   varchar(36)  {exact},
    rerun_of     varchar(36)  {exact},
    errors       longtext     {exact},
    meta         longtext     {exact},
    created_at   datetime(6)  NOT NULL,
    started_at   datetime(6),
    INDEX {tasks.claim} (state, queue, priority, run_at),
    UNIQUE INDEX {tasks.key} ({key})
) ENGINE=InnoDB;
CREATE TABLE IF NOT EXISTS {history} (
    id           varchar(36)  {exact} NOT NULL PRIMARY KEY,
    func         varchar(255) {exact} NOT NULL,
    args         longtext     {exact} NOT NULL,
    {key}        varchar(255) {exact},
    queue        varchar(64)  {exact} NOT NULL,
    priority     smallint     NOT NULL,
    run_at       datetime(6)  NOT NULL,
    attempt      integer      NOT NULL,
    uncounted    integer      NOT NULL,
    crashes      integer      NOT NULL,
    max_attempts integer      NOT NULL,
    timeout_ms   bigint       NOT NULL,
    version      bigint       NOT NULL,
    process_id   varchar(36)  {exact},
    rerun_of     varchar(36)  {exact},
    errors       longtext     {exact},
    meta         longtext     {exact},
    created_at   datetime(6)  NOT NULL,
    started_at   datetime(6),
    status       varchar(16)  {exact} NOT NULL,
    reason       varchar(32)  {exact} NOT NULL,
    result       longtext     {exact},
    error        longtext     {exact},
    finished_at  datetime(6)  NOT NULL,
    rerun_id     varchar(36)  {exact},
    INDEX {history.status} (status, finished_at, id, rerun_id),
    INDEX {history.key} ({key})
) ENGINE=InnoDB;
CREATE TABLE IF NOT EXISTS {processes} (
    id           varchar(36)  {exact} NOT NULL PRIMARY KEY,
    host         varchar(255) {exact} NOT NULL,
    pid          bigint       NOT NULL,
    functions    longtext     {exact} NOT NULL,
    queues       longtext     {exact},
    slots        integer      NOT NULL,
    started_at   datetime(6)  NOT NULL,
    beat_at      datetime(6)  NOT NULL,
    beats        bigint       NOT NULL
) ENGINE=InnoDB;
CREATE TABLE IF NOT EXISTS {audit} (
    id       varchar(36)  {exact} NOT NULL PRIMARY KEY,
    at       datetime(6)  NOT NULL,
    actor    varchar(255) {exact} NOT NULL,
    action   varchar(32)  {exact} NOT NULL,
    task_id  varchar(36)  {exact} NOT NULL,
    func     varchar(255) {exact} NOT NULL,
    reason   longtext     {exact} NOT NULL,
    {before} longtext     {exact} NOT NULL,
    after    longtext     {exact} NOT NULL,
    INDEX {audit.task} (task_id)
) ENGINE=InnoDB;
INSERT INTO {version} (version, migrated_at) SELECT {v}, {now} FROM DUAL WHERE NOT EXISTS (SELECT 1 FROM {version} WHERE version = {v});
