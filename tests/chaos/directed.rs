//! Schedules that undid an acknowledged change in an older build, each in the words of the harness.

use crate::holds;
use crate::plan::{Flag, Op, Plan, Set, Spoil, Step, Tag, Way};

fn ask(at: usize, op: Op) -> Step {
    Step::Ask { client: 0, at, op, wait: true }
}

fn set(at: usize, percent: u8) -> Step {
    ask(at, Op::Set(Set { percent, flag: None, tag: Tag::Fresh, twice: false }))
}

fn rollback(at: usize) -> Step {
    ask(at, Op::Rollback)
}

/// Each instance has the record from another one: the start of the fleet is over for all of them.
fn common() -> Vec<(u64, Step)> {
    vec![(300, set(0, 30)), (500, set(1, 50)), (500, ask(0, Op::Read))]
}

/// An instance rolls back while it is cut off, and the others lower and raise so many times.
fn rollback_apart(at: usize, times: usize) -> Vec<(u64, Step)> {
    let mut steps = common();
    steps.extend([(300, Step::Isolate(at, Spoil::Cut)), (1_200, rollback(at))]);
    steps.extend(swing(times));
    steps
}

fn swing(times: usize) -> Vec<(u64, Step)> {
    (0..times).flat_map(|_| [(300, set(0, 10)), (300, set(0, 40))]).collect()
}

/// Two clients change one state at once, on two instances.
fn race(percent: u8) -> [(u64, Step); 5] {
    let set = |percent| Op::Set(Set { percent, flag: None, tag: Tag::Kept, twice: false });
    [
        (300, ask(0, Op::Read)),
        (0, Step::Ask { client: 1, at: 1, op: Op::Read, wait: true }),
        (0, Step::Ask { client: 0, at: 0, op: set(percent), wait: false }),
        (0, Step::Ask { client: 1, at: 1, op: set(percent + 5), wait: false }),
        (500, ask(0, Op::Read)),
    ]
}

async fn keeps_the_rules(name: &str, percent: u8, steps: impl IntoIterator<Item = (u64, Step)>) {
    holds(Plan::directed(&[percent; 3], steps.into_iter().collect()), name).await;
}

// 1. The old environment as a newer writer.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn unchanged_restart_keeps_a_rollback() {
    let steps =
        [(300, Step::Deploy(0, 10)), (2_500, rollback(1)), (300, Step::Kill(2)), (200, Step::Start(2))];
    keeps_the_rules("unchanged_restart_keeps_a_rollback", 20, steps).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn returning_process_keeps_a_rollback() {
    let steps = [
        (300, Step::Isolate(0, Spoil::Cut)),
        (1_200, Step::Deploy(1, 20)),
        (300, Step::Deploy(2, 20)),
        (1_500, rollback(1)),
        (300, Step::Join(0)),
    ];
    keeps_the_rules("returning_process_keeps_a_rollback", 60, steps).await;
}

// 2. A new fleet undoes its second command.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn second_command_of_a_new_fleet_counts() {
    let steps = [(500, set(0, 1)), (300, set(1, 5))];
    keeps_the_rules("second_command_of_a_new_fleet_counts", 100, steps).await;
}

// 3. A rollback that was made while cut off.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rollback_apart_outlives_a_raise_of_its_epoch() {
    let steps = rollback_apart(2, 1);
    keeps_the_rules("rollback_apart_outlives_a_raise_of_its_epoch", 50, steps).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rollback_apart_outlives_a_restart() {
    let steps = rollback_apart(2, 2).into_iter().chain([(300, Step::Kill(2)), (100, Step::Start(2))]);
    keeps_the_rules("rollback_apart_outlives_a_restart", 20, steps).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rollback_apart_outlives_an_empty_redis() {
    let steps = rollback_apart(2, 2).into_iter().chain([
        (100, Step::Spoil(Way::Redis(0), Spoil::Cut)),
        (0, Step::Spoil(Way::Redis(1), Spoil::Cut)),
        (100, Step::Flush),
        (0, Step::Mend(Way::Redis(2))),
        (3_000, ask(2, Op::Read)),
    ]);
    keeps_the_rules("rollback_apart_outlives_an_empty_redis", 20, steps).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rollback_apart_outlives_a_lost_answer() {
    let steps = common()
        .into_iter()
        .chain([
            (300, Step::Spoil(Way::Redis(2), Spoil::Cut)),
            (0, Step::Spoil(Way::Peer(2, 0), Spoil::Cut)),
            (0, Step::Spoil(Way::Peer(2, 1), Spoil::Cut)),
            (0, Step::Spoil(Way::Peer(1, 2), Spoil::Cut)),
            (0, Step::Spoil(Way::Peer(0, 2), Spoil::Delay(6_000))),
            (1_200, rollback(2)),
        ])
        .chain(swing(2))
        .chain([(11_000, ask(2, Op::Read))]);
    keeps_the_rules("rollback_apart_outlives_a_lost_answer", 20, steps).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rollback_of_two_apart_outlives_others() {
    let steps = common()
        .into_iter()
        .chain([
            (300, Step::Isolate(2, Spoil::Cut)),
            (0, Step::Isolate(1, Spoil::Cut)),
            (0, Step::Mend(Way::Peer(1, 2))),
            (0, Step::Mend(Way::Peer(2, 1))),
            (1_500, rollback(2)),
        ])
        .chain(swing(2));
    keeps_the_rules("rollback_of_two_apart_outlives_others", 20, steps).await;
}

// 4. Two changes with one tag while the flag is at memory.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn race_under_the_flag_memory_has_one_winner() {
    let steps = [
        (300, ask(0, Op::Set(Set { percent: 50, flag: Some(Flag::Memory), tag: Tag::Fresh, twice: false }))),
        (2_500, ask(0, Op::Read)),
    ]
    .into_iter()
    .chain([10, 20, 30, 40].into_iter().flat_map(race));
    keeps_the_rules("race_under_the_flag_memory_has_one_winner", 50, steps).await;
}

// 5. Clocks.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clock_an_hour_ahead_ends_no_block() {
    let steps = [
        (300, ask(0, Op::Block(0, Some(1_800_000)))),
        (300, Step::Clock(1, 3_600)),
        (2_000, ask(0, Op::Read)),
    ];
    keeps_the_rules("clock_an_hour_ahead_ends_no_block", 50, steps).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clock_behind_holds_no_raise_back() {
    let steps = [
        (300, rollback(0)),
        (300, set(0, 40)),
        (3_000, Step::Clock(1, -30)),
        (100, Step::Kill(1)),
        (100, Step::Start(1)),
    ];
    keeps_the_rules("clock_behind_holds_no_raise_back", 50, steps).await;
}

// 6. A start with an empty disk.

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn start_with_an_empty_disk_decides_nothing_by_redis() {
    let steps = [
        (300, rollback(0)),
        (1_500, Step::Kill(2)),
        (0, Step::RemoveDisk(2)),
        // It can read of the rollback in Redis alone.
        (0, Step::Spoil(Way::Peer(2, 0), Spoil::Cut)),
        (0, Step::Spoil(Way::Peer(2, 1), Spoil::Cut)),
        (0, Step::Spoil(Way::Peer(0, 2), Spoil::Cut)),
        (0, Step::Spoil(Way::Peer(1, 2), Spoil::Cut)),
        (0, Step::Start(2)),
        (800, Step::Kill(2)),
        (0, Step::RemoveDisk(2)),
        (0, Step::Start(2)),
        (800, ask(2, Op::Read)),
    ];
    keeps_the_rules("start_with_an_empty_disk_decides_nothing_by_redis", 100, steps).await;
}
