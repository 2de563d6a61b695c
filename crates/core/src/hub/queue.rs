//! What waits for a slot: jobs with ready tasks, by what they need, whose they are, and whose turn it is.
//!
//! [`super::placement`] asks for the heads, the files that make tasks ready or take them away keep it up to date. Always
//! true: a job is in here once, if and only if it has a ready task and waits for no other job; jobs with equal needs (a
//! class) wait for the same thing, so that a class without a place is looked at once however many jobs it has.
//! Deliberately not here: which node suits ([`super::placement`]).

use super::job::Job;
use essaim_proto::job::JobSpec;
use essaim_proto::{JobId, KeyName, NodeName};
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What a task needs.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Class {
    /// First, so that the classes of one node lie side by side, and those of no node before all others.
    pub(super) on: Option<NodeName>,
    pub(super) lang: Option<String>,
    pub(super) slots: u32,
    pub(super) memory_bytes: u64,
    pub(super) labels: BTreeMap<String, String>,
}

impl Class {
    /// In a language that was found out.
    pub(super) fn of_spec(spec: &JobSpec, lang: Option<String>) -> Class {
        let needs = &spec.needs;
        Class {
            on: spec.on.clone(),
            lang,
            slots: needs.slots(),
            memory_bytes: rounded(needs.memory_bytes),
            labels: needs.labels.clone(),
        }
    }

    /// May it have to wait for more than the next slot that comes free?
    pub(super) fn is_wide(&self) -> bool {
        self.slots > 1 || self.memory_bytes > 0
    }

    /// The least class on a node.
    fn first_on(on: Option<&NodeName>) -> Class {
        Class { on: on.cloned(), lang: None, slots: 0, memory_bytes: 0, labels: BTreeMap::new() }
    }
}

/// Up to three significant bits, rounded up: a job that asks for a megabyte more is no class of its own, and there are
/// few classes whatever people ask for.
pub(super) fn rounded(bytes: u64) -> u64 {
    let shift = (64 - bytes.leading_zeros()).saturating_sub(4);
    bytes.checked_next_multiple_of(1 << shift).unwrap_or(u64::MAX)
}

/// A job's place in the order of one class and owner: higher priorities first, then older jobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Turn {
    pub(super) priority: Reverse<i32>,
    pub(super) job: JobId,
}

/// The first job of an owner in a class.
#[derive(Debug, Clone)]
pub(super) struct Head {
    pub(super) class: Arc<Class>,
    pub(super) owner: KeyName,
    pub(super) turn: Turn,
}

/// Jobs of one class and owner, in the order of their turns: of 64 numbers in a row one bit each, because jobs that are
/// alike come in rows.
#[derive(Debug, Default)]
struct Turns(BTreeMap<(Reverse<i32>, u64), u64>);

/// Jobs of one bit each.
const ROW: u64 = u64::BITS as u64;

impl Turns {
    fn split(turn: Turn) -> ((Reverse<i32>, u64), u64) {
        ((turn.priority, turn.job.0 / ROW), 1 << (turn.job.0 % ROW))
    }

    fn insert(&mut self, turn: Turn) {
        let (row, bit) = Turns::split(turn);
        *self.0.entry(row).or_default() |= bit;
    }

    fn remove(&mut self, turn: Turn) {
        let (row, bit) = Turns::split(turn);
        let Some(bits) = self.0.get_mut(&row) else { return };
        *bits &= !bit;
        if *bits == 0 {
            self.0.remove(&row);
        }
    }

    fn contains(&self, turn: Turn) -> bool {
        let (row, bit) = Turns::split(turn);
        self.0.get(&row).is_some_and(|bits| bits & bit != 0)
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    fn len(&self) -> usize {
        self.0.values().map(|bits| bits.count_ones() as usize).sum()
    }

    fn first(&self) -> Option<Turn> {
        let ((priority, row), bits) = self.0.first_key_value()?;
        Some(Turn { priority: *priority, job: JobId(row * ROW + u64::from(bits.trailing_zeros())) })
    }

    fn last(&self) -> Option<Turn> {
        let ((priority, row), bits) = self.0.last_key_value()?;
        Some(Turn { priority: *priority, job: JobId(row * ROW + u64::from(bits.ilog2())) })
    }
}

type Owners = BTreeMap<KeyName, Turns>;

/// All that waits for a slot.
#[derive(Debug, Default)]
pub(super) struct Queue(BTreeMap<Arc<Class>, Owners>);

impl Queue {
    fn turn(id: JobId, job: &Job) -> Turn {
        Turn { priority: Reverse(job.accepted.priority()), job: id }
    }

