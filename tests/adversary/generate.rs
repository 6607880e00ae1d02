//! From a seed to a plan. The same seed gives the same plan for as long as this file stands as it is.

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::limits::{By, Period, Policy, Quota, Rule};
use crate::plan::{Act, Client, Plan, Redis, Style, Theme};

impl Plan {
    pub fn of(seed: u64) -> Self {
        let random = &mut StdRng::seed_from_u64(seed);
        let themes = [Theme::HangUps, Theme::Storm, Theme::Crowd, Theme::Operators, Theme::Mixed];
        let theme = themes[(seed % 5) as usize];
        let redis = match (theme, random.random_range(0..10)) {
            (Theme::HangUps, 8..) => Redis::Cluster,
            (Theme::Storm, 0..9) => Redis::Plain,
            (Theme::Crowd, 0..6) => Redis::None,
            (Theme::Crowd, _) => Redis::Plain,
            (_, 0..7) => Redis::Plain,
            (_, 7 | 8) => Redis::Cluster,
            _ => Redis::Replicated,
        };
        let instances = match theme {
            Theme::Crowd => random.random_range(1..=2),
            Theme::HangUps => random.random_range(1..=3),
            Theme::Storm => [2, 3, 3, 4, 4, 4, 5, 8][random.random_range(0..8)],
            _ => [1, 2, 3, 3, 4, 4, 5, 8][random.random_range(0..8)],
        };
        let percent = match (redis, theme) {
            (Redis::None, _) => 0,
            (_, Theme::Crowd) => [0, 50][random.random_range(0..2)],
            // Of a cluster the buckets of a request may be in two places, else one in memory and one in Redis.
            (Redis::Cluster, Theme::HangUps) => [50, 100, 100][random.random_range(0..3)],
            (_, Theme::HangUps) => 50,
            _ => [50, 100, 100, 100][random.random_range(0..4)],
        };
        let latency = match theme {
            Theme::HangUps => random.random_range(4..12),
            _ => [0, 0, 1, 3][random.random_range(0..4)],
        };
        let max_keys = if theme == Theme::Crowd { 1_000 } else { 100_000 };
        let rules: Vec<Rule> = match theme {
            Theme::Crowd => vec![rule(random, 0, 3)],
            Theme::HangUps => vec![rule(random, 0, 1), rule(random, 1, 0)],
            Theme::Storm => {
                let fast = Quota::gcra(
                    [5, 10, 20][random.random_range(0..3)],
                    Period::Second,
                    random.random_range(3..9),
                );
                let tight = Quota::gcra(
                    [5, 10][random.random_range(0..2)],
                    Period::Second,
                    [1, 1, 2, 3][random.random_range(0..4)],
                );
                let mut rules: Vec<Rule> = (0..3).map(|at| rule(random, at, [0, 0, 2][at])).collect();
                (rules[0].policies[0].quota, rules[1].policies[0].quota) = (fast, tight);
                rules
            }
            _ => (0..random.random_range(2..=3))
                .map(|at| {
                    let kind = random.random_range(0..5);
                    rule(random, at, kind)
                })
                .collect(),
        };
        let clients = clients(random, (theme, redis, latency), instances, &rules);
        let mut acts = acts(random, theme, redis, instances, &rules, &clients);
        acts.extend(clock_step(seed, theme, instances));
        Self {
            seed,
            theme,
            instances,
            redis,
            percent,
            latency,
            max_keys,
            rules,
            clients: clients.into_iter().enumerate().collect(),
            acts: acts.into_iter().enumerate().map(|(at, (after, act))| (at, after, act)).collect(),
        }
    }
}

/// A fast limit, of which a run sees the refill, or a slow one, of which it sees the burst.
fn quota(random: &mut StdRng) -> Quota {
    let burst = [1, 1, 2, 3, 5, 8, 15][random.random_range(0..7)];
    match random.random_range(0..8) {
        0 => Quota::gcra(1, Period::Second, burst),
        1 | 2 => Quota::gcra(5, Period::Second, burst),
        3 => Quota::gcra(20, Period::Second, burst),
        4 => Quota::gcra(60, Period::Minute, burst),
        5 => Quota::gcra(600, Period::Minute, burst),
        6 => Quota::gcra(100, Period::Hour, burst + 3),
        _ => Quota::gcra(1_000, Period::Day, burst + 5),
    }
}

