//! A cluster: whether every slot is served, and each node by itself, at the address that it announces.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use futures_util::future::join_all;

use super::info::Info;
use super::report::spell;
use super::way_in::{Keys, Way};
use super::{Examination, Stop, now};
use crate::limiter::store::{Fault, FaultKind};
use crate::redis::target::{Target, address};
use crate::redis::wire::{Probe, Reply, SLOTS, Wire};

/// The longest wait for one node.
const PATIENCE: Duration = Duration::from_millis(2_000);

/// A node as `CLUSTER SLOTS` has it.
#[derive(Clone)]
struct Node {
    host: String,
    port: u16,
    /// Those that it serves; none of a replica.
    slots: Vec<(u16, u16)>,
    /// The place of its master among the nodes, of a replica.
    of: Option<usize>,
}

/// What was seen of a node.
struct Seen {
    wire: Wire,
    round_trip: Duration,
    version: Option<String>,
    /// Of a replica, whether it follows its master.
    follows: bool,
}

/// Looks at the cluster if there is one, and goes on to a node of it that lets us in. The key that is that node's.
pub(super) async fn look(doctor: &mut Examination<'_>, way: &mut Way) -> Result<Option<Probe>, Stop> {
    // No sentinel looks after a cluster.
    if way.sentinels.is_some() {
        return Ok(None);
    }
    let began = Instant::now();
    let info = match way.wire.ask(&["CLUSTER", "INFO"]).await {
        Ok(Reply::Text(text)) => Some(Info(text)),
        Err(fault) if matches!(fault.kind, FaultKind::Lost | FaultKind::Timeout) => return Ok(None),
        _ => None,
    };
    let (slots, missing) = match way.wire.ask_for_all(&["CLUSTER", "SLOTS"]).await {
        Ok(Reply::List(slots)) => (slots, false),
        Err(fault) if fault.kind == FaultKind::Permission && info.is_some() => (Vec::new(), true),
        // No cluster, or one that does not say so: then the script finds out.
        _ => return Ok(None),
    };
    let nodes = nodes_of(&slots, &way.target);
    // Some answer anything with something.
    if nodes.is_empty() && info.as_ref().is_none_or(|info| info.field("cluster_state").is_none()) {
        return Ok(None);
    }
    doctor.report.expect("cluster", "session");
    doctor.report.expect("nodes", "cluster");
    doctor.begin("cluster");
    doctor.began = began;
    if missing {
        let fault =
            Fault::new(FaultKind::Permission, "it is a cluster, and the user may not ask for its slots");
        let cure = "ACL SETUSER … +cluster|slots, and +cluster|info for the doctor";
        return Err(doctor.fail(&fault, Some(cure.into())));
    }
    state(doctor, info.as_ref(), &nodes)?;
    let probe = each(doctor, way, &nodes).await?;
    Ok(Some(probe))
}

/// Of `first, last, master, replica…` a node each, the masters with all that they serve.
fn nodes_of(slots: &[Reply], asked: &Target) -> Vec<Node> {
    let mut nodes: Vec<Node> = Vec::new();
    let place = |nodes: &mut Vec<Node>, node: &Reply| -> Option<usize> {
        let [endpoint, port, rest @ ..] = node.items() else { return None };
        let named =
            rest.get(1).and_then(|metadata| metadata.field("hostname")).filter(|name| !name.is_empty());
        let endpoint = endpoint.text().filter(|endpoint| !endpoint.is_empty() && endpoint != "?");
        let host = named.or(endpoint).or_else(|| asked.host().map(str::to_owned))?;
        let port = port.text()?.parse().ok()?;
        let known = nodes.iter().position(|node| node.host == host && node.port == port);
        Some(known.unwrap_or_else(|| {
            nodes.push(Node { host, port, slots: Vec::new(), of: None });
            nodes.len() - 1
        }))
    };
    for range in slots {
        let [first, last, master, replicas @ ..] = range.items() else { continue };
        let number = |reply: &Reply| reply.text().and_then(|text| text.parse::<u16>().ok());
        let (Some(first), Some(last)) = (number(first), number(last)) else { continue };
        if first > last || last >= SLOTS.get() {
            continue;
        }
        let Some(master) = place(&mut nodes, master) else { continue };
        if let Some(master) = nodes.get_mut(master) {
            master.slots.push((first, last));
        }
        for replica in replicas {
            if let Some(node) = place(&mut nodes, replica).and_then(|place| nodes.get_mut(place)) {
                node.of = Some(master);
            }
        }
    }
    nodes
}

