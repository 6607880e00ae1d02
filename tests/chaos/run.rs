//! One run of a plan: from the first process to all that was seen.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use futures_util::future::join_all;
use parking_lot::Mutex;
use tokio::task::JoinHandle;

use crate::client::{self, Kept};
use crate::history::{Call, History, Overrides, Seen, Settled};
use crate::plan::{Op, Plan, Step};
use crate::support::process::Tidegate;
use crate::watch;
use crate::world::World;

/// How long instances may take to agree once all is whole.
pub const AGREE_WITHIN: f64 = 15.0;
/// What they agreed on has to last so long: two heartbeats and a little.
const LASTS: f64 = 2.3;

/// Runs a plan; it ends with a healing.
pub async fn run(plan: Plan) -> History {
    let world = World::start(plan.clone()).await;
    let began = world.now();
    let over = Arc::new(AtomicBool::new(false));
    let watchers: Vec<JoinHandle<watch::Watched>> = (0..plan.instances())
        .flat_map(|at| {
            let (one, other) = (Arc::clone(&world), Arc::clone(&world));
            [
                tokio::spawn(watch::probe(one, at, Arc::clone(&over))),
                tokio::spawn(watch::look(other, at, Arc::clone(&over))),
            ]
        })
        .collect();
    let clients: Vec<Arc<Kept>> = (0..4).map(|_| Arc::default()).collect();
    let calls = Arc::new(Mutex::new(Vec::<Call>::new()));
    let mut asked = Vec::new();
    let mut settled = Vec::new();
    for (number, after, step) in plan.steps.clone() {
        tokio::time::sleep(Duration::from_millis(after)).await;
        match step {
            Step::Ask { client, at, op, wait } => {
                let (world, kept, calls) =
                    (Arc::clone(&world), Arc::clone(&clients[client]), Arc::clone(&calls));
                let task = tokio::spawn(ask(world, kept, calls, number, at, op));
                match wait {
                    true => task.await.unwrap(),
                    false => asked.push(task),
                }
            }
            Step::Heal => settled.push(heal(&world, std::mem::take(&mut asked)).await),
            step => perform(&world, step).await,
        }
    }
    if !plan.steps.last().is_some_and(|(_, _, step)| *step == Step::Heal) {
        settled.push(heal(&world, asked).await);
    } else {
        join_all(asked).await;
    }
    let trails = join_all((0..plan.instances()).map(async |at| {
        let process = world.process(at)?;
        watch::trail(&world, &process).await
    }));
    let trails = trails.await;
    over.store(true, Ordering::SeqCst);
    let (mut looks, mut overrides, mut probes, mut requests) = (Vec::new(), Vec::new(), Vec::new(), 0);
    for watcher in watchers {
        let watched = watcher.await.unwrap();
        looks.extend(watched.looks);
        overrides.extend(watched.overrides);
        probes.extend(watched.probes);
        requests += watched.requests;
    }
    if std::env::var_os("TIDEGATE_CHAOS_OUTPUT").is_some() {
        (0..plan.instances())
            .filter_map(|at| world.process(at))
            .for_each(|one| eprintln!("{}", one.output()));
    }
    let mut calls = std::mem::take(&mut *calls.lock());
    calls.sort_by_key(|call| call.number);
    let log = std::mem::take(&mut *world.log.lock());
    let (troubles, lives, losses, steps) = (log.troubles, log.lives, log.losses, log.steps);
    let (ended, began_at) = (world.now(), world.began_at);
    History {
        plan,
        calls,
        looks,
        overrides,
        probes,
        requests,
        troubles,
        lives,
        losses,
        steps,
        settled,
        trails,
        began_at,
        began,
        ended,
    }
}

async fn ask(
    world: Arc<World>,
    kept: Arc<Kept>,
    calls: Arc<Mutex<Vec<Call>>>,
    number: usize,
    at: usize,
    op: Op,
) {
    let call = client::ask(&world, &kept, number, at, op).await;
    calls.lock().extend(call);
}

