//! Sentinels: whether each of them lets us in and names the same master, whether they could replace it, and by whom.

use std::time::Duration;

use futures_util::future::join_all;

use super::info::Info;
use super::report::spell;
use super::way_in::Keys;
use super::{Examination, Stop};
use crate::limiter::store::{Fault, FaultKind};
use crate::redis::Login;
use crate::redis::target::{Target, address};
use crate::redis::wire::{Reply, Trust, Wire};

/// A sentinel answers from memory.
const PATIENCE: Duration = Duration::from_millis(2_000);
/// A replica that is so far behind would forget what was counted meanwhile.
const FAR_BEHIND: u64 = 1_048_576;
const TOO_LATE: u64 = 5;

/// What one sentinel told.
struct Word {
    sentinel: String,
    master: Option<(String, u16)>,
    /// `SENTINEL MASTER`: the names and the values.
    about: Option<Reply>,
    /// `SENTINEL CKQUORUM`: what is lacking, if they may not say so.
    quorum: Option<Result<(), String>>,
    replicas: Option<Reply>,
}

/// What the sentinels told of the replicas, as far as they may.
pub(super) struct Told {
    replicas: Option<Reply>,
}

/// Looks at each of them. Returns the master that they name.
pub(super) async fn look(doctor: &mut Examination<'_>, trust: &Trust) -> Result<(Target, Told), Stop> {
    doctor.begin("sentinels");
    let target = &doctor.redis.target;
    let login = match Login::read(target, &doctor.redis.files) {
        Ok(login) => login.of_sentinels(),
        Err(bad) => return Err(doctor.failed(&Fault::new(FaultKind::Auth, bad.to_string()))),
    };
    let keys = Keys { trust: trust.clone(), login, patience: doctor.redis.connect_timeout.min(PATIENCE) };
    let name = target.master_name().unwrap_or_default();
    let sentinels = target.sentinels();
    let asked = join_all(sentinels.iter().map(|sentinel| ask(sentinel, &keys, name))).await;
    let (mut words, mut faults) = (Vec::new(), Vec::new());
    for (sentinel, answer) in sentinels.iter().zip(asked) {
        let at = at(sentinel);
        match answer {
            Ok(word) => {
                doctor.details.push(match &word.master {
                    Some((host, port)) => format!("{at} names {}", address(host, *port)),
                    None => format!("{at} does not know {name}"),
                });
                words.push(word);
            }
            Err(fault) => {
                doctor.details.push(format!("{at}: [{}] {}", fault.kind, hidden(doctor, &fault)));
                faults.push(fault);
            }
        }
    }
    let master = agree(doctor, name, sentinels.len(), &words, &faults)?;
    quorum(doctor, sentinels.len(), &words);
    let replicas = words.iter_mut().find_map(|word| word.replicas.take());
    Ok((target.at(&master.0, master.1), Told { replicas }))
}

async fn ask(sentinel: &Target, keys: &Keys, name: &str) -> Result<Word, Fault> {
    let mut wire = keys.open(sentinel).await?;
    let answer = wire.ask_for_all(&["SENTINEL", "get-master-addr-by-name", name]).await;
    let answer = answer.map_err(|fault| match fault.detail.contains("unknown command") {
        true => Fault::new(FaultKind::Other, "it is no sentinel: it does not know the command SENTINEL"),
        false => fault,
    })?;
    let master = match answer.items() {
        [host, port] => host.text().zip(port.text().and_then(|port| port.parse().ok())),
        _ => None,
    };
    // The rest is for the picture: who may not see it is let in all the same.
    let about = wire.ask_for_all(&["SENTINEL", "MASTER", name]).await.ok();
    let quorum = match wire.ask(&["SENTINEL", "CKQUORUM", name]).await {
        Ok(_) => Some(Ok(())),
        Err(fault) if fault.detail.starts_with("NOQUORUM") => Some(Err(fault.detail.into())),
        Err(_) => None,
    };
    let replicas = wire.ask_for_all(&["SENTINEL", "REPLICAS", name]).await.ok();
    Ok(Word { sentinel: at(sentinel), master, about, quorum, replicas })
}

