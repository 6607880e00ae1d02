//! The way in: configuration, name, address, TLS, password, database.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::report::Outcome;
use super::sentinels::{self, Told};
use super::{Examination, Stop};
use crate::limiter::store::{Fault, FaultKind};
use crate::redis::Login;
use crate::redis::target::{Protocol, Target};
use crate::redis::wire::{self, Certificate, Handshake, Trust, Wire};

/// A certificate that is good for less than this should be renewed by now.
const RENEW_WITHIN: Duration = Duration::from_secs(14 * 24 * 3_600);
/// How long it may take to find out what else might listen there.
const SECOND_LOOK: Duration = Duration::from_millis(1_000);

/// How we got in.
pub(super) struct Way {
    /// The server, which sentinels may have named.
    pub(super) target: Target,
    pub(super) keys: Keys,
    pub(super) wire: Wire,
    /// What the sentinels told, where there are any.
    pub(super) sentinels: Option<Told>,
}

/// What opens the doors.
#[derive(Clone)]
pub(super) struct Keys {
    pub(super) trust: Trust,
    pub(super) login: Login,
    pub(super) patience: Duration,
}

impl Keys {
    /// All the way in, where only its end matters.
    pub(super) async fn open(&self, target: &Target) -> Result<Wire, Fault> {
        let addresses = wire::resolve(target, self.patience).await?;
        let (mut wire, _) = wire::reach(target, &addresses, self.patience).await?;
        if target.tls() {
            (wire, _) = wire.secure(target, &self.trust).await.map_err(|(fault, _)| fault)?;
        }
        authenticate(&mut wire, target, &self.login).await?;
        Ok(wire)
    }
}

pub(super) async fn way_in(doctor: &mut Examination<'_>) -> Result<Way, Stop> {
    let redis = doctor.redis;
    let patience = redis.connect_timeout;
    let second_look = patience.min(SECOND_LOOK);

    if redis.target.master_name().is_some() {
        doctor.report.expect("sentinels", "configuration");
        doctor.report.expect("quorum", "sentinels");
        doctor.report.expect("replicas", "role");
    }
    doctor.begin("configuration");
    let trust = configuration(doctor)?;
    let mut target = redis.target.clone();
    let mut told = None;
    if target.master_name().is_some() {
        let (master, all) = sentinels::look(doctor, &trust).await?;
        (target, told) = (master, Some(all));
    }
    let target = &target;

    doctor.begin("dns");
    let addresses = match wire::resolve(target, patience).await {
        Ok(addresses) => addresses,
        Err(fault) => return Err(doctor.failed(&fault)),
    };
    match target.host() {
        None => doctor.skip("a unix socket has no name to resolve"),
        Some(host) if host.parse::<std::net::IpAddr>().is_ok() => doctor.good("an address already"),
        Some(host) => {
            let shown: Vec<String> = addresses.iter().map(|address| address.ip().to_string()).collect();
            doctor.good(format!("{host} is {}", shown.join(", ")));
        }
    }

    doctor.begin("tcp");
    let mut wire = match wire::reach(target, &addresses, patience).await {
        Ok((wire, Some(address))) => {
            doctor.good(format!("{address} takes connections"));
            wire
        }
        Ok((wire, None)) => {
            doctor.good("the socket takes connections");
            wire
        }
        Err(fault) => return Err(doctor.failed(&fault)),
    };

    doctor.begin("tls");
    if target.tls() {
        wire = match wire.secure(target, &trust).await {
            Ok((wire, handshake)) => {
                shaken(doctor, &handshake);
                wire
            }
            Err((fault, handshake)) => {
                let plain = handshake.certificates.is_empty()
                    && matches!(fault.kind, FaultKind::Timeout | FaultKind::Tls | FaultKind::Lost)
                    && wire::speaks_plainly(target, &addresses, second_look).await;
                return Err(unshaken(doctor, fault, &handshake, plain));
            }
        };
    } else if target.socket_path().is_some() {
        doctor.skip("a unix socket does not leave the machine");
    } else {
        doctor.skip("REDIS_URL asks for none (redis://)");
    }

    doctor.begin("auth");
    let login = Login::read(&redis.target, &redis.files);
    let login = match login {
        Ok(login) => login,
        Err(bad) => return Err(doctor.failed(&Fault::new(FaultKind::Auth, bad.to_string()))),
    };
    if let Err(fault) = log_in(doctor, &mut wire, target, &login).await {
        if !target.tls()
            && matches!(fault.kind, FaultKind::Lost | FaultKind::Timeout | FaultKind::Protocol)
            && target.socket_path().is_none()
            && wire::speaks_tls(target, &addresses, &trust, second_look).await
        {
            let cure =
                "the port speaks TLS and REDIS_URL asks for none: use rediss://, or REDIS_TLS=true".into();
            return Err(doctor.fail(&fault, Some(cure)));
        }
        return Err(doctor.failed(&fault));
    }

    doctor.begin("session");
    if target.db() != 0
        && let Err(fault) = wire.ask(&["SELECT", &target.db().to_string()]).await
    {
        return Err(doctor.failed(&fault));
    }
    doctor.good(format!("database {}, and it answers", target.db()));
    let keys = Keys { trust, login, patience };
    Ok(Way { target: target.clone(), keys, wire, sentinels: told })
}

