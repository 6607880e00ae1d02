//! A small explorer: three instances with disks, a Redis that may lose everything, and every history of a few steps. It
//! drives the functions that decide ([`Register::merge`], [`Register::standing`], [`Record::made_by`],
//! [`Environment::consider`]) and keeps beside them, as plain sets, which changes the author of each record knew.
//!
//! After each history everything is healed and all instances meet, and then: all have one record; no lowering that survived
//! anywhere is below it unless the record's author knew that lowering; no instance went back; no value of the environment
//! that the rollout was lowered from has raised again.

use std::collections::HashSet;

use super::explore_world::{NODES, Step, World};
use super::tests::points;
use super::*;

fn explore(
    world: &World,
    steps: &mut Vec<Step>,
    all: &[Step],
    depth: usize,
    known: &mut HashSet<(u64, usize)>,
) {
    if !known.insert((world.fingerprint(), depth)) {
        return;
    }
    world.clone().heal_and_check(steps);
    if depth == 0 {
        return;
    }
    for step in all {
        let mut next = world.clone();
        steps.push(*step);
        next.step(*step);
        explore(&next, steps, all, depth - 1, known);
        steps.pop();
    }
}

fn histories(before: &[Step], all: &[Step], depth: usize) -> usize {
    let (mut world, mut known) = (World::new(), HashSet::new());
    before.iter().for_each(|step| world.step(*step));
    explore(&world, &mut before.to_vec(), all, depth, &mut known);
    known.len()
}

#[test]
fn every_short_history_of_three_instances_keeps_lowerings() {
    // Whatever happens in a fleet of three.
    let mut all = vec![Step::Flush];
    for at in 0..NODES {
        all.extend([Step::Raise(at), Step::Lower(at), Step::RollBack(at), Step::Beat(at), Step::Cut(at)]);
        all.extend([Step::Restart(at), Step::Redeploy(at), Step::LoseDisk(at)]);
    }
    all.extend([Step::Meet(0, 1), Step::Meet(1, 2)]);
    let anything = histories(&[], &all, 3);
    // One is cut off, with a partner or alone, and makes a rollback; the others change what they like.
    let others = [
        Step::Lower(0),
        Step::Raise(0),
        Step::Beat(1),
        Step::Raise(1),
        Step::RollBack(2),
        Step::Meet(1, 2),
        Step::Restart(2),
        Step::LoseDisk(2),
        Step::Redeploy(0),
        Step::Flush,
    ];
    let alone = [Step::Cut(2)];
    let rolled_back = [Step::Cut(2), Step::RollBack(2)];
    let together = [Step::Cut(1), Step::Cut(2)];
    let both = [Step::Cut(1), Step::Cut(2), Step::RollBack(2), Step::Meet(1, 2)];
    for before in [&alone[..], &rolled_back, &together, &both] {
        let states = histories(before, &others, 4);
        assert!(states > 500, "{states} states after {before:?}");
    }
    assert!(anything > 1_000, "{anything} states");
}

#[test]
fn explorer_finds_a_merge_that_forgets_lowerings() {
    // A rollback made while cut off, against a raise at higher epochs: without the unheard lowering it would be undone.
    let mut world = World::new();
    for step in [Step::Cut(2), Step::RollBack(2), Step::Lower(0), Step::Lower(0), Step::Raise(0)] {
        world.step(step);
    }
    let (theirs, ours) = (world.nodes[0].shared(), world.nodes[2].shared());
    let both = ours.register.merge(&theirs.register);
    assert_eq!((both.record.wanted(), both.unheard_share()), (points(80), Some(Percent::NONE)));
    let forgetful = Register { unheard: Marks::default(), ..both };
    let found = std::panic::catch_unwind(move || {
        world.nodes.iter_mut().for_each(|node| {
            node.register = forgetful.clone();
            node.knows.extend(ours.knows.iter().copied());
            node.author_knew.clone_from(&theirs.author_knew);
        });
        world.redis = Some(world.nodes[0].shared());
        world.heal_and_check(&[]);
    });
    assert!(found.is_err());
}