    pub(super) fn insert(&mut self, id: JobId, job: &Job) {
        let owners = self.0.entry(job.class().clone()).or_default();
        owners.entry(job.accepted.owner().clone()).or_default().insert(Queue::turn(id, job));
    }

    pub(super) fn remove(&mut self, id: JobId, job: &Job) {
        let (class, owner) = (job.class(), job.accepted.owner());
        let Some(owners) = self.0.get_mut(class) else { return };
        if let Some(turns) = owners.get_mut(owner) {
            turns.remove(Queue::turn(id, job));
            if turns.is_empty() {
                owners.remove(owner);
            }
        }
        if owners.is_empty() {
            self.0.remove(class);
        }
    }

    pub(super) fn contains(&self, id: JobId, job: &Job) -> bool {
        let turns = self.0.get(job.class()).and_then(|owners| owners.get(job.accepted.owner()));
        turns.is_some_and(|turns| turns.contains(Queue::turn(id, job)))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Jobs in it.
    pub(super) fn len(&self) -> usize {
        self.0.values().flat_map(BTreeMap::values).map(Turns::len).sum()
    }

    /// Does some job want a certain node?
    pub(super) fn names_a_node(&self) -> bool {
        self.0.keys().next_back().is_some_and(|class| class.on.is_some())
    }

    /// The first job of each owner in each class that names this node, or none.
    pub(super) fn heads_on(&self, on: Option<&NodeName>) -> impl Iterator<Item = Head> {
        let classes =
            self.0.range(Arc::new(Class::first_on(on))..).take_while(move |(class, _)| class.on.as_ref() == on);
        classes.flat_map(|(class, owners)| {
            owners.iter().filter_map(move |(owner, turns)| {
                Some(Head { class: class.clone(), owner: owner.clone(), turn: turns.first()? })
            })
        })
    }

    /// The last job of each owner in each class that names no node.
    pub(super) fn tails_anywhere(&self) -> impl Iterator<Item = (&Arc<Class>, Turn)> {
        let classes = self.0.iter().take_while(|(class, _)| class.on.is_none());
        classes.flat_map(|(class, owners)| owners.values().filter_map(move |turns| Some((class, turns.last()?))))
    }

    /// The first job of an owner in a class.
    pub(super) fn head(&self, class: &Class, owner: &KeyName) -> Option<Turn> {
        self.0.get(class)?.get(owner)?.first()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        /// Are rows of bits what a set of turns would be, whatever comes and goes?
        #[test]
        fn turns_are_a_set(steps in prop::collection::vec((any::<bool>(), -1..2i32, 0..150u64, any::<bool>()), 0..200)) {
            let (mut turns, mut set) = (Turns::default(), BTreeSet::new());
            for (is_new, priority, number, is_far) in steps {
                let job = JobId(if is_far { u64::MAX - number } else { number });
                let turn = Turn { priority: Reverse(priority), job };
                if is_new {
                    turns.insert(turn);
                    set.insert(turn);
                } else {
                    turns.remove(turn);
                    set.remove(&turn);
                }
                prop_assert_eq!((turns.len(), turns.is_empty()), (set.len(), set.is_empty()));
                prop_assert_eq!(turns.contains(turn), set.contains(&turn));
                prop_assert_eq!((turns.first(), turns.last()), (set.first().copied(), set.last().copied()));
            }
        }
    }

    // Rounding never takes away, and adds an eighth at most.
    #[test]
    fn memory_is_rounded_up_a_little() {
        assert_eq!([0, 1, 7, 15, 16, 17, 18].map(rounded), [0, 1, 7, 15, 16, 18, 18]);
        for bytes in [1 << 20, (1 << 20) + 1, 999_999_999, 24 << 30, (24 << 30) - 1] {
            let more = rounded(bytes);
            assert!(more >= bytes && more <= bytes + bytes / 8, "{bytes}: {more}");
        }
        assert_eq!(rounded(u64::MAX), u64::MAX);
    }
}