/// Whether all slots are served.
fn state(doctor: &mut Examination<'_>, info: Option<&Info>, nodes: &[Node]) -> Result<(), Stop> {
    let mut served: Vec<(u16, u16)> = nodes.iter().flat_map(|node| node.slots.iter().copied()).collect();
    served.sort_unstable();
    let holes = holes(&served);
    let missing: u32 = holes.iter().map(|(first, last)| u32::from(last - first) + 1).sum();
    let masters = nodes.iter().filter(|node| !node.slots.is_empty()).count();
    let covered = u32::from(SLOTS.get()) - missing;
    let state = info.and_then(|info| info.field("cluster_state")).unwrap_or("not told");
    let mut found = format!("cluster_state {state}, {covered} of {SLOTS} slots on {masters} masters");
    if missing > 0 {
        let _ = write!(found, "; nobody serves {}", ranges(&holes));
    }
    let failing = info.and_then(|info| info.number("cluster_slots_fail")).unwrap_or_default();
    if failing > 0 {
        let _ = write!(found, "; the masters of {failing} slots are down");
    }
    let cure = "start the nodes that served them; if they are gone, `redis-cli --cluster fix HOST:PORT` gives their slots to others";
    if state == "fail" || masters == 0 {
        let found = format!("{found}: the cluster refuses every call");
        return Err(doctor.fail(&Fault::new(FaultKind::Cluster, found), Some(cure.into())));
    }
    if missing > 0 || failing > 0 {
        doctor.warn(format!("{found}: keys in them are decided in memory"), cure);
    } else {
        doctor.good(found);
    }
    Ok(())
}

/// What lies between the ranges, which are in order.
fn holes(served: &[(u16, u16)]) -> Vec<(u16, u16)> {
    let mut holes = Vec::new();
    let mut next = 0;
    for &(first, last) in served {
        if first > next {
            holes.push((next, first - 1));
        }
        next = next.max(last.saturating_add(1));
    }
    if next < SLOTS.get() {
        holes.push((next, SLOTS.get() - 1));
    }
    holes
}

fn ranges(slots: &[(u16, u16)]) -> String {
    let words: Vec<String> = slots
        .iter()
        .map(|(first, last)| if first == last { first.to_string() } else { format!("{first}-{last}") })
        .collect();
    words.join(" ")
}

/// Each node at the address that it announces, all at once. Goes on to one of the masters.
async fn each(doctor: &mut Examination<'_>, way: &mut Way, nodes: &[Node]) -> Result<Probe, Stop> {
    doctor.begin("nodes");
    let keys = Keys { patience: way.keys.patience.min(PATIENCE), ..way.keys.clone() };
    let namespace = doctor.redis.namespace.clone();
    let seen = join_all(nodes.iter().map(|node| see(node, &way.target, &keys, &namespace))).await;
    let mut problems: Vec<(String, String)> = Vec::new();
    let mut goes_on = None;
    let mut worst: Option<Fault> = None;
    let (mut masters, mut fit) = (0, 0);
    for (place, (node, seen)) in nodes.iter().zip(seen).enumerate() {
        let at = address(&node.host, node.port);
        let is_master = node.of.is_none();
        let role = match node.of.and_then(|of| nodes.get(of)) {
            None => format!("master of {}", ranges(&node.slots)),
            Some(master) => format!("replica of {}", address(&master.host, master.port)),
        };
        masters += usize::from(is_master);
        match seen {
            Ok(seen) => {
                let version = seen.version.map_or(String::new(), |version| format!(", Redis {version}"));
                doctor.details.push(format!("{at}, {role}: {}{version}", spell(seen.round_trip)));
                if is_master {
                    fit += 1;
                    if let Some(probe) = Probe::within(&namespace, &node.slots).filter(|_| goes_on.is_none())
                    {
                        goes_on = Some((place, seen.wire, probe));
                    }
                } else if !seen.follows {
                    problems.push((
                        format!("{at} has lost its link to its master"),
                        "look at that replica's log: it cannot take its master's place".into(),
                    ));
                }
            }
            Err(fault) => {
                doctor.details.push(format!("{at}, {role}: [{}] {}", fault.kind, fault.detail));
                let effect =
                    if is_master { "its keys are decided in memory" } else { "it can't be looked at" };
                problems.push((format!("{at} ({role}): {} ({effect})", fault.kind), cure_of(&fault, &at)));
                worst = worst.filter(|_| !is_master).or(Some(fault));
            }
        }
        let replicas = nodes.iter().filter(|other| other.of == Some(place)).count();
        if is_master && replicas == 0 {
            problems.push((
                format!("{at} has no replica"),
                "add one (redis-cli --cluster add-node --cluster-slave): when a master without one dies, its keys are decided in memory until it is back".into(),
            ));
        }
    }
    let Some((place, wire, probe)) = goes_on else {
        let mut fault = worst.unwrap_or_else(|| Fault::new(FaultKind::Cluster, "no master has slots"));
        fault.detail =
            format!("none of {masters} masters works at the address that it announces: {}", fault.detail)
                .into();
        let cure = cure_of(&fault, "the nodes");
        return Err(doctor.fail(&fault, Some(cure)));
    };
    if let Some(node) = nodes.get(place) {
        way.target = way.target.at(&node.host, node.port);
    }
    way.wire = wire;
    let found = format!("{fit} of {masters} masters decide, {} replicas", nodes.len() - masters);
    match problems.first() {
        None => doctor.good(found),
        Some((_, cure)) => {
            let cure = cure.clone();
            let words: Vec<&str> = problems.iter().map(|(problem, _)| problem.as_str()).collect();
            doctor.warn(format!("{found}; {}", words.join("; ")), cure);
        }
    }
    Ok(probe)
}

