//! Jobs by their numbers, in little memory.
//!
//! [`super::Durable`] keeps its jobs in one of these. Numbers are given in order, and a tree that grows at its end keeps its
//! nodes half empty: here the jobs of 64 numbers lie side by side, without gaps for those that are gone. Always true: no
//! block is empty; in order of the numbers; equal jobs are equal lists.
//! Deliberately not here: what a job is ([`super::job`]).

use super::job::Job;
use essaim_proto::JobId;
use serde::{Serialize, Serializer};
use std::collections::BTreeMap;
use std::ops::Index;

/// Numbers of one block.
const BLOCK: u64 = u64::BITS as u64;

/// The jobs that are listed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Jobs {
    /// By the number of the first one, divided by [`BLOCK`].
    blocks: BTreeMap<u64, Block>,
    len: usize,
}

/// Jobs whose numbers differ in their last bits only.
#[derive(Debug, Clone, Default, PartialEq)]
struct Block {
    /// Which of the numbers have one.
    present: u64,
    /// Those, in order.
    jobs: Vec<Job>,
}

fn split(id: JobId) -> (u64, u64) {
    (id.0 / BLOCK, id.0 % BLOCK)
}

impl Block {
    fn has(&self, bit: u64) -> bool {
        self.present & 1 << bit != 0
    }

    /// Where it lies, or would.
    fn place(&self, bit: u64) -> usize {
        (self.present & ((1 << bit) - 1)).count_ones() as usize
    }

    fn get(&self, bit: u64) -> Option<&Job> {
        if self.has(bit) { self.jobs.get(self.place(bit)) } else { None }
    }
}

impl Jobs {
    /// How many.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Is there none?
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The job of this number.
    pub fn get(&self, id: &JobId) -> Option<&Job> {
        let (block, bit) = split(*id);
        self.blocks.get(&block)?.get(bit)
    }

    pub(super) fn get_mut(&mut self, id: &JobId) -> Option<&mut Job> {
        let (block, bit) = split(*id);
        let block = self.blocks.get_mut(&block).filter(|block| block.has(bit))?;
        let place = block.place(bit);
        block.jobs.get_mut(place)
    }

    /// Is there one of this number?
    pub fn contains_key(&self, id: &JobId) -> bool {
        self.get(id).is_some()
    }

    /// All of them with their numbers, in order.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (JobId, &Job)> {
        self.up_to(u64::MAX)
    }

    /// Those of lower numbers, in order.
    pub(super) fn before(&self, id: JobId) -> impl DoubleEndedIterator<Item = (JobId, &Job)> {
        self.up_to(id.0 / BLOCK).filter(move |(known, _)| *known < id)
    }

    fn up_to(&self, last: u64) -> impl DoubleEndedIterator<Item = (JobId, &Job)> {
        self.blocks.range(..=last).flat_map(|(number, block)| {
            (0..BLOCK).filter_map(move |bit| Some((JobId(number * BLOCK + bit), block.get(bit)?)))
        })
    }

    /// All of them.
    pub fn values(&self) -> impl Iterator<Item = &Job> {
        self.blocks.values().flat_map(|block| &block.jobs)
    }

    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut Job> {
        self.blocks.values_mut().flat_map(|block| &mut block.jobs)
    }

    /// Puts one in, in the place of another of the same number.
    pub(super) fn insert(&mut self, id: JobId, job: Job) {
        let (number, bit) = split(id);
        let block = self.blocks.entry(number).or_default();
        let place = block.place(bit);
        match block.has(bit) {
            true => block.jobs[place] = job,
            false => {
                block.jobs.insert(place, job);
                block.present |= 1 << bit;
                self.len += 1;
            }
        }
    }

    pub(super) fn remove(&mut self, id: &JobId) -> Option<Job> {
        let (number, bit) = split(*id);
        let block = self.blocks.get_mut(&number).filter(|block| block.has(bit))?;
        let job = block.jobs.remove(block.place(bit));
        block.present &= !(1 << bit);
        self.len -= 1;
        if block.jobs.is_empty() {
            self.blocks.remove(&number);
        } else if block.jobs.len() <= block.jobs.capacity() / 4 {
            // A few old jobs among many that are gone.
            block.jobs.shrink_to_fit();
        }
        Some(job)
    }
}

impl Index<&JobId> for Jobs {
    type Output = Job;

    fn index(&self, id: &JobId) -> &Job {
        self.get(id).expect("who asks so knows that the job is listed")
    }
}

impl FromIterator<(JobId, Job)> for Jobs {
    fn from_iter<I: IntoIterator<Item = (JobId, Job)>>(all: I) -> Jobs {
        let mut jobs = Jobs::default();
        all.into_iter().for_each(|(id, job)| jobs.insert(id, job));
        jobs
    }
}

/// As a map.
impl Serialize for Jobs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.iter())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::accepted::Accepted;
    use essaim_proto::SubmitKey;
    use essaim_proto::job::JobSpec;
    use proptest::prelude::*;
    use std::sync::Arc;

    fn job(mark: u8) -> Job {
        let owner = "me".parse().unwrap();
        Job::new(Arc::new(Accepted::new(owner, SubmitKey([mark; 16]), &Arc::new(JobSpec::default()), 0)), None)
    }

    proptest! {
        /// Whatever is put in and taken out, is the list what a tree would be? At the edges of blocks, and far away.
        #[test]
        fn it_is_what_a_tree_would_be(
            steps in prop::collection::vec((any::<bool>(), 0..200u64, any::<bool>(), any::<u8>()), 0..300),
        ) {
            let (mut jobs, mut tree) = (Jobs::default(), BTreeMap::new());
            for (is_new, number, is_far, mark) in steps {
                let id = JobId(if is_far { u64::MAX - number } else { number });
                if is_new {
                    jobs.insert(id, job(mark));
                    tree.insert(id, job(mark));
                } else {
                    prop_assert_eq!(jobs.remove(&id), tree.remove(&id));
                }
                prop_assert_eq!((jobs.len(), jobs.is_empty()), (tree.len(), tree.is_empty()));
                prop_assert_eq!(jobs.get(&id), tree.get(&id));
                prop_assert_eq!(jobs.get_mut(&id), tree.get_mut(&id));
                let below: Vec<JobId> = jobs.before(id).rev().map(|(id, _)| id).collect();
                prop_assert_eq!(below, tree.range(..id).rev().map(|(id, _)| *id).collect::<Vec<_>>());
            }
            prop_assert!(jobs.iter().eq(tree.iter().map(|(id, job)| (*id, job))));
            prop_assert!(jobs.values().eq(tree.values()));
            prop_assert_eq!(essaim_proto::encode(&jobs), essaim_proto::encode(&tree));
            prop_assert_eq!(tree.into_iter().collect::<Jobs>(), jobs);
        }
    }

    // Do a hundred thousand jobs in a row lie side by side, and a few that are left of them in little more than they need?
    #[test]
    fn it_is_dense() {
        let one = job(1);
        let mut jobs: Jobs = (1..=100_000).map(|id| (JobId(id), one.clone())).collect();
        let room = |jobs: &Jobs| jobs.blocks.values().map(|block| block.jobs.capacity()).sum::<usize>();
        assert!(room(&jobs) <= 100_000 + BLOCK as usize, "{}", room(&jobs));
        assert_eq!(size_of::<Job>(), 16);
        (1..=100_000).filter(|id| id % 64 != 5).for_each(|id| drop(jobs.remove(&JobId(id))));
        assert!(room(&jobs) <= 4 * jobs.len(), "{} for {}", room(&jobs), jobs.len());
    }
}
