//! Finds the first rule that matches without a look at each: by host in a hash table, then down a tree of the path's
//! segments.
//!
//! A segment leads to two places at most: to the literal that equals it, and to `{name}`. Both must be tried, and so a
//! walk could visit as many places as there are rules that mix the two in every way. It goes where the earliest rule
//! is first, and passes over what holds no rule earlier than the one already found.

use std::borrow::Cow;
use std::collections::HashMap;

use smallvec::{SmallVec, smallvec};

use crate::limiter::route::{self, Host, Route, Segment};
use crate::limiter::subject::Facts;

/// A rule's number in the order of the file.
type Place = usize;
/// Behind every rule.
const NONE: Place = usize::MAX;
type NodeId = usize;

/// Rules by host and path.
#[derive(Clone, Default)]
pub(super) struct RuleIndex {
    nodes: Vec<Node>,
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
    literals: HashMap<Box<str>, NodeId>,
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
        let (segments, open) = route.path.as_ref().map_or((&[][..], true), |path| (&path.segments, path.open));
        for segment in segments {
            let fresh = self.nodes.len();
            let next = match segment {
                Segment::Any => *self.nodes[at].any.get_or_insert(fresh),
                Segment::Literal(name) => match self.nodes[at].literals.get(name) {
                    Some(&next) => next,
                    None => *self.nodes[at].literals.entry(name.clone()).or_insert(fresh),
                },
            };
            if next == fresh {
                sprout(&mut self.nodes, place);
            }
            at = next;
        }
        let node = &mut self.nodes[at];
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
        let path = path.strip_prefix('/').unwrap_or(path);
        let mut best = NONE;
        if !(self.exactly.is_empty() && self.below.is_empty()) {
            let host = in_lower_case(route::bare_host(host));
            if let Some(&root) = self.exactly.get(&*host) {
                best = self.walk(root, method, path, best);
            }
            if !self.below.is_empty() {
                for (dot, _) in host.rmatch_indices('.') {
                    // Nothing before the dot: that is no name below.
                    if dot == 0 || host.len() - dot > self.longest_below {
                        break;
                    }
                    if let Some(&root) = self.below.get(&host[dot..]) {
                        best = self.walk(root, method, path, best);
                    }
                }
            }
        }
        if let Some(root) = self.anywhere {
            best = self.walk(root, method, path, best);
        }
        (best != NONE).then_some(best)
    }

    /// The first rule from `root` on, if it is earlier than `best`; else `best`.
    fn walk(&self, root: NodeId, method: &str, path: &str, mut best: Place) -> Place {
        // Not by recursion: how deep it went would be the request's to choose.
        let mut ways: SmallVec<[(NodeId, Option<&str>); 8]> = smallvec![(root, Some(path))];
        while let Some((node, rest)) = ways.pop() {
            let node = &self.nodes[node];
            if node.earliest >= best {
                continue;
            }
            best = best.min(node.open.first(method));
            let Some(rest) = rest else {
                best = best.min(node.closed.first(method));
                continue;
            };
            let (segment, rest) = match rest.split_once('/') {
                Some((segment, rest)) => (segment, Some(rest)),
                None => (rest, None),
            };
            let literal = match node.literals.is_empty() {
                true => None,
                false => node.literals.get(segment).copied(),
            };
            let any = node.any.filter(|_| !segment.is_empty());
            let (sooner, later) = match (literal, any) {
                (Some(literal), Some(any)) if self.nodes[any].earliest < self.nodes[literal].earliest => {
                    (Some(any), Some(literal))
                }
                both => both,
            };
            // The last pushed is the next visited.
            ways.extend(later.into_iter().chain(sooner).map(|node| (node, rest)));
        }
        best
    }
}

impl Node {
    fn of(place: Place) -> Self {
        let end = End { any_method: NONE, methods: Vec::new() };
        Self { earliest: place, literals: HashMap::new(), any: None, closed: end.clone(), open: end }
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
            if let Err(at) = self.methods.binary_search_by(|(known, _)| known.cmp(method)) {
                self.methods.insert(at, (method.clone(), place));
            }
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
    nodes.len() - 1
}

fn in_lower_case(host: &str) -> Cow<'_, str> {
    match host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        true => Cow::Owned(host.to_ascii_lowercase()),
        false => Cow::Borrowed(host),
    }
}
