//! A small code generator for classic BPF (Documentation/networking/filter.rst; seccomp(2)).
//!
//! Owns instructions, jumps and their reach; knows nothing of profiles. A program is written from
//! its end to its beginning, so that every jump's target already has its place: the offsets of
//! conditional jumps are 8 bits, and where a target is out of reach a stepping stone is written
//! right there (another `ret`, or a `ja`, whose offset has 32 bits).
//!
//! Equal pieces are written once: the same decision on the same word with the same targets is the
//! same block, whichever call or architecture asks for it.

use std::collections::BTreeMap;

/// Offset of a 32-bit word in `struct seccomp_data`, bytes.
pub(super) type Word = u32;

/// Where a decision ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Target {
    /// Return this value from the filter.
    Return(u32),
    /// Go on with a block.
    Block(Block),
}

/// A written block. Its first instruction loads `word`; who has it loaded already enters behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Block {
    place: Place,
    word: Word,
}

/// An instruction, counted from the end of the program.
type Place = u32;

/// All values of a word, cut into intervals: from each start up to the next one, its target. The
/// first start is 0; neighbours never have the same target.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Intervals<T>(Vec<(T, Target)>);

impl<T: Copy + PartialEq> Intervals<T> {
    /// Everything goes to `target`; `zero` is the first value.
    pub(super) fn all(zero: T, target: Target) -> Intervals<T> {
        Intervals(vec![(zero, target)])
    }

    /// From `start` on, `target`. Starts are pushed in order; a start pushed twice counts once,
    /// the last time.
    pub(super) fn push(&mut self, start: T, target: Target) {
        if self.0.last().is_some_and(|(last, _)| *last == start) {
            self.0.pop();
        }
        if self.0.last().is_none_or(|(_, last)| *last != target) {
            self.0.push((start, target));
        }
    }
}

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const GOTO: u16 = 0x05; // BPF_JMP | BPF_JA
const JEQ: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JGE: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const JSET: u16 = 0x45; // BPF_JMP | BPF_JSET | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

/// Reach of a conditional jump.
const REACH: Place = u8::MAX as Place;

/// Single values that one run of `jeq` tests before the search is split instead: each saves an
/// instruction over two comparisons, and costs the calls behind it one.
const RUN: usize = 6;

/// A program under construction. Places count from the end.
#[derive(Default)]
pub(super) struct Emitter {
    code: Vec<libc::sock_filter>,
    /// The newest `ret` of each value. (Ordered maps: there are few entries, and hashing long keys
    /// takes longer than comparing them.)
    returns: BTreeMap<u32, Place>,
    /// For a place that was out of reach: the newest stepping stone to it.
    stones: BTreeMap<Place, Place>,
    searches: BTreeMap<(Word, Intervals<u32>), Target>,
    masks: BTreeMap<(Word, u32, u32, Target, Target), Target>,
}

/// Where a jump inside a search goes: out of it, or to another of its tests.
#[derive(Clone, Copy)]
enum Goal {
    Out(Target),
    Inside(Place),
}

/// Consecutive intervals that one run of `jeq` tells apart: all but single values go to `rest`.
struct Run {
    start: u32,
    singles: Vec<(u32, Target)>,
    rest: Target,
}

impl Emitter {
    /// Instructions written so far.
    pub(super) fn len(&self) -> usize {
        self.code.len()
    }

    /// The finished program, which begins with `entry`.
    pub(super) fn finish(mut self, entry: Target) -> Vec<libc::sock_filter> {
        match entry {
            Target::Block(b) if b.place + 1 == self.next() => {}
            Target::Block(b) => {
                self.push(GOTO, self.next() - 1 - b.place, 0, 0);
            }
            Target::Return(value) => {
                self.push(RETURN, value, 0, 0);
            }
        }
        self.code.reverse();
        self.code
    }

    /// The place of the instruction written next.
    fn next(&self) -> Place {
        // Callers stop far below 2^32, at the kernel's limit.
        self.code.len() as Place
    }

    fn push(&mut self, code: u16, k: u32, jt: u8, jf: u8) -> Place {
        let place = self.next();
        self.code.push(libc::sock_filter { code, jt, jf, k });
        place
    }

