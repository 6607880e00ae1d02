//! One client's key in the admin API: its debts and blocks, and how they are forgiven.

use std::sync::Arc;
use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, web};
use futures_util::future::join_all;
use serde::Serialize;

use super::api::{Admin, actor};
use super::audit::AuditRow;
use crate::doors::exchange::request_id;
use crate::doors::problem::{Cause, Problem};
use crate::limiter::Limiter;
use crate::limiter::access::Access;
use crate::limiter::forgive::{Forgiven, KeyState};
use crate::limiter::policy::{Rule, Rules};
use crate::limiter::subject::Subject;
use crate::redis::RedisStore;

/// So many rules are asked about a key without being named: each is a call to Redis.
const RULES_WITHOUT_A_NAME: usize = 100;
/// So many who are shut out are listed.
const LISTED: usize = 1_000;
/// The most parts of a key that are taken.
const MOST_PARTS: usize = 16;
/// How often, and after what pause each time, a key with calls under way is forgiven again.
const AGAIN: u32 = 40;
const PAUSE: Duration = Duration::from_millis(5);

#[derive(Serialize)]
struct PolicyView {
    policy: Box<str>,
    by: Box<str>,
    state: &'static str,
    /// On which list it stands: no policy applies to it then.
    #[serde(skip_serializing_if = "Option::is_none")]
    listed: Option<&'static str>,
    /// The id of the override in force for it.
    #[serde(rename = "override", skip_serializing_if = "Option::is_none")]
    overridden: Option<Box<str>>,
    backend: &'static str,
    fallback: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    remaining: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reset_after_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    blocked_for_ms: Option<u64>,
}

#[derive(Serialize)]
struct ForgivenView {
    policies: Vec<Box<str>>,
    /// How many of them had shut the key out.
    blocks: usize,
    /// How many of the instances that listen have forgiven it as well, this one included.
    applied: String,
    /// Whether every store where the key has debts knows, and every instance. `false`: see `applied` and `redis`.
    complete: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    redis: Option<&'static str>,
}

#[derive(Serialize)]
struct BlockedView {
    policy: Box<str>,
    by: Box<str>,
    key: Option<KeyView>,
    blocked_until: String,
}

/// A key as it is asked for: one value, or one for each part of the subject.
#[derive(Serialize)]
#[serde(untagged)]
enum KeyView {
    One(String),
    Parts(Vec<String>),
}

impl From<Vec<&[u8]>> for KeyView {
    fn from(values: Vec<&[u8]>) -> Self {
        let text = |value: &[u8]| String::from_utf8_lossy(value).into_owned();
        match values.as_slice() {
            [value] => Self::One(text(value)),
            several => Self::Parts(several.iter().map(|value| text(value)).collect()),
        }
    }
}

/// What the query asks for.
#[derive(Default)]
struct Question {
    key: Vec<String>,
    rule: Option<String>,
    blocked: bool,
}

impl Question {
    fn read(request: &HttpRequest) -> Result<Self, Problem> {
        let refuse =
            |detail: &str| Problem::new(Cause::Unprocessable, detail.to_owned()).with_code("bad_query");
        let pairs = web::Query::<Vec<(String, String)>>::from_query(request.query_string())
            .map_err(|_| refuse("The query can't be read. Accepted: key=KEY, rule=NAME, blocked=true."))?;
        let mut question = Self::default();
        for (name, value) in pairs.into_inner() {
            match name.as_str() {
                "key" if question.key.len() < MOST_PARTS => question.key.push(value),
                "rule" if question.rule.is_none() && !value.is_empty() => question.rule = Some(value),
                "blocked" if value == "true" => question.blocked = true,
                _ => {
                    return Err(refuse(
                        "Accepted: key=KEY (once for each part of the subject), rule=NAME once, blocked=true.",
                    ));
                }
            }
        }
        Ok(question)
    }

    /// The rules that are meant.
    fn rules<'r>(&self, rules: &'r Rules) -> Result<Vec<&'r Rule>, Problem> {
        match &self.rule {
            Some(name) => rules.named(name).map(|rule| vec![rule]).ok_or_else(|| {
                let detail = format!("There is no rule \"{name}\".");
                Problem::new(Cause::Unprocessable, detail).with_code("unknown_rule")
            }),
            None if rules.all().len() > RULES_WITHOUT_A_NAME => {
                let detail = format!("There are {} rules: name one with rule=NAME.", rules.all().len());
                Err(Problem::new(Cause::Unprocessable, detail).with_code("name_a_rule"))
            }
            None => Ok(rules.all().iter().collect()),
        }
    }

    fn key(&self) -> Result<Vec<&[u8]>, Problem> {
        if self.key.is_empty() || self.key.iter().any(String::is_empty) {
            let detail = "Say whose: key=KEY, as the request carries it (an address for \"ip\"); for a subject of several parts \
                          key=… for each of them, in their order.";
            return Err(Problem::new(Cause::Unprocessable, detail).with_code("no_key"));
        }
        Ok(self.key.iter().map(String::as_bytes).collect())
    }

    /// Several keys that fit no policy are a mistake: to say that nothing is held against them would be untrue.
    fn nobody(&self) -> Problem {
        let detail = format!("No policy counts by {} parts.", self.key.len());
        Problem::new(Cause::Unprocessable, detail).with_code("no_such_subject")
    }
}

