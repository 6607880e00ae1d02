-- The rollout's history, what the environment said last, and who did what.
--
-- Every change of the rollout is a row of its own and no row is ever changed: there is nothing that a crash could leave half
-- written, and "what is in force" is the newest row by the order that a fleet agrees on (epoch, revision, lower share). That
-- order is the key, so writing a row twice is writing it once, and a row that comes late takes nobody's place.
-- The record is kept as the JSON that instances hand on (`body`): a field that a later version adds needs no migration, and
-- is not lost by a version that does not know it. The columns beside it are the order.
-- `points` are hundredths of a percent: what the record asks for, 0 when its backend is memory.
CREATE TABLE rollout (
    epoch      INTEGER NOT NULL CHECK (epoch >= 0),
    revision   INTEGER NOT NULL CHECK (revision >= 0),
    points     INTEGER NOT NULL CHECK (points BETWEEN 0 AND 10000),
    body       TEXT    NOT NULL CHECK (json_valid(body)),
    -- The environment that the record was held against: it belongs to the record, so it stands in the same row and can
    -- never be that of another.
    remembered TEXT    NOT NULL CHECK (json_valid(remembered)),
    PRIMARY KEY (epoch, revision, points)
) WITHOUT ROWID, STRICT;

-- `id` is the instant in microseconds, made unique by the writer: rows that wait in memory while the disk is away already
-- have their place, and newest first is the order of the key. Who is told a page needs no other index.
CREATE TABLE audit (
    id         INTEGER PRIMARY KEY,
    actor      TEXT    NOT NULL,
    action     TEXT    NOT NULL,
    -- What was and what is, as JSON; null where there is no such thing.
    was        TEXT    CHECK (was IS NULL OR json_valid(was)),
    became     TEXT    CHECK (became IS NULL OR json_valid(became)),
    reason     TEXT    NOT NULL,
    result     TEXT    NOT NULL,
    request_id TEXT,
    epoch      INTEGER,
    revision   INTEGER,
    figures    TEXT    CHECK (figures IS NULL OR json_valid(figures))
) STRICT;