    /// The place to jump to for `goal` when the accumulator holds `loaded`.
    fn place(&mut self, goal: Goal, loaded: Option<Word>) -> Place {
        match goal {
            Goal::Inside(place) => place,
            Goal::Out(Target::Block(b)) if loaded == Some(b.word) => b.place - 1,
            Goal::Out(Target::Block(b)) => b.place,
            Goal::Out(Target::Return(value)) => match self.returns.get(&value) {
                Some(place) => *place,
                None => {
                    let place = self.push(RETURN, value, 0, 0);
                    self.returns.insert(value, place);
                    place
                }
            },
        }
    }

    /// Offset to `goal` from the instruction written next; `None` if it is out of reach.
    fn offset(&mut self, goal: Goal, loaded: Option<Word>) -> Option<u8> {
        let place = self.place(goal, loaded);
        let last = self.next() - 1;
        if last - place <= REACH {
            return u8::try_from(last - place).ok();
        }
        let stone = self.stones.get(&place)?;
        u8::try_from(last - stone).ok()
    }

    /// Brings `goal` into reach of the next instructions.
    fn stone(&mut self, goal: Goal, loaded: Option<Word>) {
        let place = self.place(goal, loaded);
        match goal {
            Goal::Out(Target::Return(value)) => {
                let near = self.push(RETURN, value, 0, 0);
                self.returns.insert(value, near);
            }
            _ => {
                let stone = self.push(GOTO, self.next() - 1 - place, 0, 0);
                self.stones.insert(place, stone);
            }
        }
    }

    /// Writes a conditional jump; gives its place.
    fn jump(&mut self, code: u16, k: u32, yes: Goal, no: Goal, loaded: Option<Word>) -> Place {
        // Asked for first, since a `ret` that doesn't exist yet is written by asking.
        self.offset(yes, loaded);
        self.offset(no, loaded);
        loop {
            let Some(jt) = self.offset(yes, loaded) else {
                self.stone(yes, loaded);
                continue;
            };
            let Some(jf) = self.offset(no, loaded) else {
                self.stone(no, loaded);
                continue;
            };
            return self.push(code, k, jt, jf);
        }
    }

    /// A decision by the value of `word`.
    pub(super) fn search(&mut self, word: Word, intervals: Intervals<u32>) -> Target {
        if let [(_, only)] = intervals.0[..] {
            return only;
        }
        let key = (word, intervals);
        if let Some(known) = self.searches.get(&key) {
            return *known;
        }
        let runs = runs(&key.1.0);
        let target = match self.tree(word, &runs) {
            Goal::Inside(_) => Target::Block(Block {
                place: self.push(LOAD, word, 0, 0),
                word,
            }),
            Goal::Out(target) => target,
        };
        self.searches.insert(key, target);
        target
    }

    /// Binary search over the runs.
    fn tree(&mut self, word: Word, runs: &[Run]) -> Goal {
        match runs {
            [] => Goal::Out(Target::Return(0)),
            [run] => {
                let mut goal = Goal::Out(run.rest);
                // Written backwards: the highest value is asked for first.
                for (value, target) in &run.singles {
                    goal =
                        Goal::Inside(self.jump(JEQ, *value, Goal::Out(*target), goal, Some(word)));
                }
                goal
            }
            _ => {
                let (low, high) = runs.split_at(runs.len() / 2);
                let border = high.first().map_or(0, |r| r.start);
                let high = self.tree(word, high);
                let low = self.tree(word, low);
                Goal::Inside(self.jump(JGE, border, high, low, Some(word)))
            }
        }
    }

