//! Decides. From the facts of a request to a decision, in one straight line: [`Limiter::check`].
//!
//! Pure but for one await, on the shared store. It names no server, no client library, no log and no metric.

pub mod access;
mod begin;
mod bill;
pub mod breaker;
pub mod calendar;
pub mod charge;
mod check;
pub mod clock;
mod decide;
pub mod decision;
mod disputed;
mod entry;
pub mod event;
mod eviction;
pub mod exposure;
mod fallback;
pub mod forgive;
pub mod gcra;
mod identity;
pub mod memory;
pub mod overrides;
pub mod passage;
pub mod penalty;
mod places;
pub mod policy;
pub mod recent;
pub mod rollout;
pub mod route;
pub mod rules;
pub mod settle;
pub mod share;
pub mod store;
pub mod subject;
mod table;
pub mod text;
pub mod token;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use smallvec::SmallVec;

use access::Access;
use begin::Scope;
pub use begin::{Begun, Open};
use bill::{Bill, Item};
pub use check::{Check, DecisionFuture, PendingDecision};
use clock::Clock;
use decision::{Decision, Ruling};
use memory::Memory;
use overrides::{InForce, Overridden, Overrides, Terms, Whom};
use penalty::{PenaltyBox, Standing};
use policy::{Mode, Policy, PolicyId, Rule, Rules};
use recent::Moved;
use rollout::{Arm, Percent, Rollout};
use settle::{OpenTabs, Tab};
use store::{NoStore, Store};
use subject::{Facts, Identity, ProcessKey, Subject};

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hit {
    /// Multiplies the rule's cost; 0 asks what is left and charges nothing.
    pub cost: u32,
    /// Judge and charge nothing.
    pub peek: bool,
}

impl Hit {
    /// An ordinary request.
    pub const ONE: Self = Self { cost: 1, peek: false };

    fn writes_nothing(self) -> bool {
        self.peek || self.cost == 0
    }
}

/// The limiter: one for the whole process, shared by its threads.
pub struct Limiter<S: Store = NoStore> {
    rules: ArcSwap<Rules>,
    overrides: InForce,
    memory: Memory,
    penalties: PenaltyBox,
    open_tabs: Arc<OpenTabs>,
    process_key: ProcessKey,
    rollout: Arc<Rollout>,
    store: Option<S>,
    fleet_size: Option<NonZeroU32>,
    forgiven: AtomicU64,
    clock: Clock,
}

/// What is held in this process, and what was lost of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Keys in memory.
    pub keys: usize,
    /// Keys that are shut out by a penalty.
    pub blocked: usize,
    /// Keys that lost a debt because there was no room for it.
    pub evicted: u64,
    /// Keys of Redis that were decided here while nothing was known of them.
    pub decided_unknown: u64,
    /// Keys that an operator forgave.
    pub forgiven: u64,
    /// Overrides in force: other limits, exemptions, blocks.
    pub overrides: [usize; 3],
}

/// The most keys that memory holds unless told otherwise. At 24 bytes and the table's slack, some 50 MiB.
pub const DEFAULT_MAX_KEYS: usize = 1_000_000;

impl Limiter<NoStore> {
    /// A limiter that keeps its counts in this process and needs nothing else.
    ///
    /// `seed` keys the hashes of the counters: sixteen random bytes, so that nobody outside can aim at a bucket.
    pub fn in_memory(rules: Rules, seed: &[u8; 16]) -> Self {
        Self::new(rules, Memory::new(DEFAULT_MAX_KEYS), seed, Clock::system())
    }
}

impl<S: Store> Limiter<S> {
    /// A limiter without a shared store so far.
    pub fn new(rules: Rules, memory: Memory, seed: &[u8; 16], clock: Clock) -> Self {
        Self {
            rules: ArcSwap::from_pointee(rules),
            overrides: InForce::default(),
            memory,
            penalties: PenaltyBox::new(),
            open_tabs: Arc::default(),
            process_key: ProcessKey::new(seed),
            rollout: Arc::default(),
            store: None,
            fleet_size: None,
            forgiven: AtomicU64::new(0),
            clock,
        }
    }

    /// Following this rollout.
    pub fn with_rollout(mut self, rollout: Arc<Rollout>) -> Self {
        self.rollout = rollout;
        self
    }

    /// One of so many instances that share their counts: what it serves of a limit while Redis is away, until it has
    /// learned which share of the traffic it sees.
    pub fn in_a_fleet_of(mut self, instances: Option<NonZeroU32>) -> Self {
        self.fleet_size = instances;
        self
    }

