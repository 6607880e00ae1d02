//! The statements about overrides.

use sqlx::SqlitePool;

pub(super) async fn load(pool: &SqlitePool) -> Result<Vec<String>, sqlx::Error> {
    sqlx::query_scalar("SELECT body FROM overrides").fetch_all(pool).await
}

pub(super) async fn write(
    pool: &SqlitePool,
    overrides: &[(String, Option<String>)],
) -> Result<(), sqlx::Error> {
    let mut transaction = pool.begin_with("BEGIN IMMEDIATE").await?;
    for (id, body) in overrides {
        let statement = match body {
            Some(body) => sqlx::query(
                "INSERT INTO overrides (id, body) VALUES (?, ?) ON CONFLICT DO UPDATE SET body = excluded.body",
            )
            .bind(id)
            .bind(body),
            None => sqlx::query("DELETE FROM overrides WHERE id = ?").bind(id),
        };
        statement.execute(&mut *transaction).await?;
    }
    transaction.commit().await
}