fn configuration(doctor: &mut Examination<'_>) -> Result<Trust, Stop> {
    let redis = doctor.redis;
    let mut problems = Vec::new();
    let mut read = |variable: &str, path: &Option<std::path::PathBuf>| {
        let path = path.as_ref()?;
        let text = std::fs::read(path);
        text.map_err(|error| problems.push(format!("{variable}: can't read {}: {error}", path.display())))
            .ok()
    };
    let ca_cert = read("REDIS_CA_CERT", &redis.files.ca_cert);
    let certificate = read("REDIS_CLIENT_CERT", &redis.files.client_cert);
    let key = read("REDIS_CLIENT_KEY", &redis.files.client_key);
    let trust = Trust { ca_cert, client_identity: certificate.zip(key) };
    if problems.is_empty() && redis.target.uses_tls() {
        problems.extend(trust.check().err());
    }
    if !problems.is_empty() {
        let cure = "a start would not get past this either: correct the file or the variable that names it";
        let fault = Fault::new(FaultKind::Tls, problems.join("; "));
        return Err(doctor.fail(&fault, Some(cure.into())));
    }
    let timeout = redis.timeout.as_millis();
    let found =
        format!("{}, REDIS_TIMEOUT_MS is {timeout}, keys begin with {}:", redis.target, redis.namespace);
    if redis.target.is_private() {
        doctor.good(found);
    } else {
        doctor.warn(
            format!("{found}; not encrypted: passwords and keys cross the network readable"),
            "use rediss://, or REDIS_TLS=true, where the server speaks TLS",
        );
    }
    Ok(trust)
}

fn shaken(doctor: &mut Examination<'_>, handshake: &Handshake) {
    let version = handshake.version.unwrap_or("TLS");
    let Some(own) = handshake.certificates.first() else { return doctor.good(version) };
    let (left, until) = (left(own), until(own));
    let chain = handshake.certificates.len();
    let found = format!("{version}; {}; a chain of {chain}; good until {until}", described(own));
    if left < RENEW_WITHIN {
        let days = left.as_secs() / 86_400;
        doctor.warn(format!("{found}, {days} days from now"), "renew the server's certificate");
    } else {
        doctor.good(format!("{found}, {} days from now", left.as_secs() / 86_400));
    }
}

fn unshaken(doctor: &mut Examination<'_>, fault: Fault, handshake: &Handshake, plain: bool) -> Stop {
    if plain {
        let fault = Fault::new(
            fault.kind,
            format!("the port does not speak TLS, and answers plain commands ({})", fault.detail),
        );
        let cure = "use redis:// and unset REDIS_TLS, or the server's TLS port".into();
        return doctor.fail(&fault, Some(cure));
    }
    match handshake.certificates.first() {
        None => doctor.fail(&fault, None),
        Some(own) => {
            let shown = format!("{}; shown: {}, good until {}", fault.detail, described(own), until(own));
            doctor.fail(&Fault::new(fault.kind, shown), None)
        }
    }
}

/// Whose a certificate is, for what, and by whom.
fn described(certificate: &Certificate) -> String {
    let names = match certificate.names.as_slice() {
        [] => "no name".to_owned(),
        names => names.join(", "),
    };
    format!("for {names}, signed by \"{}\"", certificate.issuer)
}

fn until(certificate: &Certificate) -> String {
    let at = i64::try_from(certificate.not_after).ok().and_then(|at| chrono::DateTime::from_timestamp(at, 0));
    at.map_or_else(|| "an unknown date".to_owned(), |at| at.format("%Y-%m-%d").to_string())
}

fn left(certificate: &Certificate) -> Duration {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Duration::from_secs(certificate.not_after).saturating_sub(now)
}

/// AUTH (or HELLO) with what the URL holds, and a first PING: who is not let in hears of it here.
async fn log_in(
    doctor: &mut Examination<'_>,
    wire: &mut Wire,
    target: &Target,
    login: &Login,
) -> Result<(), Fault> {
    authenticate(wire, target, login).await?;
    match login.password() {
        Some(_) => doctor.good("user and password are accepted"),
        None => doctor.end(Outcome::Good, "no password, and none is wanted", None),
    }
    Ok(())
}

async fn authenticate(wire: &mut Wire, target: &Target, login: &Login) -> Result<(), Fault> {
    if target.protocol() == Protocol::Resp3 {
        let mut words = vec!["HELLO", "3"];
        if let Some(password) = login.password() {
            words.extend(["AUTH", login.username().unwrap_or("default"), password]);
        }
        wire.ask(&words).await.map_err(at_the_door)?;
    } else if let Some(password) = login.password() {
        let answer = match login.username() {
            None => wire.ask(&["AUTH", password]).await,
            // Before Redis 6 there was one user, without a name.
            Some(user) => match wire.ask(&["AUTH", user, password]).await {
                Err(fault) if fault.detail.contains("wrong number of arguments") => {
                    wire.ask(&["AUTH", password]).await
                }
                answer => answer,
            },
        };
        answer.map_err(at_the_door)?;
    }
    match wire.ask(&["PING"]).await {
        Ok(_) => Ok(()),
        // A user may be in and not allowed to PING: nobody needs it.
        Err(fault) if fault.kind == FaultKind::Permission => Ok(()),
        Err(fault) => Err(fault),
    }
}

/// What a server says to AUTH is about the password, unless it is plainly about something else.
fn at_the_door(fault: Fault) -> Fault {
    if fault.kind == FaultKind::Other { Fault { kind: FaultKind::Auth, ..fault } } else { fault }
}