async fn perform(world: &Arc<World>, step: Step) {
    match step {
        Step::Ask { .. } | Step::Heal => unreachable!("performed by the run"),
        Step::Kill(at) => world.end_instance(at, "KILL").await,
        Step::Start(at) => world.start_instance(at).await,
        Step::Deploy(at, percent) => {
            world.end_instance(at, "TERM").await;
            world.set_percent(at, percent);
            world.start_instance(at).await;
        }
        Step::Stop(at) => world.stop(at),
        Step::Continue(at) => world.resume(at),
        Step::Spoil(way, how) => world.spoil(way, how),
        Step::Mend(way) => world.mend(way),
        Step::Isolate(at, how) => world.ways(at).into_iter().for_each(|way| world.spoil(way, how)),
        Step::Join(at) => world.ways(at).into_iter().for_each(|way| world.mend(way)),
        Step::Flush => world.flush(),
        Step::KillRedis => world.kill_redis(),
        Step::StartRedis => world.start_redis(),
        Step::Clock(at, seconds) => world.set_clock(at, seconds),
        Step::RemoveDisk(at) => world.remove_disk(at),
        Step::FillDisk(at) => world.fill_disk(at, true),
        Step::FreeDisk(at) => world.fill_disk(at, false),
    }
}

/// Makes everything whole, waits for the requests that are under way, and looks until all agree for long enough.
async fn heal(world: &Arc<World>, asked: Vec<JoinHandle<()>>) -> Settled {
    let all = 0..world.plan.instances();
    world.start_redis();
    for at in all.clone() {
        world.resume(at);
        world.ways(at).into_iter().for_each(|way| world.mend(way));
        world.fill_disk(at, false);
    }
    join_all(all.clone().map(|at| world.start_instance(at))).await;
    for task in join_all(asked).await {
        task.unwrap();
    }
    let healed = world.now();
    // An instance that does not answer in time, on a busy machine, is not there yet.
    let mut there = healed;
    let mut last: Option<(f64, Vec<Seen>, Vec<Overrides>)> = None;
    loop {
        tokio::time::sleep(Duration::from_millis(100)).await;
        let shown = join_all(all.clone().map(|at| shown(world, at))).await;
        let now = world.now();
        let Some(shown) = shown.into_iter().collect::<Option<Vec<_>>>() else {
            (last, there) = (None, now);
            if now > healed + 6.0 * AGREE_WITHIN {
                let (records, overrides) = (Vec::new(), Vec::new());
                return Settled { healed, at: now, agreed: false, since: now, records, overrides };
            }
            continue;
        };
        let (records, overrides): (Vec<Seen>, Vec<Overrides>) = shown.into_iter().unzip();
        let one = &records[0];
        let agree = records.iter().all(|record| record.is_same(one) && record.in_force == record.wanted())
            && overrides.iter().all(|all| listed(all) == listed(&overrides[0]));
        let (since, ..) = match &last {
            Some((since, before, of_before))
                if before[0].is_same(one) && listed(&of_before[0]) == listed(&overrides[0]) =>
            {
                (*since, before, of_before)
            }
            _ => (now, &records, &overrides),
        };
        last = agree.then(|| (since, records.clone(), overrides.clone()));
        let agreed = agree && now - since >= LASTS;
        if agreed || !agree && now > there + AGREE_WITHIN || now > there + AGREE_WITHIN + LASTS + 1.0 {
            return Settled { healed, at: now, agreed, since, records, overrides };
        }
    }
}

fn listed(overrides: &Overrides) -> Vec<(usize, Option<usize>)> {
    overrides.listed.iter().map(|(id, (op, _))| (*id, *op)).collect()
}

async fn shown(world: &World, at: usize) -> Option<(Seen, Overrides)> {
    let process: Arc<Tidegate> = world.process(at)?;
    let (_, record) = client::read(world, &process).await?;
    Some((record, watch::overrides(world, &process).await?))
}