fn cure_of(fault: &Fault, at: &str) -> String {
    match fault.kind {
        FaultKind::Timeout | FaultKind::Refused | FaultKind::Dns | FaultKind::Lost => format!(
            "{at}: is it up, and can this machine reach what it announces? Behind NAT or in containers nodes have to announce an address that clients reach: cluster-announce-ip (and -port), or cluster-announce-hostname"
        ),
        FaultKind::Tls => format!(
            "{at}: its certificate has to hold what it announces: cluster-announce-hostname, or the address as a name"
        ),
        FaultKind::Auth | FaultKind::Permission => format!(
            "{at}: give the user the same password and permissions on every node (ACL are not replicated)"
        ),
        _ => format!("{at}: see what it says, in its log as well"),
    }
}

/// Gets in, and runs what decides there.
async fn see(node: &Node, asked: &Target, keys: &Keys, namespace: &str) -> Result<Seen, Fault> {
    let mut wire = keys.open(&asked.at(&node.host, node.port)).await?;
    let started = Instant::now();
    let _ = wire.ask(&["PING"]).await;
    let round_trip = started.elapsed();
    if node.of.is_none()
        && let Some(probe) = Probe::within(namespace, &node.slots)
    {
        wire.run_script(&probe, now()).await?;
    }
    let info = match wire.ask(&["INFO"]).await {
        Ok(Reply::Text(text)) => Some(Info(text)),
        _ => None,
    };
    let field = |name: &str| info.as_ref().and_then(|info| info.field(name));
    let version = field("redis_version").map(str::to_owned);
    let follows = field("master_link_status").is_none_or(|status| status == "up");
    Ok(Seen { wire, round_trip, version, follows })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_that_is_none_counts_for_nothing() {
        let number = |number: i64| Reply::Int(number);
        let node =
            || Reply::List(vec![Reply::Text("192.0.2.1".into()), number(7_001), Reply::Text("id".into())]);
        let range = |first, last| Reply::List(vec![number(first), number(last), node()]);
        let asked = Target::parse("redis://asked.example").unwrap();
        for (first, last) in [(0, 65_535), (65_535, 65_535), (5, 4), (-1, 5), (0, 16_384)] {
            assert!(nodes_of(&[range(first, last)], &asked).is_empty(), "{first}-{last}");
        }
        assert_eq!(nodes_of(&[range(0, 16_383)], &asked)[0].slots, [(0, 16_383)]);
    }

    #[test]
    fn slots_that_nobody_serves_are_named_as_ranges() {
        for (served, wanted) in [
            (&[(0, 16_383)][..], ""),
            (&[], "0-16383"),
            (&[(0, 99), (101, 16_382)], "100 16383"),
            (&[(5_461, 10_922)], "0-5460 10923-16383"),
        ] {
            assert_eq!(ranges(&holes(served)), wanted);
        }
    }
}