    /// As [`Emitter::search`] for a 64-bit value in two words.
    pub(super) fn search_wide(
        &mut self,
        (low, high): (Word, Word),
        intervals: &Intervals<u64>,
    ) -> Target {
        let upper = |v: u64| (v >> 32) as u32;
        let mut current = Target::Return(0);
        let mut by_high = Intervals::default();
        let mut rest = &intervals.0[..];
        while let Some((start, _)) = rest.first() {
            let h = upper(*start);
            let n = rest.iter().take_while(|(s, _)| upper(*s) == h).count();
            let (here, after) = rest.split_at(n);
            let mut by_low = Intervals::all(0, current);
            for (start, target) in here {
                by_low.push(*start as u32, *target);
                current = *target;
            }
            by_high.push(h, self.search(low, by_low));
            if let Some(next) = h.checked_add(1) {
                by_high.push(next, current);
            }
            rest = after;
        }
        self.search(high, by_high)
    }

    /// Goes to `yes` if `word & mask == value`, to `no` if not.
    pub(super) fn masked(
        &mut self,
        word: Word,
        mask: u32,
        value: u32,
        yes: Target,
        no: Target,
    ) -> Target {
        if mask == 0 {
            return if value == 0 { yes } else { no };
        }
        if yes == no {
            return yes;
        }
        if mask == u32::MAX {
            let mut around = Intervals::all(0, no);
            around.push(value, yes);
            if let Some(next) = value.checked_add(1) {
                around.push(next, no);
            }
            return self.search(word, around);
        }
        let key = (word, mask, value, yes, no);
        if let Some(known) = self.masks.get(&key) {
            return *known;
        }
        let (yes, no) = (Goal::Out(yes), Goal::Out(no));
        if value == 0 {
            self.jump(JSET, mask, no, yes, Some(word));
        } else if value == mask && mask.is_power_of_two() {
            self.jump(JSET, mask, yes, no, Some(word));
        } else {
            self.jump(JEQ, value, yes, no, None);
            self.push(AND, mask, 0, 0);
        }
        let place = self.push(LOAD, word, 0, 0);
        let target = Target::Block(Block { place, word });
        self.masks.insert(key, target);
        target
    }
}

/// Cuts intervals into runs, greedily the longest that begins at each point.
fn runs(intervals: &[(u32, Target)]) -> Vec<Run> {
    let mut runs = Vec::new();
    let mut rest = intervals;
    while let Some((start, first)) = rest.first().copied() {
        // What the run's other values go to: the first interval's target, or the second's.
        let here = longest(rest, first);
        let second = rest.get(1).map_or(first, |(_, t)| *t);
        let there = longest(rest, second);
        let (target, n) = if there > here {
            (second, there)
        } else {
            (first, here)
        };
        let (run, after) = rest.split_at(n.clamp(1, rest.len()));
        runs.push(Run {
            start,
            singles: run.iter().filter(|(_, t)| *t != target).copied().collect(),
            rest: target,
        });
        rest = after;
    }
    runs
}