fn rule(random: &mut StdRng, at: usize, kind: usize) -> Rule {
    let name = format!("r{at}");
    let policy = |what: &str, by: By, quota: Quota| Policy {
        name: format!("{name}-{what}"),
        by,
        quota,
        shadow: false,
        block_after: None,
    };
    let key = policy("key", By::Key, quota(random));
    let (cost, policies) = match kind {
        // One bucket a client.
        0 => {
            let block_after = (random.random_range(0..4) == 0).then_some(25);
            (1, vec![Policy { block_after, ..key }])
        }
        // A small bucket a client beside one that all share.
        1 => {
            let small = Quota::gcra(10, Period::Minute, random.random_range(4..=10));
            let all = Quota::gcra(300, Period::Minute, 300);
            (1, vec![policy("key", By::Key, small), policy("all", By::Everyone, all)])
        }
        // Three subjects.
        2 => {
            let all = Quota::window(random.random_range(500..2_000), Period::Month);
            let tenant = Quota::gcra(50, Period::Second, 40);
            (1, vec![key, policy("tenant", By::Tenant, tenant), policy("all", By::Everyone, all)])
        }
        // A short limit beside a long one, and one on trial.
        3 => {
            let long = match random.random_bool(0.5) {
                true => Quota::window(1_000, [Period::Day, Period::Month][random.random_range(0..2)]),
                false => Quota::gcra(1_000, Period::Day, 1_000),
            };
            let mut trial = policy("trial", By::Key, Quota::gcra(2, Period::Second, 2));
            trial.shadow = true;
            let short = policy("key", By::Key, Quota::gcra(10, Period::Minute, 10));
            (1, vec![short, policy("long", By::Key, long), trial])
        }
        // The upstream reports what a request cost.
        _ => {
            let quota = Quota::gcra(10, Period::Second, 30);
            (4, vec![policy("key", By::Key, quota)])
        }
    };
    Rule { name, cost, policies }
}

fn clients(
    random: &mut StdRng,
    (theme, redis, latency): (Theme, Redis, u64),
    instances: usize,
    rules: &[Rule],
) -> Vec<Client> {
    // Most leave while Redis is asked.
    let asked = if redis == Redis::Plain { latency.max(1) * 900 } else { 400 };
    let sticky = random.random_range(0..4) == 0;
    let count = match theme {
        Theme::Crowd => 4,
        Theme::HangUps => random.random_range(6..=9),
        _ => random.random_range(6..=12),
    };
    let mut clients: Vec<Client> = (0..count)
        .map(|at| {
            let rule = match theme {
                Theme::HangUps if at < 4 => 0,
                Theme::Storm if at < 6 => at % 2,
                _ => random.random_range(0..rules.len()),
            };
            let style = match (theme, random.random_range(0..10)) {
                _ if rules[rule].cost > 1 => Style::Costly,
                (Theme::Crowd, _) => Style::Hammer,
                (Theme::HangUps, _) if at < 4 => Style::HangUp(random.random_range(100..asked)),
                (Theme::Storm, _) if at < 6 => [Style::Obedient, Style::Hammer][at % 2],
                (_, 0..3) => Style::Patient(random.random_range(5..60)),
                (_, 3..6) => Style::Obedient,
                (_, 6) => Style::HangUp(random.random_range(0..4_000)),
                (_, 7) => Style::Pipeline(random.random_range(2..8)),
                (_, 8) => [Style::Stub, Style::Leave][random.random_range(0..2)],
                _ => Style::Hammer,
            };
            // Some share a key; a client that stays within its limit has one of its own.
            let shared = style != Style::Obedient && theme != Theme::HangUps && random.random_bool(0.4);
            let key = if shared { format!("shared-{}", at % 2) } else { format!("client-{at}") };
            let tenant = format!("tenant-{}", at % 3);
            let own = random.random_range(0..instances);
            Client { rule, key, tenant, style, sticky: sticky.then_some(own) }
        })
        .collect();
    if theme == Theme::Crowd {
        let tenant = "tenant-crowd".to_owned();
        let style = Style::Crowd(random.random_range(2_000..3_000));
        clients.push(Client { rule: 0, key: "crowd".to_owned(), tenant, style, sticky: Some(0) });
        clients.iter_mut().for_each(|client| client.sticky = Some(0));
    }
    if sticky {
        // Clients of one key use one instance, or its traffic would not be sticky.
        for at in 0..clients.len() {
            let first = clients.iter().position(|other| other.key == clients[at].key).unwrap();
            clients[at].sticky = clients[first].sticky;
        }
    }
    clients
}

