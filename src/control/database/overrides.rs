//! The statements about overrides. Clients' keys stand in them: each is sealed with the key of the file beside the database.

use sqlx::SqlitePool;

use crate::control::fleet::seal::{open, seal};

/// What was kept.
#[derive(Default)]
pub(super) struct Kept {
    /// Overrides as they were written.
    pub(super) texts: Vec<String>,
    /// Those of them that are not sealed, with their ids.
    pub(super) unsealed: Vec<(String, Option<String>)>,
    /// How many another key has sealed.
    pub(super) unreadable: usize,
}

pub(super) async fn load(pool: &SqlitePool, key: Option<&[u8; 16]>) -> Result<Kept, sqlx::Error> {
    let rows: Vec<(String, String)> =
        sqlx::query_as("SELECT id, body FROM overrides").fetch_all(pool).await?;
    let mut kept = Kept::default();
    for (id, body) in rows {
        // A sealed one is a text of JSON, one that is not an object.
        match serde_json::from_str::<String>(&body) {
            Ok(sealed) => match key.and_then(|key| open::<String>(key, &sealed)) {
                Some(text) => kept.texts.push(text),
                None => kept.unreadable += 1,
            },
            Err(_) => {
                if key.is_some() {
                    kept.unsealed.push((id, Some(body.clone())));
                }
                kept.texts.push(body);
            }
        }
    }
    Ok(kept)
}

/// Seals what an older version has left, and leaves it nowhere in the journal.
pub(super) async fn seal_old(
    pool: &SqlitePool,
    overrides: &[(String, Option<String>)],
    key: Option<&[u8; 16]>,
) -> Result<(), sqlx::Error> {
    write(pool, overrides, key).await?;
    sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(pool).await.map(drop)
}

pub(super) async fn write(
    pool: &SqlitePool,
    overrides: &[(String, Option<String>)],
    key: Option<&[u8; 16]>,
) -> Result<(), sqlx::Error> {
    let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
    for (id, body) in overrides {
        let statement = match body {
            Some(body) => sqlx::query(
                "INSERT INTO overrides (id, body) VALUES (?, ?) ON CONFLICT DO UPDATE SET body = excluded.body",
            )
            .bind(id)
            .bind(sealed(body, key)?),
            None => sqlx::query("DELETE FROM overrides WHERE id = ?").bind(id),
        };
        statement.execute(&mut *transaction).await?;
    }
    transaction.commit().await
}

/// As it is kept. A database in memory has no key, and outlives nothing.
fn sealed(body: &str, key: Option<&[u8; 16]>) -> Result<String, sqlx::Error> {
    let Some(key) = key else { return Ok(body.to_owned()) };
    let sealed = seal(key, &body).ok_or_else(|| sqlx::Error::Encode("it can't be sealed".into()))?;
    Ok(format!("\"{sealed}\""))
}