    /// Takes over how many instances of the fleet are there, this one included, as the heartbeats say. While their list may
    /// not be complete, fewer than the configured fleet size are not believed: an instance that has just started sees those
    /// only that have spoken before it, and would serve too much of each limit.
    pub fn fleet_has(&self, members: usize, list_is_complete: bool) {
        let members = u32::try_from(members).unwrap_or(u32::MAX);
        if list_is_complete || self.fleet_size.is_none_or(|size| members >= size.get()) {
            self.memory.sight.of_members(members);
        }
    }

    /// With a shared store for the subjects that the rollout picks.
    pub fn with_store(mut self, store: S) -> Self {
        self.store = Some(store);
        self
    }

    /// Judges a request and charges it. It cannot fail: when the store does, memory decides.
    ///
    /// The facts are read, and what memory decides is decided, before this returns: then it is
    /// [`Check::Decided`] already. The future waits for the shared store only.
    pub fn check(self: &Arc<Self>, facts: &dyn Facts, hit: Hit) -> Check {
        self.check_on(facts, hit, None)
    }

    /// [`Limiter::check`], and what is charged is put on the `tab`, for [`Limiter::settle`].
    pub fn check_on(self: &Arc<Self>, facts: &dyn Facts, hit: Hit, tab: Option<&mut Tab>) -> Check {
        match self.begin(facts, hit) {
            Begun::Refused(decision) => Check::Decided(Some(decision)),
            Begun::Open(open) => self.finish(open, facts, hit, tab),
        }
    }

    /// Judges `key`, which stands in for the subject of each policy of the rule `name`. `None` when there is no
    /// such rule.
    pub fn check_key(self: &Arc<Self>, name: &str, key: &[u8], hit: Hit) -> Option<Check> {
        let rules = self.rules.load_full();
        let rule = rules.named(name)?;
        let listed = rules.listed(Some(rule), |list| {
            let policies = rule.policies.iter().map(|&id| &rules.policy(id).by);
            policies.map(|by| list.of_key(by, &by.standing_in(key), key)).reduce(Access::and).flatten()
        });
        let overrides = self.overrides_now();
        let identify = |subject: &Subject| Some(subject.standing_in(key));
        if let Some(access) = listed {
            let asked = (Some(rule), &identify as _, &Nothing as _);
            return Some(self.listed(&rules, access, asked, overrides.as_ref()));
        }
        let bill = self.bill(&rules, rule, identify, &Nothing, overrides.as_ref(), Scope::All);
        let cost = rule.cost.saturating_mul(hit.cost);
        Some(self.decide(rules, bill, cost, hit))
    }

    /// Who stands on a list. A block is as good as the list of refusals, and so goes before an exemption there.
    fn listed(
        &self,
        rules: &Arc<Rules>,
        access: Access,
        (rule, identify, facts): Asked<'_>,
        overrides: Option<&Arc<Overrides>>,
    ) -> Check {
        let revision = self.rollout.in_force().revision;
        if let (Access::Allow, Some(rule), Some(overrides)) = (access, rule, overrides)
            && let Some((ruling @ Ruling::Overridden(Access::Deny), by)) =
                self.overruled(rules, rule, identify, facts, overrides, Scope::All)
        {
            let decision = Decision::ruled(Arc::clone(rules), revision, ruling);
            return Check::Decided(Some(decision.overridden(Some(by))));
        }
        Check::Decided(Some(Decision::ruled(Arc::clone(rules), revision, Ruling::Listed(access))))
    }

