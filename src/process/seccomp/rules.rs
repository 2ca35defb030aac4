//! From the profile's list of rules to one answer for each system call of one architecture.
//!
//! Owns the precedence of rules, which is libseccomp's (db.c, `db_rule_add`), because profiles
//! are written and tested against it:
//!
//! - A rule whose action is the default one is skipped (runc and crun never hand it on).
//! - A rule without conditions wins over every rule with conditions for the same call, earlier or
//!   later; of several without conditions the first one counts.
//! - Rules with conditions are alternatives. They are tried in the order of libseccomp's tree:
//!   higher argument first, then `==`, `!=` and masked before `<`, `<=` before `>`, `>=`, then by
//!   value; so that the order in the file matters only between otherwise equal ones.
//! - The same conditions with another action, or a rule that is another's beginning with another
//!   action, is an error.
//! - Several conditions on one argument in one rule are alternatives, each a rule of its own.

use std::collections::{BTreeMap, BTreeSet};

use oci_spec::runtime::LinuxSeccompArg;

use super::names::OPERATORS;

/// One condition on one argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Cond {
    /// Argument, 0 to 5.
    pub arg: u8,
    pub op: Op2,
    /// For [`Op2::Masked`]: the bits compared. Else all ones.
    pub mask: u64,
    pub value: u64,
}

/// The comparison operators (oci-spec's type has no order).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Op2 {
    Ne,
    Lt,
    Le,
    Eq,
    Ge,
    Gt,
    Masked,
}

impl Cond {
    pub(super) fn new(arg: &LinuxSeccompArg) -> Cond {
        let named = OPERATORS.iter().find(|(name, _)| *name == arg.op());
        // Always found: the table has every value of the type (a test says so).
        let op = named.map_or(Op2::Ne, |(_, op)| *op);
        // config-linux.md, "Seccomp": for masked equality `value` is the mask, `valueTwo` the value.
        let (mask, value) = match op {
            Op2::Masked => (arg.value(), arg.value_two().unwrap_or(0) & arg.value()),
            _ => (u64::MAX, arg.value()),
        };
        Cond {
            // Checked to be at most 5 by the caller.
            arg: u8::try_from(arg.index()).unwrap_or(u8::MAX),
            op,
            mask,
            value,
        }
    }

    /// The condition as an architecture compares it (the lower halves, if that is 32 bits wide);
    /// `None` if it always holds there.
    fn on(self, wide: bool) -> Option<Cond> {
        let bits = if wide { u64::MAX } else { 0xffff_ffff };
        let seen = Cond {
            mask: self.mask & bits,
            value: self.value & bits,
            ..self
        };
        (seen.op != Op2::Masked || seen.mask != 0).then_some(seen)
    }
}

/// The answer to one call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// Always this action (SECCOMP_RET_*).
    Always(u32),
    /// The first rule all of whose conditions hold; the default action if none does.
    First(Vec<Rule>),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Rule {
    /// Sorted by argument, one for each.
    pub conds: Vec<Cond>,
    pub action: u32,
}

/// Why a rule can't be added.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// It contradicts an earlier one.
    Conflict,
    /// More conditional rules for one call than any filter could hold.
    TooMany,
}

/// The rules of one architecture.
pub(super) struct RuleSet {
    wide: bool,
    offset: u32,
    /// Actions of rules without conditions, by number less `offset`: nearly all there are.
    dense: Vec<u32>,
    /// The same for numbers beyond.
    sparse: BTreeMap<u32, u32>,
    conditional: BTreeMap<u32, Conditional>,
}

/// Numbers kept in a plain array.
const DENSE: usize = 1024;
/// No action: SECCOMP_RET_* never has all bits set.
const NO_ACTION: u32 = u32::MAX;

impl RuleSet {
    /// `offset` is what all numbers have in common (x32's bit).
    pub(super) fn new(wide: bool, offset: u32) -> RuleSet {
        RuleSet {
            wide,
            offset,
            dense: vec![NO_ACTION; DENSE],
            sparse: BTreeMap::new(),
            conditional: BTreeMap::new(),
        }
    }