/// The master that most of them name.
fn agree(
    doctor: &mut Examination<'_>,
    name: &str,
    asked: usize,
    words: &[Word],
    faults: &[Fault],
) -> Result<(String, u16), Stop> {
    let mut named: Vec<(&(String, u16), usize)> = Vec::new();
    for master in words.iter().filter_map(|word| word.master.as_ref()) {
        match named.iter_mut().find(|(one, _)| *one == master) {
            Some((_, votes)) => *votes += 1,
            None => named.push((master, 1)),
        }
    }
    let Some((master, votes)) = named.iter().max_by_key(|(_, votes)| *votes) else {
        return Err(nobody(doctor, name, asked, words, faults));
    };
    let master: (String, u16) = (*master).clone();
    let found = format!("{votes} of {asked} sentinels name {} as {name}", address(&master.0, master.1));
    if named.len() > 1 {
        doctor.warn(
            format!("{found}; the others name another server"),
            "after a failover they agree within seconds: run the doctor again; if they still do not, those with the lower config-epoch (SENTINEL MASTER) hear nothing of the others",
        );
    } else if let Some(fault) = faults.first() {
        let cure = cure(fault).filter(|_| fault.kind != FaultKind::Refused);
        let cure = cure.unwrap_or("start it, or take it out of REDIS_URL; while it is away it cannot vote");
        doctor.warn(format!("{found}; {} of them can't be asked", faults.len()), cure);
    } else if words.iter().any(|word| word.master.is_none()) {
        doctor.warn(format!("{found}; the others do not know it"), "SENTINEL MONITOR it on them as well");
    } else {
        doctor.good(found);
    }
    Ok(master)
}

fn nobody(doctor: &mut Examination<'_>, name: &str, asked: usize, words: &[Word], faults: &[Fault]) -> Stop {
    if !words.is_empty() {
        let found =
            format!("{} of {asked} sentinels answer, and none knows a master named {name}", words.len());
        let cure = "correct the name behind the \"/\" in REDIS_URL (SENTINEL MASTERS on a sentinel lists those it knows)";
        return doctor.fail(&Fault::new(FaultKind::Other, found), Some(cure.into()));
    }
    // One that answers and refuses tells more than one that is dead.
    let telling = |fault: &&Fault| match fault.kind {
        FaultKind::Auth | FaultKind::Permission => 3,
        FaultKind::Tls | FaultKind::Other => 2,
        FaultKind::Timeout => 0,
        _ => 1,
    };
    let Some(fault) = faults.iter().max_by_key(telling) else {
        return doctor.fail(&Fault::new(FaultKind::Other, "REDIS_URL names no sentinel"), None);
    };
    let said = Fault::new(
        fault.kind,
        format!("none of {asked} sentinels tells where the master is: {}", fault.detail),
    );
    doctor.fail(&said, cure(fault).map(str::to_owned))
}

/// What is to be done about a sentinel, where it is not what would be done about Redis.
fn cure(fault: &Fault) -> Option<&'static str> {
    match fault.kind {
        FaultKind::Auth => Some(
            "sentinels have a login of their own: sentinel_user and sentinel_password in REDIS_URL, or REDIS_SENTINEL_PASSWORD_FILE",
        ),
        FaultKind::Permission => Some(
            "ACL SETUSER … on the sentinel: +sentinel|get-master-addr-by-name +subscribe &+switch-master",
        ),
        FaultKind::Refused => {
            Some("start the sentinels, or correct hosts and ports in REDIS_URL (the default port is 26379)")
        }
        FaultKind::Tls => Some(
            "does the sentinel's port speak TLS, with a certificate for the name in REDIS_URL? rediss+sentinel:// is for sentinels and servers, sentinel_tls=true or false sets them apart",
        ),
        FaultKind::Other if fault.detail.contains("no sentinel") => Some(
            "the hosts in REDIS_URL have to be sentinels (port 26379); for the server itself use redis://",
        ),
        _ => None,
    }
}

/// Whether another server could become the master, and how long that takes.
fn quorum(doctor: &mut Examination<'_>, asked: usize, words: &[Word]) {
    doctor.begin("quorum");
    let field =
        |name: &str| words.iter().find_map(|word| word.about.as_ref()?.field(name)?.parse::<u64>().ok());
    let lacking = words.iter().find_map(|word| match &word.quorum {
        Some(Err(lacking)) => Some(format!("{} says {lacking}", word.sentinel)),
        _ => None,
    });
    if let Some(lacking) = lacking {
        doctor.warn(
            format!("{lacking}: when the master dies no other server takes its place"),
            "start the other sentinels; more than half of all that are known have to be there",
        );
        return;
    }
    let known = words.iter().any(|word| word.quorum.is_some());
    let (Some(down), Some(timeout)) = (field("down-after-milliseconds"), field("failover-timeout")) else {
        return match known {
            true => doctor.good("they are enough to make another server the master"),
            false => doctor.not_allowed("neither SENTINEL CKQUORUM nor SENTINEL MASTER"),
        };
    };
    let others = field("num-other-sentinels").unwrap_or_default();
    let (down, retry) = (Duration::from_millis(down), Duration::from_millis(timeout.saturating_mul(2)));
    let found = format!(
        "{} sentinels in all, {} of them call the master down; a master that dies is missed for {} and some 1 to 3 s \
         more, in which memory decides; a failover that fails is tried again after {}",
        others + 1,
        field("quorum").unwrap_or_default(),
        spell(down),
        spell(retry),
    );
    if others < 2 {
        doctor.warn(found, "three sentinels are the least of which one may die");
    } else if asked as u64 > others + 1 {
        doctor.warn(
            format!("{found}; REDIS_URL names {asked}"),
            "name only sentinels that know each other: SENTINEL SENTINELS lists them",
        );
    } else {
        doctor.good(found);
    }
}

