//! Finds the first rule that matches without a look at each: by host in a hash table, then down a tree of the path's
//! segments.
//!
//! A segment leads to two places at most: to the literal that equals it, and to `{name}`. Both must be tried, and so a
//! walk may visit as many places as there are rules that mix the two in every way. It goes where the earliest rule is
//! first, and passes over what holds no rule earlier than the one already found; and each segment is looked up by its
//! letters once, by its number from then on.

use std::borrow::Cow;

use foldhash::HashMap;
use smallvec::{SmallVec, smallvec};

use crate::limiter::route::{self, Host, Route, Segment};
use crate::limiter::subject::Facts;

/// A rule's number in the order of the file.
type Place = usize;
/// Behind every rule.
const NONE: Place = usize::MAX;
type NodeId = u32;

/// A segment by number: one for each literal.
type SegmentId = u32;
/// The segment without letters, which no `{name}` stands for.
const EMPTY: SegmentId = 0;
/// A segment that is no literal of any rule.
const STRANGE: SegmentId = 1;
const FIRST_LITERAL: SegmentId = 2;

/// Rules by host and path.
#[derive(Clone, Default)]
pub(super) struct RuleIndex {
    nodes: Vec<Node>,
    /// From a node by a literal to the next.
    edges: HashMap<(NodeId, SegmentId), NodeId>,
    literals: HashMap<Box<str>, SegmentId>,
    /// Where the paths begin of the rules for any host, for one host, and for the hosts below one.
    anywhere: Option<NodeId>,
    exactly: HashMap<Box<str>, NodeId>,
    /// With a leading dot.
    below: HashMap<Box<str>, NodeId>,
    /// Bytes of the longest key of `below`: a host with a thousand dots costs no thousand look-ups.
    longest_below: usize,
}

/// Where the rules are that begin with the same segments.
#[derive(Clone)]
struct Node {
    /// The earliest rule at this node or under it.
    earliest: Place,
    any: Option<NodeId>,
    /// Rules for the path that ends here.
    closed: End,
    /// Rules for every path that comes by here.
    open: End,
}

/// The rules at the end of a pattern. Of several for the same method only the first is kept.
#[derive(Clone)]
struct End {
    any_method: Place,
    /// Sorted by method, each earlier than `any_method`.
    methods: Vec<(Box<str>, Place)>,
}

impl RuleIndex {
    /// Adds a rule, whose number is greater than those of all rules added before.
    pub(super) fn insert(&mut self, place: Place, route: &Route) {
        let mut at = match &route.host {
            None => match self.anywhere {
                Some(root) => root,
                None => *self.anywhere.insert(sprout(&mut self.nodes, place)),
            },
            Some(Host::Exactly(name)) => {
                *self.exactly.entry(name.clone()).or_insert_with(|| sprout(&mut self.nodes, place))
            }
            Some(Host::Below(suffix)) => {
                self.longest_below = self.longest_below.max(suffix.len());
                *self.below.entry(suffix.clone()).or_insert_with(|| sprout(&mut self.nodes, place))
            }
        };
        // Without a condition on the path every path comes by the root.
        let (segments, open) =
            route.path.as_ref().map_or((&[][..], true), |path| (&path.segments, path.open));
        for segment in segments {
            at = match segment {
                Segment::Any => {
                    let next = self.nodes[at as usize].any;
                    let next = next.unwrap_or_else(|| sprout(&mut self.nodes, place));
                    *self.nodes[at as usize].any.insert(next)
                }
                Segment::Literal(name) => {
                    let number = number_of(&mut self.literals, name);
                    *self.edges.entry((at, number)).or_insert_with(|| sprout(&mut self.nodes, place))
                }
            };
        }
        let node = &mut self.nodes[at as usize];
        let end = if open { &mut node.open } else { &mut node.closed };
        end.insert(place, &route.methods);
    }

    /// The first rule for this request, whose path in its normal form is `path`. Asks for no fact that no rule has a
    /// condition on; where none has one on the path, any `path` will do.
    pub(super) fn first(&self, facts: &dyn Facts, path: &str) -> Option<usize> {
        let host = if self.exactly.is_empty() && self.below.is_empty() { "" } else { facts.host() };
        self.first_of(facts.method(), host, path)
    }

    /// The same of facts that are spelled out.
    pub(super) fn first_of(&self, method: &str, host: &str, path: &str) -> Option<usize> {
        let mut asked = Asked::of(method, path);
        let mut best = NONE;
        if !(self.exactly.is_empty() && self.below.is_empty()) {
            let host = in_lower_case(route::bare_host(host));
            if let Some(&root) = self.exactly.get(&*host) {
                best = self.walk(root, &mut asked, best);
            }
            for (dot, _) in host.rmatch_indices('.') {
                // Nothing before the dot: that is no name below.
                if dot == 0 || host.len() - dot > self.longest_below {
                    break;
                }
                if let Some(&root) = self.below.get(&host[dot..]) {
                    best = self.walk(root, &mut asked, best);
                }
            }
        }
        if let Some(root) = self.anywhere {
            best = self.walk(root, &mut asked, best);
        }
        (best != NONE).then_some(best)
    }

