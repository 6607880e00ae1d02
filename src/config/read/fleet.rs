//! The other instances, and how this one finds them.

use std::net::IpAddr;

use crate::config::parse;
use crate::config::settings::{AdminAddr, Fleet, Rollout, UpstreamUrl};
use crate::config::take::Taken;

pub(super) fn fleet(
    taken: &mut Taken,
    admin: AdminAddr,
    rollout: &Rollout,
    warnings: &mut Vec<String>,
) -> Fleet {
    let name = taken
        .optional("fleet.name", |text| parse::name(text).ok_or_else(|| format!("accepted: {}", parse::NAME)));
    let heartbeat = taken.get("fleet.heartbeat_s", Default::default(), |text| {
        parse::seconds(text, 0..=3_600).map_err(|message| message + " (0: not at all)")
    });
    let mut peers = Vec::new();
    for item in taken.list("fleet.peers") {
        match parse::peer(&item) {
            Ok(peer) => peers.push(peer),
            Err(message) => taken.refuse_item("fleet.peers", &item, message),
        }
    }
    let secret = taken.is_set("rollout.secret") || taken.is_set("rollout.secret_file");
    if taken.is_set("fleet.peers") && rollout.secret.is_none() && !secret {
        taken.refuse(
            "fleet.peers",
            "instances know each other by their secret, and none is set; accepted: with TIDEGATE_SECRET or \
             TIDEGATE_SECRET_FILE, the same on every instance",
        );
    }
    if let AdminAddr::Socket(own) = admin
        && own.ip().to_canonical().is_loopback()
        && peers.iter().any(|peer| !is_here(peer))
    {
        let place = taken.place("fleet.peers");
        warnings.push(format!(
            "{place}: this instance asks the others, and they cannot ask it: its admin listener is on {own}. Set \
             ADMIN_ADDR to an address that they reach"
        ));
    }
    Fleet { name, heartbeat: Some(heartbeat).filter(|every| !every.is_zero()), peers }
}

fn is_here(peer: &UpstreamUrl) -> bool {
    let host = peer.host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}
