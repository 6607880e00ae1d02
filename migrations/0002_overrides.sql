-- Overrides: a subject's own limit, exemption or block.
--
-- One row an override, of which only the newest version counts: its history is in the audit. A row is the JSON that
-- instances hand on (`body`), so that a field which a later version adds needs no migration; the order by which two
-- versions meet is in it, and the process compares before it writes. One that was taken back, or has run out, stays for
-- a while without its subject (`body` says so): an instance that was away must not bring it back.
-- The subject stands here as it was typed: the file belongs to the service alone.
CREATE TABLE overrides (
    id   TEXT NOT NULL PRIMARY KEY,
    body TEXT NOT NULL CHECK (json_valid(body))
) WITHOUT ROWID, STRICT;