/// Who could take the master's place, and how much of its counts it has.
pub(super) async fn replicas(
    doctor: &mut Examination<'_>,
    master: &mut Wire,
    info: Option<&Info>,
    told: &Told,
) -> Result<(), Stop> {
    doctor.begin("replicas");
    let role = match master.ask_for_all(&["ROLE"]).await {
        Ok(role) => Some(role),
        Err(fault) if matches!(fault.kind, FaultKind::Lost | FaultKind::Timeout) => {
            return Err(doctor.failed(&fault));
        }
        Err(_) => None,
    };
    let mut problems = Vec::new();
    let mut sound = 0;
    if let Some([_, offset, connected, ..]) = role.as_ref().map(Reply::items) {
        let offset: u64 = offset.text().and_then(|offset| offset.parse().ok()).unwrap_or_default();
        for (place, replica) in connected.items().iter().enumerate() {
            let [host, port, read] = replica.items() else { continue };
            let (host, port) = (host.text().unwrap_or_default(), port.text().unwrap_or_default());
            let read: u64 = read.text().and_then(|read| read.parse().ok()).unwrap_or_default();
            let behind = offset.saturating_sub(read);
            let late = info.and_then(|info| lag(info, place));
            let when = late.map_or(String::new(), |late| format!(", heard of {late} s ago"));
            doctor.details.push(format!("{host}:{port}, {behind} bytes behind{when}"));
            if behind > FAR_BEHIND || late.is_some_and(|late| late > TOO_LATE) {
                problems.push(format!("{host}:{port} is far behind"));
            } else {
                sound += 1;
            }
        }
    } else if told.replicas.is_none() {
        doctor.not_allowed("neither ROLE on the master nor SENTINEL REPLICAS");
        return Ok(());
    }
    for replica in told.replicas.as_ref().map_or(&[][..], Reply::items) {
        let name = replica.field("name").unwrap_or_default();
        let flags = replica.field("flags").unwrap_or_default();
        let link = replica.field("master-link-status").unwrap_or_default();
        if flags.contains("down") || flags.contains("disconnected") {
            problems.push(format!("{name} is down ({flags})"));
        } else if link != "ok" {
            problems.push(format!("{name} has lost its link to the master"));
        } else if replica.field("slave-priority").as_deref() == Some("0") {
            problems.push(format!("{name} is never made the master (replica-priority 0)"));
        } else if role.is_none() {
            sound += 1;
        }
    }
    let found = format!("{sound} can take the master's place");
    if sound == 0 {
        let more = problems.join("; ");
        let found = if more.is_empty() {
            "there is no replica".to_owned()
        } else {
            format!("no replica is fit: {more}")
        };
        doctor.warn(
            format!(
                "{found}: when the master dies nobody takes its place, and memory decides until it is back"
            ),
            "add a replica (REPLICAOF), or mend those that are there",
        );
    } else if problems.is_empty() {
        doctor.good(found);
    } else {
        doctor.warn(format!("{found}; {}", problems.join("; ")), "start it, or forget it: SENTINEL RESET");
    }
    Ok(())
}

/// Seconds since the master last heard of this replica, as `INFO` has them.
fn lag(info: &Info, place: usize) -> Option<u64> {
    let line = info.field(&format!("slave{place}"))?;
    line.rsplit_once("lag=")?.1.trim().parse().ok()
}

/// What was said, unless it holds a password.
fn hidden<'a>(doctor: &Examination<'_>, fault: &'a Fault) -> &'a str {
    let secret = doctor.redis.target.sentinel_password();
    match secret.is_some_and(|secret| !secret.is_empty() && fault.detail.contains(secret)) {
        true => "what it says is not shown here",
        false => &fault.detail,
    }
}

fn at(target: &Target) -> String {
    address(target.host().unwrap_or_default(), target.port().unwrap_or_default())
}