    /// Adds one rule. `conds` has at most one condition for each argument.
    pub(super) fn add(&mut self, number: u32, conds: &[Cond], action: u32) -> Result<(), Refused> {
        let index = number.checked_sub(self.offset).map(|i| i as usize);
        let known = match index.and_then(|i| self.dense.get_mut(i)) {
            Some(slot) => slot,
            None => self.sparse.entry(number).or_insert(NO_ACTION),
        };
        if *known != NO_ACTION {
            return Ok(());
        }
        let wide = self.wide;
        let mut seen: Vec<Cond> = conds.iter().filter_map(|c| c.on(wide)).collect();
        if seen.is_empty() {
            *known = action;
            if !self.conditional.is_empty() {
                self.conditional.remove(&number);
            }
            return Ok(());
        }
        seen.sort_by_key(|c| c.arg);
        self.conditional
            .entry(number)
            .or_default()
            .add(wide, seen, action)
    }

    /// Gives all answers to `each`, in the order of their numbers, until it fails.
    pub(super) fn answers<E>(
        self,
        mut each: impl FnMut(u32, Answer) -> Result<(), E>,
    ) -> Result<(), E> {
        let dense = (self.offset..).zip(self.dense);
        let always = dense.chain(self.sparse).filter(|(_, a)| *a != NO_ACTION);
        let mut conditional = self.conditional.into_iter().peekable();
        for (number, action) in always {
            while let Some((n, rules)) = conditional.next_if(|(n, _)| *n < number) {
                each(n, Answer::First(rules.ordered()))?;
            }
            each(number, Answer::Always(action))?;
        }
        for (n, rules) in conditional {
            each(n, Answer::First(rules.ordered()))?;
        }
        Ok(())
    }
}

/// The conditional rules of one call, in a tree that only serves to order them.
#[derive(Default)]
struct Conditional {
    rules: Vec<Rule>,
    /// Rules that a later, wider one has made needless.
    covered: BTreeSet<usize>,
    exact: BTreeMap<Vec<Cond>, usize>,
    nodes: Vec<Node>,
    top: Vec<usize>,
    steps: u64,
}

/// A test of one half (or the only half) of an argument.
struct Node {
    test: Test,
    below: Vec<usize>,
    ends: Vec<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
struct Test {
    /// Twice the argument, plus one for the upper half.
    word: u8,
    /// The comparison made (`<` is "not `>=`", `!=` is "not `==`").
    op: Op2,
    value: u64,
    mask: u64,
    /// The operator written in the profile, which decides the order.
    written: Op2,
}

impl Test {
    /// Whether both are the same comparison, whichever outcome is wanted.
    fn same(&self, other: &Test) -> bool {
        self.word == other.word
            && self.op == other.op
            && self.value == other.value
            && self.mask == other.mask
    }