/// `GET /admin/keys?key=…[&key=…][&rule=…]`: how it stands under each policy; `?blocked=true`: who is shut out.
///
/// # Errors
/// A query that asks for nothing, or for a rule that there is not.
pub async fn keys(request: HttpRequest, admin: web::Data<Admin>) -> Result<HttpResponse, Problem> {
    let question = Question::read(&request)?;
    let limiter = admin.status.limiter();
    let rules = limiter.rules();
    if question.blocked {
        let by = |name: &str| {
            let policy = rules.policies().iter().find(|policy| &*policy.name == name);
            policy.map_or_else(|| Subject::new([]), |policy| policy.by.clone())
        };
        let blocked = limiter.blocked();
        let total = blocked.len();
        let shown: Vec<BlockedView> = blocked
            .into_iter()
            .take(LISTED)
            .map(|blocked| {
                let by = by(&blocked.policy);
                BlockedView {
                    by: by.kind().into(),
                    key: blocked.who.map(|who| by.values_in(&who).into()),
                    policy: blocked.policy,
                    blocked_until: super::status::time(blocked.until),
                }
            })
            .collect();
        return Ok(HttpResponse::Ok().json(serde_json::json!({ "total": total, "blocked": shown })));
    }
    let key = question.key()?;
    let mut views = Vec::new();
    for rule in question.rules(&rules)? {
        let states = limiter.key_states(&rules, rule, &key).await;
        views.extend(states.into_iter().map(view));
    }
    if views.is_empty() && key.len() > 1 {
        return Err(question.nobody());
    }
    Ok(HttpResponse::Ok().json(serde_json::json!({ "key": KeyView::from(key), "policies": views })))
}

/// `DELETE /admin/keys?key=…[&rule=…]`: forgives its debts and lets it out of the penalty box.
///
/// # Errors
/// As [`keys`].
pub async fn forgive(request: HttpRequest, admin: web::Data<Admin>) -> Result<HttpResponse, Problem> {
    let question = Question::read(&request)?;
    let key = question.key()?;
    let limiter = Arc::clone(admin.status.limiter());
    let rules = limiter.rules();
    let mut view = ForgivenView {
        policies: Vec::new(),
        blocks: 0,
        applied: "1/1".to_owned(),
        complete: true,
        redis: None,
    };
    // Side by side: whoever does not answer is waited for once.
    let under = question.rules(&rules)?.into_iter().map(async |rule| {
        let mut forgiven = forgive_here(&limiter, &rules, rule, &key).await;
        let told = admin.fleet.forgive(&rule.name, &question.key).await;
        if told.of > 1 {
            // What the others had under way may have carried the debt to Redis, and from there to here.
            forgiven.untold = limiter.forgive_again(&rules, rule, &key).await.untold.or(forgiven.untold);
        }
        (forgiven, told)
    });
    let mut missing = None;
    for (forgiven, told) in join_all(under).await {
        view.blocks += forgiven.blocks;
        // Of several rules the one that fewest have heard of.
        if missing.is_none_or(|most| told.of - told.done > most) {
            missing = Some(told.of - told.done);
            view.applied = format!("{}/{}", told.done, told.of);
        }
        if let Some(fault) = forgiven.untold.or(told.fault) {
            view.redis = Some(fault.as_str());
        }
        view.policies.extend(forgiven.policies);
        view.complete &= told.everybody() && forgiven.untold.is_none();
    }
    if view.policies.is_empty() && key.len() > 1 {
        return Err(question.nobody());
    }
    // Which client it was is not for a trail that many may read.
    let to =
        serde_json::json!({"policies": view.policies.len(), "blocks": view.blocks, "applied": view.applied});
    let row = AuditRow {
        to,
        request_id: request_id(&request),
        ..AuditRow::done(&actor(&request), "keys.forgive", "")
    };
    admin.audit.append(row);
    Ok(HttpResponse::Ok().json(view))
}

/// Forgives a key on this instance and in Redis, until no call that knew of its debts is under way any more.
pub(super) async fn forgive_here(
    limiter: &Limiter<RedisStore>,
    rules: &Rules,
    rule: &Rule,
    key: &[&[u8]],
) -> Forgiven {
    let first = limiter.forgive(rules, rule, key).await;
    let mut last = first.clone();
    for _ in 0..AGAIN {
        if !last.under_way {
            break;
        }
        tokio::time::sleep(PAUSE).await;
        last = limiter.forgive_again(rules, rule, key).await;
    }
    Forgiven { blocks: first.blocks, ..last }
}

fn view(state: KeyState) -> PolicyView {
    let ruled = state.own.as_ref().and_then(|own| own.rules);
    PolicyView {
        by: state.by,
        // In the order in which a request meets them.
        state: match (state.listed.or(ruled), &state.reading, state.blocked_for) {
            _ if ruled == Some(Access::Deny) => "block",
            (Some(Access::Deny), ..) | (None, _, Some(_)) => "block",
            (None, Some(reading), None) if reading.remaining == 0 => "throttle",
            _ => "allow",
        },
        listed: state.listed.map(Access::as_str),
        backend: state.backend.as_str(),
        fallback: state.fallback.is_some(),
        overridden: state.own.map(|own| own.id),
        limit: Some(state.quota.limit()),
        remaining: state.reading.map(|reading| reading.remaining),
        reset_after_ms: state.reading.map(|reading| reading.reset_after.div_ceil(1000)),
        blocked_for_ms: state.blocked_for.map(|rest| rest.div_ceil(1000)),
        policy: state.policy,
    }
}
