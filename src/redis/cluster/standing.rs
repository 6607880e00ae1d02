//! How a cluster stands: what its links say of themselves becomes what is said of it as a whole. An outage of one node is an
//! outage of its slots; it ends when they are decided by Redis again, whichever node serves them then.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::map::Map;
use super::slot::SLOTS;
use crate::limiter::breaker::State;
use crate::limiter::event::{Event, Observer};
use crate::limiter::store::{Fault, FaultKind};
use crate::redis::link::LinkState;

/// What all links of a cluster tell.
pub(in crate::redis) struct Standing {
    pub(in crate::redis) map: ArcSwapOption<Map>,
    /// Something happened after which the map may be another.
    pub(in crate::redis) doubted: Notify,
    observer: Arc<dyn Observer>,
    said: Mutex<Said>,
}

#[derive(Default)]
struct Said {
    /// That it is in use.
    connected: bool,
    /// That all of it is away.
    away: bool,
    outages: Vec<Outage>,
}

/// Of one node's slots.
struct Outage {
    node: Box<str>,
    slots: Vec<u16>,
    since: Instant,
}

impl Standing {
    pub(in crate::redis) fn new(observer: Arc<dyn Observer>) -> Self {
        Self { map: ArcSwapOption::empty(), doubted: Notify::new(), observer, said: Mutex::default() }
    }

    /// Looks at all links, one of which may just have failed.
    pub(super) fn look(&self, failed: Option<(&str, &Fault)>) {
        // One after another: what is told last is what is so.
        let mut said = self.said.lock();
        let Some(map) = self.map.load_full() else { return };
        let states: Vec<LinkState> = map.nodes.iter().map(|node| node.link.state()).collect();
        let owners: Vec<Option<usize>> = map.owners().collect();
        self.say(&mut said, &map, (&states, &owners), failed);
        // Last: that all of it is in use, or away, is told as of one server, which has one connection or none.
        self.count(&map, &states, &owners);
    }

    fn say(
        &self,
        said: &mut Said,
        map: &Map,
        (states, owners): (&[LinkState], &[Option<usize>]),
        failed: Option<(&str, &Fault)>,
    ) {
        let is_served = |slot: u16| {
            let owner = owners.get(usize::from(slot)).copied().flatten();
            owner.is_some_and(|at| states[at].breaker == State::Closed)
        };
        let served = (0..SLOTS.get()).filter(|&slot| is_served(slot)).count();
        said.outages.retain(|outage| {
            let over = outage.slots.iter().all(|&slot| is_served(slot));
            if over {
                self.observer.observe(&Event::StorePartBack {
                    node: &outage.node,
                    percent: percent(outage.slots.len()),
                    lasted: outage.since.elapsed(),
                });
            }
            !over
        });
        if served == usize::from(SLOTS.get()) {
            if !said.connected || said.away {
                self.observer.observe(&Event::StoreConnected);
            }
            (said.connected, said.away) = (true, false);
            return;
        }
        let Some((node, fault)) = failed else { return };
        let first_attempts = || {
            let tried = |at: usize| states[at].last_fault.is_some() || states[at].breaker != State::Open;
            owners.iter().flatten().any(|&at| !tried(at))
        };
        if served == 0 {
            if said.away {
                self.observer.observe(&Event::StoreUnreachable(fault));
            } else if said.connected || !first_attempts() {
                said.away = true;
                self.observer.observe(&Event::StoreLost(fault));
            }
            return;
        }
        if said.away {
            return;
        }
        let owner = map.nodes.iter().position(|other| &*other.place.address == node);
        let of_node = |slot: &u16| owners.get(usize::from(*slot)).is_some_and(|at| *at == owner);
        let slots: Vec<u16> = (0..SLOTS.get()).filter(of_node).collect();
        let known = said.outages.iter().any(|outage| outage.slots.iter().any(|slot| slots.contains(slot)));
        if slots.is_empty() || known {
            return;
        }
        self.observer.observe(&Event::StorePartLost { node, percent: percent(slots.len()), fault });
        said.outages.push(Outage { node: node.into(), slots, since: Instant::now() });
    }

    /// A map took the place of another. Slots that nobody serves are an outage as well.
    pub(super) fn mapped(&self) {
        let nobody = Fault::new(FaultKind::Cluster, "no node of the cluster serves these slots");
        let orphaned = self.map.load().as_ref().is_some_and(|map| map.owners().any(|owner| owner.is_none()));
        self.look(orphaned.then_some(("no node", &nobody)));
    }

    /// Whether each slot's node is in use.
    pub(super) fn is_sound(&self) -> bool {
        let Some(map) = self.map.load_full() else { return false };
        let sound: Vec<bool> =
            map.nodes.iter().map(|node| node.link.breaker.state() != State::Open).collect();
        map.owners().all(|owner| owner.is_some_and(|at| sound[at]))
    }

    /// The worst of all slots' states, and how many masters are in each.
    fn count(&self, map: &Map, states: &[LinkState], owners: &[Option<usize>]) {
        let mut serving = vec![false; states.len()];
        let mut worst = State::Closed;
        for owner in owners {
            match owner {
                Some(at) => serving[*at] = true,
                None => worst = State::Open,
            }
        }
        let mut nodes = [0; 3];
        for (state, _) in states.iter().zip(&serving).filter(|(_, serves)| **serves) {
            nodes[state.breaker as usize] += 1;
            worst = if state.breaker as u8 > worst as u8 { state.breaker } else { worst };
        }
        let connections = map.nodes.iter().filter(|node| node.link.is_connected()).count();
        self.observer.observe(&Event::StoreNodes { worst, connections, nodes });
    }
}

/// Of all slots, rounded to a tenth.
fn percent(slots: usize) -> f64 {
    (slots as f64 * 1_000.0 / f64::from(SLOTS.get())).round() / 10.0
}

/// Hears one link.
pub(super) struct Ear {
    pub(super) standing: Arc<Standing>,
    pub(super) node: Box<str>,
}

impl Observer for Ear {
    fn observe(&self, event: &Event<'_>) {
        let standing = &self.standing;
        match event {
            Event::StoreLost(fault) | Event::StoreUnreachable(fault) => {
                standing.doubted.notify_one();
                standing.look(Some((&self.node, fault)));
            }
            Event::StoreConnected | Event::StoreWarming { .. } | Event::StoreDisconnected => {
                standing.look(None);
            }
            Event::StoreReplaced(_) => {
                standing.observer.observe(event);
                standing.look(None);
            }
            Event::StoreFailed(_) => {
                standing.observer.observe(event);
                standing.doubted.notify_one();
            }
            _ => standing.observer.observe(event),
        }
    }
}