    /// Whether `self` comes after `other`.
    fn after(&self, other: &Test) -> bool {
        let rank = |op| match op {
            Op2::Masked | Op2::Eq | Op2::Ne => 3,
            Op2::Le | Op2::Lt => 2,
            Op2::Ge | Op2::Gt => 1,
        };
        (self.word, rank(self.written))
            .cmp(&(other.word, rank(other.written)))
            .then_with(|| match self.written {
                Op2::Le | Op2::Lt => other.value.cmp(&self.value),
                _ => self.value.cmp(&other.value),
            })
            .is_lt()
    }
}

/// The tests that a condition takes, in order.
fn tests(wide: bool, cond: &Cond) -> Vec<Test> {
    let op = match cond.op {
        Op2::Eq | Op2::Ne => Op2::Eq,
        Op2::Masked => Op2::Masked,
        Op2::Gt | Op2::Le => Op2::Gt,
        Op2::Ge | Op2::Lt => Op2::Ge,
    };
    let test = |high: bool, op, value, mask| Test {
        word: cond.arg * 2 + u8::from(high),
        op,
        value,
        mask,
        written: cond.op,
    };
    if !wide {
        return vec![test(
            false,
            op,
            cond.value & 0xffff_ffff,
            cond.mask & 0xffff_ffff,
        )];
    }
    let (high, low) = (cond.value >> 32, cond.value & 0xffff_ffff);
    let (high_mask, low_mask) = (cond.mask >> 32, cond.mask & 0xffff_ffff);
    match op {
        Op2::Eq | Op2::Masked => vec![
            test(true, op, high, high_mask),
            test(false, op, low, low_mask),
        ],
        _ => vec![
            test(true, Op2::Gt, high, high_mask),
            test(true, Op2::Eq, high, high_mask),
            test(false, op, low, low_mask),
        ],
    }
}

/// Comparisons allowed while ordering the rules of one call. The kernel takes 4096 instructions;
/// what needs this many comparisons to sort is far beyond that.
const MAX_STEPS: u64 = 20_000_000;

impl Conditional {
    fn add(&mut self, wide: bool, conds: Vec<Cond>, action: u32) -> Result<(), Refused> {
        let same = self.exact.get(&conds).and_then(|i| self.rules.get(*i));
        if let Some(other) = same {
            return if other.action == action {
                Ok(())
            } else {
                Err(Refused::Conflict)
            };
        }
        // A rule with some of these conditions alone is always tried before this one, and holds
        // whenever it does: by the order, the argument missing at the front puts it first.
        let some = |bits: u32| -> Vec<Cond> {
            let taken = conds.iter().enumerate().filter(|(i, _)| bits >> i & 1 == 1);
            taken.map(|(_, c)| *c).collect()
        };
        if (1..(1_u32 << conds.len()) - 1).any(|bits| self.exact.contains_key(&some(bits))) {
            return Ok(());
        }
        self.steps += self.rules.len() as u64;
        for (i, longer) in self.rules.iter().enumerate() {
            if self.covered.contains(&i) || !conds.iter().all(|c| longer.conds.contains(c)) {
                continue;
            }
            if longer.action == action {
                self.covered.insert(i);
                self.exact.remove(&longer.conds);
            } else if longer.conds.starts_with(&conds) {
                return Err(Refused::Conflict);
            }
        }
        let rule = self.rules.len();
        self.exact.insert(conds.clone(), rule);
        let path: Vec<Test> = conds.iter().flat_map(|c| tests(wide, c)).collect();
        self.rules.push(Rule { conds, action });
        self.place(&path, rule)
    }

    /// Walks the tree as libseccomp's `_db_tree_add` does: same test, go below it; else go on
    /// until a test that comes after this one.
    fn place(&mut self, path: &[Test], rule: usize) -> Result<(), Refused> {
        let mut parent: Option<usize> = None;
        for test in path {
            let level = match parent.and_then(|p| self.nodes.get(p)) {
                Some(node) => &node.below,
                None => &self.top,
            };
            let mut at = level.len();
            let mut found = None;
            for (i, id) in level.iter().enumerate() {
                self.steps += 1;
                let Some(node) = self.nodes.get(*id) else {
                    continue;
                };
                if node.test.same(test) {
                    found = Some(*id);
                    break;
                }
                if node.test.after(test) {
                    at = i;
                    break;
                }
            }
            if self.steps > MAX_STEPS {
                return Err(Refused::TooMany);
            }
            let id = match found {
                Some(id) => id,
                None => {
                    let id = self.nodes.len();
                    self.nodes.push(Node {
                        test: *test,
                        below: Vec::new(),
                        ends: Vec::new(),
                    });
                    match parent.and_then(|p| self.nodes.get_mut(p)) {
                        Some(node) => node.below.insert(at, id),
                        None => self.top.insert(at, id),
                    }
                    id
                }
            };
            parent = Some(id);
        }
        if let Some(node) = parent.and_then(|p| self.nodes.get_mut(p)) {
            node.ends.push(rule);
        }
        Ok(())
    }