    /// Which buckets a request owes, and in which store each of them is.
    fn bill(
        &self,
        rules: &Rules,
        rule: &Rule,
        identify: impl Fn(&Subject) -> Option<Identity>,
        facts: &dyn Facts,
        overrides: Option<&Arc<Overrides>>,
        scope: Scope,
    ) -> Bill {
        let in_force = self.rollout.in_force();
        let mut bill = Bill {
            items: SmallVec::new(),
            revision: in_force.revision,
            ruling: None,
            missing_in_shadow: SmallVec::new(),
            overridden: None,
        };
        if let Some(overrides) = overrides
            && let Some((ruling, by)) = self.overruled(rules, rule, &identify, facts, overrides, scope)
        {
            (bill.ruling, bill.overridden) = (Some(ruling), Some(by));
            return bill;
        }
        for &id in &rule.policies {
            let policy = rules.policy(id);
            if !scope.covers(policy) {
                continue;
            }
            let identity = match Whom::of(policy, &identify, facts) {
                Whom::One(identity) => identity,
                Whom::Nobody => continue,
                Whom::Missing if policy.mode == Mode::Shadow => {
                    bill.missing_in_shadow.push((id, policy.quota));
                    continue;
                }
                Whom::Missing => {
                    bill.ruling = Some(Ruling::SubjectMissing(id));
                    return bill;
                }
            };
            let mut item = self.item(in_force.percent, id, policy, &identity);
            if scope == Scope::All && self.store.is_some() && id == rule.policies[0] {
                self.rollout.count(policy.by.is_everyone(), &identity);
            }
            if let Some(overrides) = overrides
                && let Some((place, terms)) = overrides.find(item.key, self.wall())
                && (terms != Terms::Exempt || disputed::may_be_exempt(policy, facts))
            {
                let by = || Overridden { overrides: Arc::clone(overrides), place };
                bill.overridden.get_or_insert_with(by);
                match terms {
                    Terms::Limit(quota) => item.own = Some(quota),
                    // One that ended since it was looked at first leaves the policy as it is.
                    Terms::Block | Terms::ExemptFromAll => {}
                    Terms::Exempt => continue,
                }
            }
            if let Some(penalty) = policy.shuts_out() {
                if let Some(rest) = self.shut_out_candidate(policy, facts) {
                    bill.ruling = Some(Ruling::Blocked(id, rest));
                    return bill;
                }
                match self.penalties.standing(item.key, self.clock.now()) {
                    // The first throttle shuts it out: there is no second at which to learn who it is.
                    Standing::Clear if penalty.after.get() == 1 => item.who = Some(identity.value().into()),
                    Standing::Clear => {}
                    Standing::Offending => item.who = Some(identity.value().into()),
                    Standing::Blocked(rest) => {
                        bill.ruling = Some(Ruling::Blocked(id, rest));
                        return bill;
                    }
                }
            }
            bill.items.push(item);
        }
        bill
    }

    #[inline]
    fn item(&self, percent: Percent, id: PolicyId, policy: &Policy, identity: &Identity) -> Item {
        let arm = match &self.store {
            None => Arm::Control,
            Some(_) => self.rollout.arm(percent, policy.by.is_everyone(), identity),
        };
        let shared = (arm == Arm::Canary).then(|| Some(self.rollout.keys()?.as_ref()?.subject(identity)));
        let key = self.process_key.hash(identity).under(policy.tag);
        Item { policy: id, key, arm, shared: shared.flatten(), who: None, own: None }
    }

    /// The rules in force.
    pub fn rules(&self) -> Arc<Rules> {
        self.rules.load_full()
    }

    /// The store in this process.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// What is held in this process, and what was lost of it.
    pub fn held(&self) -> Held {
        Held {
            keys: self.memory.len(),
            blocked: match self.penalties.count(self.clock.now()) {
                0 => 0,
                _ => self.blocked().len(),
            },
            evicted: self.memory.evicted_in_debt(),
            decided_unknown: self.memory.decided_unknown(),
            forgiven: self.forgiven.load(Ordering::Relaxed),
            overrides: self.overrides_in_force(),
        }
    }

    /// The shared store, if there is one.
    pub fn store(&self) -> Option<&S> {
        self.store.as_ref()
    }

    /// The rollout that requests see.
    pub fn rollout(&self) -> &Arc<Rollout> {
        &self.rollout
    }

    /// Which of the last minutes' requests another share would move, as [`recent::Recent`] has them.
    pub fn moved(&self, from: Percent, to: Percent) -> Moved {
        self.rollout.recent().moved(from, to, self.clock.now())
    }

    /// The key of this process' hashes.
    pub fn process_key(&self) -> &ProcessKey {
        &self.process_key
    }

    /// Forgets drained keys of one shard, and looks at the wall clock; call it in turn for `0..memory().shards()`, each
    /// every few seconds.
    pub fn sweep(&self, shard: usize) {
        self.clock.look_at_the_wall();
        let wall = self.clock.behind_the_wall();
        let slowest = self.store.as_ref().and_then(Store::least_ahead).map_or(wall, |store| store.min(wall));
        self.memory.ahead_of_the_wall(u64::try_from(-slowest).unwrap_or(0));
        let now = self.clock.now();
        self.rollout.recent().turn(now);
        self.memory.sweep(shard, now);
        let policies = self.rules.load();
        let within =
            policies.policies().iter().filter_map(|policy| Some(policy.penalty.as_ref()?.within)).max();
        self.penalties.sweep(shard, within.unwrap_or(0), now);
    }
}

/// Who asks for what: the rule, how its subjects are told, the facts.
type Asked<'a> = (Option<&'a Rule>, &'a dyn Fn(&Subject) -> Option<Identity>, &'a dyn Facts);

/// The facts of a bare key.
struct Nothing;

impl Facts for Nothing {}