fn acts(
    random: &mut StdRng,
    theme: Theme,
    redis: Redis,
    instances: usize,
    rules: &[Rule],
    clients: &[Client],
) -> Vec<(u64, Act)> {
    let count = match theme {
        Theme::HangUps | Theme::Crowd => 0,
        Theme::Storm => [0, 0, 1, 3][random.random_range(0..4)],
        _ => random.random_range(2..=6),
    };
    let mut acts: Vec<(u64, Act)> = Vec::new();
    if theme == Theme::Storm && redis == Redis::Plain {
        // Long enough to be an outage, with time to come back from it.
        let lasts = random.random_range(400..1_100);
        let outage = [Act::KillRedis(lasts), Act::Refuse(lasts), Act::BlackHole(lasts)];
        acts.push((random.random_range(100..500), outage[random.random_range(0..3)].clone()));
    }
    for _ in 0..count {
        let of_redis = match theme {
            Theme::Storm => true,
            Theme::Operators => false,
            _ => random.random_bool(0.5),
        };
        let act = match (of_redis, redis) {
            (true, Redis::Plain) => storm(random),
            (true, Redis::Replicated) if random.random_bool(0.4) => Act::Failover,
            (true, Redis::Cluster | Redis::Replicated) => match random.random_range(0..4) {
                0 => Act::KillRedis(random.random_range(0..600)),
                1 => Act::FreezeRedis(random.random_range(50..900)),
                2 => Act::Flush,
                _ => Act::ScriptFlush,
            },
            _ => operator(random, instances, rules, clients),
        };
        let twice = |act: &Act| matches!(act, Act::Failover | Act::Join | Act::Leave(_));
        if twice(&act)
            && acts.iter().any(|(_, other)| std::mem::discriminant(other) == std::mem::discriminant(&act))
        {
            continue;
        }
        acts.push((random.random_range(100..900), act));
    }
    acts
}

/// A step of the wall clock of an instance. By chances of its own, so that all else of a seed is what it was before there
/// were such steps.
fn clock_step(seed: u64, theme: Theme, instances: usize) -> Option<(u64, Act)> {
    let random = &mut StdRng::seed_from_u64(seed ^ 0xC10C);
    let is_stepped = matches!(theme, Theme::Operators | Theme::Mixed) && random.random_range(0..3) == 0;
    let seconds = [-40, -2, 2, 40][random.random_range(0..4)];
    let act = Act::InstanceClock(random.random_range(0..instances), seconds);
    is_stepped.then(|| (random.random_range(50..400), act))
}

fn storm(random: &mut StdRng) -> Act {
    match random.random_range(0..12) {
        0 => Act::Flush,
        1 => Act::ScriptFlush,
        2 => Act::FreezeRedis(random.random_range(50..1_200)),
        3 | 4 => Act::KillRedis(random.random_range(0..1_500)),
        5 => Act::Cut,
        6 | 7 => Act::Refuse(random.random_range(100..1_800)),
        8 => Act::BlackHole(random.random_range(100..1_500)),
        9 => Act::ClockStep([-40, -2, 2, 40][random.random_range(0..4)]),
        _ => Act::Delay(random.random_range(5..400), random.random_range(200..900)),
    }
}

fn operator(random: &mut StdRng, instances: usize, rules: &[Rule], clients: &[Client]) -> Act {
    let client = random.random_range(0..clients.len());
    let instance = random.random_range(0..instances);
    let policy = random.random_range(0..rules[clients[client].rule].policies.len());
    let of_client = rules[clients[client].rule].policies[policy].clone();
    let quota = match of_client.quota.window {
        true => {
            Quota { limit: of_client.quota.limit / 2, burst: of_client.quota.burst / 2, ..of_client.quota }
        }
        false => quota(random),
    };
    match random.random_range(0..14) {
        0..3 => Act::Percent([0, 10, 50, 90, 100][random.random_range(0..5)]),
        3 => Act::Rollback,
        4 => Act::Reload { rule: clients[client].rule, policy, quota },
        5 | 6 => Act::Reset { client },
        7 if of_client.by == By::Key => Act::Limit { client, policy, quota },
        7 => Act::Exempt { client },
        8 => Act::Block { client },
        9 => Act::Lift { client },
        10 => Act::FreezeInstance(instance, random.random_range(50..700)),
        11 => Act::KillInstance(instance, random.random_range(0..500)),
        12 if instances > 1 => Act::Leave(instance),
        _ => Act::Join,
    }
}