    /// The rules in the order in which they are tried.
    fn ordered(self) -> Vec<Rule> {
        let Conditional {
            rules,
            covered,
            nodes,
            top,
            ..
        } = self;
        let mut order = Vec::with_capacity(rules.len());
        // Depth first, without recursion; children are pushed in reverse.
        let mut todo: Vec<usize> = top.into_iter().rev().collect();
        while let Some(node) = todo.pop().and_then(|id| nodes.get(id)) {
            order.extend_from_slice(&node.ends);
            todo.extend(node.below.iter().rev());
        }
        let mut rules: Vec<Option<Rule>> = rules.into_iter().map(Some).collect();
        order
            .into_iter()
            .filter(|i| !covered.contains(i))
            .filter_map(|i| rules.get_mut(i).and_then(Option::take))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cond(arg: u8, op: Op2, value: u64) -> Cond {
        Cond {
            arg,
            op,
            mask: u64::MAX,
            value,
        }
    }

    fn answers(set: RuleSet) -> Vec<(u32, Answer)> {
        let mut all = Vec::new();
        let done: Result<(), ()> = set.answers(|number, answer| {
            all.push((number, answer));
            Ok(())
        });
        assert!(done.is_ok() && all.is_sorted_by_key(|(n, _)| *n));
        all
    }

    fn first(set: RuleSet, number: u32) -> Vec<u32> {
        let answer = answers(set).into_iter().find(|(n, _)| *n == number);
        match answer.map(|(_, a)| a) {
            Some(Answer::First(rules)) => rules.iter().map(|r| r.action).collect(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn unconditional_rules_win_and_the_first_of_them_counts() {
        let mut s = RuleSet::new(true, 0);
        s.add(1, &[cond(0, Op2::Eq, 1)], 10).unwrap();
        s.add(1, &[], 20).unwrap();
        s.add(1, &[], 30).unwrap();
        s.add(1, &[cond(0, Op2::Eq, 1)], 40).unwrap();
        s.add(0x0f_0001, &[], 50).unwrap();
        let expected = [(1, Answer::Always(20)), (0x0f_0001, Answer::Always(50))];
        assert_eq!(answers(s), expected);
    }

    #[test]
    fn conditional_rules_are_ordered_by_argument_operator_and_value() {
        let mut s = RuleSet::new(true, 0);
        s.add(1, &[cond(0, Op2::Gt, 1)], 1).unwrap();
        s.add(1, &[cond(0, Op2::Lt, 9)], 2).unwrap();
        s.add(1, &[cond(0, Op2::Lt, 5)], 3).unwrap();
        s.add(1, &[cond(0, Op2::Eq, 4)], 4).unwrap();
        s.add(1, &[cond(0, Op2::Eq, 7)], 5).unwrap();
        s.add(1, &[cond(1, Op2::Ge, 0)], 6).unwrap();
        assert_eq!(first(s, 1), [6, 5, 4, 3, 2, 1]);
    }

    #[test]
    fn contradictions_are_refused() {
        let a = cond(0, Op2::Eq, 1);
        let b = cond(1, Op2::Eq, 2);
        let mut s = RuleSet::new(true, 0);
        s.add(1, &[a], 10).unwrap();
        assert_eq!(s.add(1, &[a], 20), Err(Refused::Conflict));
        // A longer rule behind a wider one never answers.
        s.add(1, &[a, b], 20).unwrap();
        assert_eq!(first(s, 1), [10]);
        let mut s = RuleSet::new(true, 0);
        s.add(1, &[b, a], 10).unwrap();
        assert_eq!(s.add(1, &[a], 20), Err(Refused::Conflict));
        s.add(1, &[a], 10).unwrap();
    }

    #[test]
    fn conditions_that_always_hold_are_none() {
        let all = Cond {
            arg: 0,
            op: Op2::Masked,
            mask: 0,
            value: 0,
        };
        let high = Cond {
            mask: 1 << 40,
            ..all
        };
        let mut s = RuleSet::new(false, 0);
        s.add(1, &[all], 10).unwrap();
        s.add(2, &[high], 20).unwrap();
        let expected = [(1, Answer::Always(10)), (2, Answer::Always(20))];
        assert_eq!(answers(s), expected);
        let mut s = RuleSet::new(true, 0);
        s.add(2, &[high], 20).unwrap();
        assert_eq!(first(s, 2), [20]);
    }
}