    /// The first rule from `root` on, if it is earlier than `best`; else `best`.
    fn walk(&self, root: NodeId, asked: &mut Asked<'_>, mut best: Place) -> Place {
        // Not by recursion: how deep it goes is the request's to choose.
        let mut ways: SmallVec<[(NodeId, usize); 8]> = smallvec![(root, 0)];
        while let Some((id, depth)) = ways.pop() {
            let node = &self.nodes[id as usize];
            if node.earliest >= best {
                continue;
            }
            best = best.min(node.open.first(asked.method));
            let Some(segment) = asked.segment(depth, &self.literals) else {
                best = best.min(node.closed.first(asked.method));
                continue;
            };
            let literal = if segment == STRANGE { None } else { self.edges.get(&(id, segment)).copied() };
            let any = if segment == EMPTY { None } else { node.any };
            // The last pushed is the next visited: where the earlier rule is.
            let earliest = |id: &NodeId| self.nodes[*id as usize].earliest;
            let (sooner, later) = match (literal, any) {
                (Some(literal), Some(any)) if earliest(&any) < earliest(&literal) => {
                    (Some(any), Some(literal))
                }
                both => both,
            };
            ways.extend(later.into_iter().chain(sooner).map(|id| (id, depth + 1)));
        }
        best
    }
}

/// What a walk compares.
struct Asked<'a> {
    method: &'a str,
    /// The first segments, by number.
    known: SmallVec<[SegmentId; 16]>,
    /// Those behind them, if there are any.
    rest: Option<&'a str>,
}

impl<'a> Asked<'a> {
    fn of(method: &'a str, path: &'a str) -> Self {
        Self { method, known: SmallVec::new(), rest: Some(path.strip_prefix('/').unwrap_or(path)) }
    }

    /// The segment at `depth`, looked up when a walk first comes there; `None` where the path has ended. No walk comes
    /// to a depth before it was at the one above.
    #[inline]
    fn segment(&mut self, depth: usize, literals: &HashMap<Box<str>, SegmentId>) -> Option<SegmentId> {
        if let Some(&known) = self.known.get(depth) {
            return Some(known);
        }
        let (segment, rest) = match self.rest?.split_once('/') {
            Some((segment, rest)) => (segment, Some(rest)),
            None => (self.rest?, None),
        };
        self.rest = rest;
        let number = match segment {
            "" => EMPTY,
            name => literals.get(name).copied().unwrap_or(STRANGE),
        };
        self.known.push(number);
        Some(number)
    }
}

impl Node {
    fn of(place: Place) -> Self {
        let end = End { any_method: NONE, methods: Vec::new() };
        Self { earliest: place, any: None, closed: end.clone(), open: end }
    }
}

impl End {
    fn insert(&mut self, place: Place, methods: &[Box<str>]) {
        if self.any_method != NONE {
            return;
        }
        if methods.is_empty() {
            self.any_method = place;
        }
        for method in methods {
            self.insert_one(place, method);
            if &**method == "GET" {
                // As Route::matches has it.
                self.insert_one(place, "HEAD");
            }
        }
    }

    fn insert_one(&mut self, place: Place, method: &str) {
        if let Err(at) = self.methods.binary_search_by(|(known, _)| (**known).cmp(method)) {
            self.methods.insert(at, (method.into(), place));
        }
    }

    #[inline]
    fn first(&self, method: &str) -> Place {
        match self.methods.binary_search_by(|(known, _)| (**known).cmp(method)) {
            Ok(at) => self.methods[at].1,
            Err(_) => self.any_method,
        }
    }
}

/// A new node, whose first rule is `place`.
fn sprout(nodes: &mut Vec<Node>, place: Place) -> NodeId {
    nodes.push(Node::of(place));
    (nodes.len() - 1) as NodeId
}

fn number_of(literals: &mut HashMap<Box<str>, SegmentId>, name: &str) -> SegmentId {
    if name.is_empty() {
        return EMPTY;
    }
    let next = FIRST_LITERAL + literals.len() as SegmentId;
    *literals.entry(name.into()).or_insert(next)
}

fn in_lower_case(host: &str) -> Cow<'_, str> {
    match host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        true => Cow::Owned(host.to_ascii_lowercase()),
        false => Cow::Borrowed(host),
    }
}
