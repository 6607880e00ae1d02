//! The statements.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use sqlx::{Row as _, SqlitePool, sqlite::SqliteRow};

use crate::control::audit::{AuditRow, Stored};
use crate::control::record::{Marks, Record, Register, RememberedEnv, Seen, to_the_microsecond};

/// Revisions that are kept. Their rows of the trail may be gone before.
const REVISIONS: i64 = 10_000;

/// What is stored beside a record, in the same row: it can never be that of another.
#[derive(Serialize, Deserialize)]
struct Beside {
    /// A version that kept nothing else wrote the values that the fleet's record was held against last.
    #[serde(flatten)]
    own: RememberedEnv,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    unasked: Option<RememberedEnv>,
    #[serde(default)]
    seen: Option<Seen>,
    #[serde(default, skip_serializing_if = "Marks::is_empty")]
    unheard: Marks,
    #[serde(default)]
    made_here: bool,
}

pub(super) async fn load(pool: &SqlitePool) -> Result<Option<Stored>, sqlx::Error> {
    let newest =
        "SELECT body, remembered FROM rollout ORDER BY epoch DESC, revision DESC, points ASC LIMIT 1";
    let Some(row) = sqlx::query(newest).fetch_optional(pool).await? else { return Ok(None) };
    let (body, remembered): (String, String) = (row.try_get(0)?, row.try_get(1)?);
    let decode = |error: serde_json::Error| sqlx::Error::Decode(error.into());
    let record: Record = serde_json::from_str(&body).map_err(decode)?;
    let record = Record { updated_at: to_the_microsecond(record.updated_at), ..record };
    let beside: Beside = serde_json::from_str(&remembered).map_err(decode)?;
    let seen = beside.seen.unwrap_or_else(|| Seen::of_older_version(beside.own));
    let register = Register { record, unheard: beside.unheard, seen };
    Ok(Some(Stored { register, own: beside.own, unasked: beside.unasked, made_here: beside.made_here }))
}

pub(super) async fn write(
    pool: &SqlitePool,
    records: &[Stored],
    rows: &[AuditRow],
    most_rows: u32,
) -> Result<(), sqlx::Error> {
    // The writer's lock at once: to come to it later would fail when another process writes.
    let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
    for Stored { register, own, unasked, made_here } in records {
        let record = &register.record;
        let beside = Beside {
            own: *own,
            unasked: *unasked,
            seen: Some(register.seen.clone()),
            unheard: register.unheard.clone(),
            made_here: *made_here,
        };
        let encode = |error: serde_json::Error| sqlx::Error::Encode(error.into());
        // The same order: the same record, except that its moment or its environment may be known by now.
        sqlx::query(
            "INSERT INTO rollout (epoch, revision, points, body, remembered) VALUES (?, ?, ?, ?, ?)
             ON CONFLICT DO UPDATE SET body = excluded.body, remembered = excluded.remembered",
        )
        .bind(number(record.epoch))
        .bind(number(record.revision))
        .bind(i64::from(record.wanted().basis_points()))
        .bind(serde_json::to_string(record).map_err(encode)?)
        .bind(serde_json::to_string(&beside).map_err(encode)?)
        .execute(&mut *transaction)
        .await?;
    }
    if !records.is_empty() {
        sqlx::query(
            "DELETE FROM rollout WHERE (epoch, revision) <= (SELECT epoch, revision FROM rollout
             ORDER BY epoch DESC, revision DESC LIMIT 1 OFFSET ?)",
        )
        .bind(REVISIONS)
        .execute(&mut *transaction)
        .await?;
    }
    for row in rows {
        sqlx::query(
            "INSERT INTO audit (id, actor, action, was, became, reason, result, request_id, epoch, revision, figures)
             VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        )
        .bind(row.id)
        .bind(&row.actor)
        .bind(&row.action)
        .bind(json(&row.from))
        .bind(json(&row.to))
        .bind(&row.reason)
        .bind(&row.result)
        .bind(&row.request_id)
        .bind(row.epoch.map(number))
        .bind(row.revision.map(number))
        .bind(json(&row.figures))
        .execute(&mut *transaction)
        .await?;
    }
    if !rows.is_empty() {
        sqlx::query("DELETE FROM audit WHERE id <= (SELECT id FROM audit ORDER BY id DESC LIMIT 1 OFFSET ?)")
            .bind(i64::from(most_rows))
            .execute(&mut *transaction)
            .await?;
    }
    transaction.commit().await
}

pub(super) async fn page(pool: &SqlitePool, before: i64, limit: usize) -> Result<Vec<AuditRow>, sqlx::Error> {
    let rows = sqlx::query(
        "SELECT id, actor, action, was, became, reason, result, request_id, epoch, revision, figures
         FROM audit WHERE id < ? ORDER BY id DESC LIMIT ?",
    )
    .bind(before)
    .bind(i64::try_from(limit).unwrap_or(i64::MAX))
    .fetch_all(pool)
    .await?;
    rows.iter().map(row).collect()
}

pub(super) async fn last_id(pool: &SqlitePool) -> Result<i64, sqlx::Error> {
    sqlx::query_scalar("SELECT coalesce(max(id), 0) FROM audit").fetch_one(pool).await
}

fn row(row: &SqliteRow) -> Result<AuditRow, sqlx::Error> {
    let value = |index: usize| -> Result<Value, sqlx::Error> {
        let text: Option<String> = row.try_get(index)?;
        let value = text.map(|text| serde_json::from_str(&text)).transpose();
        Ok(value.map_err(|error| sqlx::Error::Decode(error.into()))?.unwrap_or_default())
    };
    let counted = |index: usize| -> Result<Option<u64>, sqlx::Error> {
        Ok(row.try_get::<Option<i64>, _>(index)?.map(i64::unsigned_abs))
    };
    Ok(AuditRow {
        id: row.try_get(0)?,
        actor: row.try_get(1)?,
        action: row.try_get(2)?,
        from: value(3)?,
        to: value(4)?,
        reason: row.try_get(5)?,
        result: row.try_get(6)?,
        request_id: row.try_get(7)?,
        epoch: counted(8)?,
        revision: counted(9)?,
        figures: value(10)?,
    })
}

/// SQLite counts to 2⁶³; nobody makes so many changes.
fn number(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn json(value: &Value) -> Option<String> {
    (!value.is_null()).then(|| value.to_string())
}
