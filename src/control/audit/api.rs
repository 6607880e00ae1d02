//! `GET /admin/audit`: the trail, newest first, a page at a time.

use actix_web::{HttpRequest, HttpResponse, web};
use chrono::SecondsFormat;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Audit, AuditRow};
use crate::doors::problem::{Cause, Problem};

/// Rows of a page, when nobody says.
const LIMIT: usize = 50;
/// Rows of a page at most.
const MOST: usize = 500;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    limit: Option<usize>,
    cursor: Option<i64>,
}

#[derive(Serialize)]
struct PageView {
    rows: Vec<RowView>,
    /// `?cursor=` of the next page; `null`: there are no older rows.
    next: Option<String>,
    /// Whether the disk could be asked: else these are the rows that memory holds.
    complete: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    incomplete_because: Option<String>,
}

#[derive(Serialize)]
struct RowView {
    id: String,
    at: String,
    actor: String,
    action: String,
    from: Value,
    to: Value,
    reason: String,
    result: String,
    request_id: Option<String>,
    epoch: Option<u64>,
    revision: Option<u64>,
    figures: Value,
    /// Whether it outlives the process.
    durable: bool,
}

/// `GET /admin/audit`
pub async fn audit(request: HttpRequest, audit: web::Data<Audit>) -> Result<HttpResponse, Problem> {
    let asked = web::Query::<Asked>::from_query(request.query_string()).ok().map(web::Query::into_inner);
    let asked = asked.filter(|asked| {
        asked.limit.is_none_or(|limit| (1..=MOST).contains(&limit))
            && asked.cursor.is_none_or(|cursor| cursor >= 0)
    });
    let Some(Asked { limit, cursor }) = asked else {
        let detail = format!(
            "The query can't be read. Accepted: limit=1 to {MOST} ({LIMIT} without), and cursor=the \"next\" of the page before."
        );
        return Err(Problem::new(Cause::Unprocessable, detail).with_code("bad_query"));
    };
    let page = audit.page(cursor, limit.unwrap_or(LIMIT)).await;
    let next = page.rows.last().filter(|_| page.more).map(|(row, _)| row.id.to_string());
    Ok(HttpResponse::Ok().json(PageView {
        rows: page.rows.into_iter().map(RowView::from).collect(),
        next,
        complete: page.fault.is_none(),
        incomplete_because: page.fault.map(|fault| fault.to_string()),
    }))
}

impl From<(AuditRow, bool)> for RowView {
    fn from((row, durable): (AuditRow, bool)) -> Self {
        Self {
            id: row.id.to_string(),
            at: row.at().to_rfc3339_opts(SecondsFormat::Millis, true),
            actor: row.actor,
            action: row.action,
            from: row.from,
            to: row.to,
            reason: row.reason,
            result: row.result,
            request_id: row.request_id,
            epoch: row.epoch,
            revision: row.revision,
            figures: row.figures,
            durable,
        }
    }
}
