//! Virtual time: what happens next.
//!
//! Always true: events come out by time, then by the order in which they were put in, so a run is the same every time.
//! Deliberately not here: what an event does.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// What is to come.
#[derive(Debug)]
pub(crate) struct Queue<E> {
    heap: BinaryHeap<Reverse<(u64, u64, usize)>>,
    places: Vec<Option<E>>,
    free: Vec<usize>,
    order: u64,
}

impl<E> Queue<E> {
    pub(crate) fn new() -> Queue<E> {
        Queue { heap: BinaryHeap::new(), places: Vec::new(), free: Vec::new(), order: 0 }
    }

    pub(crate) fn push(&mut self, at: u64, event: E) {
        self.order += 1;
        self.put(at, self.order, event);
    }

    /// Back again for later, in front of everything that was put in after it.
    pub(crate) fn defer(&mut self, at: u64, order: u64, event: E) {
        self.put(at, order, event);
    }

    fn put(&mut self, at: u64, order: u64, event: E) {
        let place = self.free.pop().unwrap_or_else(|| {
            self.places.push(None);
            self.places.len() - 1
        });
        self.places[place] = Some(event);
        self.heap.push(Reverse((at, order, place)));
    }

    pub(crate) fn pop(&mut self) -> Option<(u64, u64, E)> {
        let Reverse((at, order, place)) = self.heap.pop()?;
        self.free.push(place);
        Some((at, order, self.places[place].take()?))
    }
}