/// How many intervals, from the first on, go to `target` or are single values.
fn longest(intervals: &[(u32, Target)], target: Target) -> usize {
    let mut singles = 0;
    let mut n = 0;
    for (i, (start, t)) in intervals.iter().enumerate() {
        if *t != target {
            let end = intervals.get(i + 1).map_or(u32::MAX, |(next, _)| next - 1);
            if end != *start || singles == RUN {
                break;
            }
            singles += 1;
        }
        n = i + 1;
    }
    n
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program on words at offsets; fails the test on anything the kernel would refuse.
    fn run(code: &[libc::sock_filter], words: &[(Word, u32)]) -> u32 {
        let mut acc = 0;
        let mut pc = 0;
        loop {
            let i = code[pc];
            pc += 1;
            let condition = match i.code {
                LOAD => {
                    acc = words.iter().find(|(w, _)| *w == i.k).map_or(0, |(_, v)| *v);
                    continue;
                }
                AND => {
                    acc &= i.k;
                    continue;
                }
                GOTO => {
                    pc += i.k as usize;
                    continue;
                }
                RETURN => return i.k,
                JEQ => acc == i.k,
                JGE => acc >= i.k,
                JSET => acc & i.k != 0,
                other => panic!("{other:#x}"),
            };
            pc += usize::from(if condition { i.jt } else { i.jf });
        }
    }

    fn intervals<T: Copy + PartialEq>(list: &[(T, Target)]) -> Intervals<T> {
        let mut all = Intervals(Vec::new());
        for (start, target) in list {
            all.push(*start, *target);
        }
        all
    }

    #[test]
    fn one_target_needs_no_search() {
        let mut e = Emitter::default();
        let t = e.search(
            0,
            intervals(&[(0, Target::Return(7)), (5, Target::Return(7))]),
        );
        assert_eq!(t, Target::Return(7));
        assert_eq!(run(&e.finish(t), &[]), 7);
    }

    #[test]
    fn searches_of_any_shape_and_size_find_their_target() {
        // Every third value alone, far more targets than one jump reaches.
        let list: Vec<_> = (0..900_u32)
            .map(|i| (i * i % 7 + i * 9, Target::Return(i % 300)))
            .collect();
        let expected = |v: u32| {
            let (_, t) = list.iter().rev().find(|(s, _)| *s <= v).unwrap();
            match t {
                Target::Return(r) => *r,
                Target::Block(_) => unreachable!(),
            }
        };
        let mut e = Emitter::default();
        let t = e.search(0, intervals(&list));
        let code = e.finish(t);
        for v in (0..9000).chain([u32::MAX - 1, u32::MAX]) {
            assert_eq!(run(&code, &[(0, v)]), expected(v), "{v}");
        }
    }

    #[test]
    fn blocks_out_of_reach_are_reached_by_stepping_stones() {
        let mut e = Emitter::default();
        let inner = e.search(
            4,
            intervals(&[(0, Target::Return(1)), (9, Target::Return(2))]),
        );
        // Enough code between, all of it going to `inner` somewhere.
        let list: Vec<_> = (0..1500_u32)
            .map(|i| (i * 3, if i % 2 == 0 { inner } else { Target::Return(i) }))
            .collect();
        let t = e.search(0, intervals(&list));
        let code = e.finish(t);
        assert!(code.iter().filter(|i| i.code == GOTO).count() > 1);
        for i in 0..1500 {
            let (a, b) = (
                run(&code, &[(0, i * 3), (4, 8)]),
                run(&code, &[(0, i * 3), (4, 9)]),
            );
            let expected = if i % 2 == 0 { (1, 2) } else { (i, i) };
            assert_eq!((a, b), expected, "{i}");
        }
    }

    #[test]
    fn wide_searches_compare_64_bits() {
        let (a, b, c) = (Target::Return(1), Target::Return(2), Target::Return(3));
        let mut e = Emitter::default();
        let list = [
            (0, a),
            (5, b),
            (0x1_0000_0000, c),
            (0x2_8000_0000, a),
            (u64::MAX, b),
        ];
        let t = e.search_wide((16, 20), &intervals(&list));
        let code = e.finish(t);
        for v in [
            0,
            4,
            5,
            0xffff_ffff,
            0x1_0000_0000,
            0x2_7fff_ffff,
            0x2_8000_0000,
            u64::MAX - 1,
            u64::MAX,
        ] {
            let (_, t) = list.iter().rev().find(|(s, _)| *s <= v).unwrap();
            let got = run(&code, &[(16, v as u32), (20, (v >> 32) as u32)]);
            assert_eq!(Target::Return(got), *t, "{v:#x}");
        }
    }

    #[test]
    fn masks() {
        for (mask, value) in [
            (6, 0),
            (4, 4),
            (6, 2),
            (6, 6),
            (u32::MAX, 5),
            (0, 0),
            (0, 1),
        ] {
            let mut e = Emitter::default();
            let t = e.masked(16, mask, value, Target::Return(1), Target::Return(2));
            let code = e.finish(t);
            for v in 0..16 {
                let expected = if v & mask == value { 1 } else { 2 };
                assert_eq!(run(&code, &[(16, v)]), expected, "{v} & {mask} == {value}");
            }
        }
    }

    #[test]
    fn equal_decisions_are_written_once() {
        let mut e = Emitter::default();
        let list = intervals(&[(0, Target::Return(1)), (9, Target::Return(2))]);
        let first = e.search(4, list.clone());
        let n = e.len();
        assert_eq!(e.search(4, list), first);
        assert_eq!(e.len(), n);
    }
}
