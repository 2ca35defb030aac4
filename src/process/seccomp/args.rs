//! Rules with conditions: decisions on a call's arguments.
//!
//! Owns how comparisons of 64-bit values become searches over 32-bit words, and how rules for one
//! call share them. The order of the rules is [`super::rules`]'.

use super::emit::{Emitter, Intervals, Target, Word};
use super::rules::{Cond, Op2, Rule};
use super::within_limit;
use crate::Result;

/// seccomp_data.args[0] (include/uapi/linux/seccomp.h); the lower half of an argument comes first
/// on the little-endian machines that there are tables for.
const ARGS: Word = 16;

/// What is left of a rule behind the conditions already seen to hold, and its action.
type Tail<'a> = (&'a [Cond], u32);

/// Goes to the action of the first rule that holds, to `otherwise` if none does.
///
/// # Errors
/// The program grows beyond what the kernel takes.
pub(super) fn first(
    emitter: &mut Emitter,
    wide: bool,
    rules: &[Rule],
    otherwise: Target,
) -> Result<Target> {
    let rules: Vec<Tail> = rules
        .iter()
        .map(|r| (r.conds.as_slice(), r.action))
        .collect();
    tails(emitter, wide, &rules, otherwise)
}

/// Conditional rules that one sweep takes together.
const SWEEP: usize = 128;

/// The first of `rules` that holds, `otherwise` if none does. `rules` are in libseccomp's order,
/// so that those with the same first condition are neighbours.
fn tails(emitter: &mut Emitter, wide: bool, rules: &[Tail], otherwise: Target) -> Result<Target> {
    // Groups of rules with the same first condition; a rule without any ends the list.
    let mut groups: Vec<(Cond, &[Tail])> = Vec::new();
    let mut next = otherwise;
    let mut rest = rules;
    while let Some((conds, action)) = rest.first() {
        let Some(cond) = conds.first() else {
            next = Target::Return(*action);
            break;
        };
        let n = rest
            .iter()
            .take_while(|(c, _)| c.first() == Some(cond))
            .count();
        let (group, after) = rest.split_at(n);
        groups.push((*cond, group));
        rest = after;
    }
    // From the last to the first, several at once where one search can tell them apart.
    let mut end = groups.len();
    while let Some((last, _)) = end.checked_sub(1).and_then(|i| groups.get(i)) {
        within_limit(emitter)?;
        let simple = |(cond, group): &(Cond, &[Tail])| {
            cond.arg == last.arg
                && cond.op != Op2::Masked
                && group.first().is_some_and(|(conds, _)| conds.len() == 1)
        };
        let before = groups.get(..end).unwrap_or_default();
        let n = before
            .iter()
            .rev()
            .take(SWEEP)
            .take_while(|g| simple(g))
            .count();
        let start = end - n.max(1);
        let part = groups.get(start..end).unwrap_or_default();
        next = match part {
            [(cond, group)] => {
                let behind: Vec<Tail> = group
                    .iter()
                    .map(|(conds, action)| (conds.get(1..).unwrap_or_default(), *action))
                    .collect();
                let then = tails(emitter, wide, &behind, next)?;
                one(emitter, wide, cond, then, next)
            }
            _ => {
                let answers: Vec<(Cond, Target)> = part
                    .iter()
                    .filter_map(|(cond, group)| Some((*cond, Target::Return(group.first()?.1))))
                    .collect();
                sweep(emitter, wide, last.arg, &answers, next)
            }
        };
        end = start;
    }
    Ok(next)
}

/// Places of an argument's lower and upper half.
fn words(arg: u8) -> (Word, Word) {
    let low = ARGS + 8 * Word::from(arg);
    (low, low + 4)
}

fn one(emitter: &mut Emitter, wide: bool, cond: &Cond, yes: Target, no: Target) -> Target {
    if cond.op != Op2::Masked {
        return sweep(emitter, wide, cond.arg, &[(*cond, yes)], no);
    }
    let (low, high) = words(cond.arg);
    let yes = emitter.masked(low, cond.mask as u32, cond.value as u32, yes, no);
    if wide {
        let (mask, value) = ((cond.mask >> 32) as u32, (cond.value >> 32) as u32);
        emitter.masked(high, mask, value, yes, no)
    } else {
        yes
    }
}

/// Several comparisons of one argument: for each value the first that holds.
fn sweep(
    emitter: &mut Emitter,
    wide: bool,
    arg: u8,
    conds: &[(Cond, Target)],
    otherwise: Target,
) -> Target {
    // A 32-bit architecture sees the lower half of the argument and of the value.
    let max = if wide { u64::MAX } else { u64::from(u32::MAX) };
    let mut starts = vec![0];
    for (cond, _) in conds {
        starts.push(cond.value & max);
        starts.extend((cond.value & max).checked_add(1).filter(|v| *v <= max));
    }
    starts.sort_unstable();
    starts.dedup();
    let target = |v: u64| {
        let hit = conds.iter().find(|(cond, _)| {
            let value = cond.value & max;
            match cond.op {
                Op2::Ne => v != value,
                Op2::Lt => v < value,
                Op2::Le => v <= value,
                Op2::Eq => v == value,
                Op2::Ge => v >= value,
                Op2::Gt => v > value,
                Op2::Masked => v & cond.mask == value,
            }
        });
        hit.map_or(otherwise, |(_, target)| *target)
    };
    let (low, high) = words(arg);
    if wide {
        let mut intervals = Intervals::default();
        starts
            .into_iter()
            .for_each(|v| intervals.push(v, target(v)));
        emitter.search_wide((low, high), &intervals)
    } else {
        let mut intervals = Intervals::default();
        starts
            .into_iter()
            .for_each(|v| intervals.push(v as u32, target(v)));
        emitter.search(low, intervals)
    }
}
