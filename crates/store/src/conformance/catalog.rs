//! Promises of the catalog: what was applied is listed, filtered, found, and expires.
//!
//! Deliberately not here: how quick it is (the benches measure it).

use super::Open;
use crate::limits::CATALOG_PARTS_BYTES;
use crate::{CatalogEnds, CatalogJob, CatalogPart, CatalogQuery, CatalogRow, Seq, Small, Store, StoreLimits};
use essaim_proto::job::JobState;
use essaim_proto::{AttemptId, JobId, TaskId};

pub(crate) fn row(job: u64) -> CatalogRow {
    let small = Small { stdout: format!("out {job}").into_bytes(), stderr: vec![] };
    CatalogRow {
        job: JobId(job),
        owner: ["ann", "bob"][job as usize % 2].to_owned(),
        name: format!("Räder {job}.PY"),
        state: [JobState::Done, JobState::Failed, JobState::Cancelled][job as usize % 3],
        node: format!("node-{}", job % 5),
        submitted_ms: job * 100,
        ended_ms: job * 100 + 50,
        attempt: AttemptId { job: JobId(job), task: TaskId(1), attempt: 2 },
        view: vec![job as u8; 300],
        output: job.is_multiple_of(2).then_some(small),
    }
}

pub(crate) fn job_of(row: CatalogRow) -> CatalogJob {
    CatalogJob {
        job: row.job,
        owner: row.owner,
        name: row.name,
        state: row.state,
        node: row.node,
        submitted_ms: row.submitted_ms,
        ended_ms: row.ended_ms,
        attempt: row.attempt,
        view: row.view,
    }
}

fn filled(store: &Store, count: u64) {
    store.catalog.apply(Seq(count), &(1..=count).map(row).collect::<Vec<_>>(), &[]).expect("applied");
}

fn listed(store: &Store, query: CatalogQuery) -> Vec<u64> {
    store.catalog.list(&query).expect("listed").into_iter().map(|job| job.job.0).collect()
}

fn any() -> CatalogQuery {
    CatalogQuery { limit: 1_000, ..CatalogQuery::default() }
}

// What does one find where nothing was applied?
pub(crate) fn a_new_catalog_is_empty(open: Open) {
    let opened = open(StoreLimits::default());
    let catalog = &opened.store.catalog;
    assert_eq!(catalog.applied().expect("read"), Seq(0));
    assert!(listed(&opened.store, any()).is_empty());
    assert!(catalog.job(JobId(1)).expect("read").is_none());
    assert!(catalog.output(JobId(1)).expect("read").is_none());
    assert!(catalog.expire(u64::MAX, 0, 10).expect("nothing").is_empty());
}

// All that was put in comes back, job by job, with its output where it had one.
pub(crate) fn what_was_applied_comes_back(open: Open) {
    let opened = open(StoreLimits::default());
    let catalog = &opened.store.catalog;
    filled(&opened.store, 4);
    assert_eq!(catalog.applied().expect("read"), Seq(4));
    for n in 1..=4 {
        assert_eq!(catalog.job(JobId(n)).expect("read"), Some(job_of(row(n))));
        assert_eq!(catalog.output(JobId(n)).expect("read"), row(n).output);
    }
    assert_eq!(catalog.list(&any()).expect("listed"), [4, 3, 2, 1].map(|n| job_of(row(n))));
    assert!(catalog.job(JobId(5)).expect("read").is_none());
}

// The applier was killed after it applied and before it knew: the same batch again changes nothing, and a later one
// replaces the row of a job that is there.
pub(crate) fn applying_again_does_no_harm(open: Open) {
    let opened = open(StoreLimits::default());
    let catalog = &opened.store.catalog;
    catalog.apply(Seq(7), &[row(1)], &[]).expect("applied");
    catalog.apply(Seq(7), &[row(1), row(2)], &[]).expect("nothing happens");
    catalog.apply(Seq(6), &[row(3)], &[]).expect("nothing happens");
    assert_eq!(listed(&opened.store, any()), [1]);
    let again = CatalogRow { name: "other".to_owned(), output: None, ..row(1) };
    catalog.apply(Seq(8), std::slice::from_ref(&again), &[]).expect("applied");
    assert_eq!(catalog.list(&any()).expect("listed"), [job_of(again)]);
    catalog.apply(Seq(9), &[], &[]).expect("applied");
    assert_eq!(catalog.applied().expect("read"), Seq(9));
    // What is learnt later comes without the output, which stays.
    catalog.apply(Seq(10), &[row(2)], &[]).expect("applied");
    let later = CatalogRow { view: b"later".to_vec(), output: None, ..row(2) };
    catalog.apply(Seq(11), std::slice::from_ref(&later), &[]).expect("applied");
    assert_eq!(catalog.job(JobId(2)).expect("read"), Some(job_of(later)));
    assert_eq!(catalog.output(JobId(2)).expect("read"), row(2).output);
}

// Each filter by itself and some together, against the same question asked of the rows one by one.
pub(crate) fn filters_give_what_they_say(open: Open) {
    let opened = open(StoreLimits::default());
    filled(&opened.store, 60);
    let own = |text: &str| Some(text.to_owned());
    let states = vec![JobState::Failed, JobState::Cancelled];
    for query in [
        any(),
        CatalogQuery { owner: own("ann"), ..any() },
        CatalogQuery { owner: own("nobody"), ..any() },
        CatalogQuery { node: own("node-3"), ..any() },
        CatalogQuery { states: vec![JobState::Done], ..any() },
        CatalogQuery { states: vec![JobState::Running], ..any() },
        CatalogQuery { states: states.clone(), ..any() },
        CatalogQuery { text: own("RÄDER 1"), ..any() },
        CatalogQuery { text: own("7.py"), ..any() },
        CatalogQuery { text: own("%"), ..any() },
        CatalogQuery { text: own(""), ..any() },
        CatalogQuery { before: Some(JobId(u64::MAX)), ..any() },
        CatalogQuery { before: Some(JobId(30)), owner: own("bob"), node: own("node-1"), ..any() },
        CatalogQuery { states, owner: own("ann"), text: own("der 4"), before: Some(JobId(50)), ..any() },
    ] {
        let fits = |row: &CatalogRow| {
            query.before.is_none_or(|before| row.job < before)
                && query.owner.as_ref().is_none_or(|owner| row.owner == *owner)
                && query.node.as_ref().is_none_or(|node| row.node == *node)
                && (query.states.is_empty() || query.states.contains(&row.state))
                && query.text.as_ref().is_none_or(|text| row.name.to_lowercase().contains(&text.to_lowercase()))
        };
        let expected: Vec<u64> = (1..=60).rev().map(row).filter(fits).map(|row| row.job.0).collect();
        assert_eq!(listed(&opened.store, query.clone()), expected, "{query:?}");
    }
}

// Page by page one sees every job once, newest first.
pub(crate) fn a_list_pages(open: Open) {
    let opened = open(StoreLimits::default());
    filled(&opened.store, 25);
    let mut seen = Vec::new();
    let mut before = None;
    loop {
        let page = listed(&opened.store, CatalogQuery { before, limit: 10, ..CatalogQuery::default() });
        assert!(page.len() <= 10);
        let Some(oldest) = page.last() else { break };
        before = Some(JobId(*oldest));
        seen.extend(page);
    }
    assert_eq!(seen, (1..=25).rev().collect::<Vec<u64>>());
    assert!(listed(&opened.store, CatalogQuery { limit: 0, ..any() }).is_empty());
}

// Those that ended too long ago go, and those beyond the number that is kept; the oldest first, no more than was asked.
pub(crate) fn the_oldest_expire(open: Open) {
    let opened = open(StoreLimits::default());
    let catalog = &opened.store.catalog;
    filled(&opened.store, 20);
    let jobs = |range: std::ops::RangeInclusive<u64>| range.map(JobId).collect::<Vec<_>>();
    assert_eq!(catalog.expire(550, 100, 100).expect("expired"), jobs(1..=4));
    assert_eq!(catalog.expire(551, 100, 100).expect("expired"), jobs(5..=5));
    assert!(catalog.expire(551, 15, 100).expect("nothing").is_empty());
    assert_eq!(catalog.expire(0, 10, 3).expect("expired"), jobs(6..=8));
    assert_eq!(catalog.expire(0, 10, 3).expect("expired"), jobs(9..=10));
    assert_eq!(listed(&opened.store, any()), (11..=20).rev().collect::<Vec<u64>>());
    assert!(catalog.job(JobId(10)).expect("read").is_none());
    assert!(catalog.output(JobId(10)).expect("read").is_none());
    assert_eq!(catalog.applied().expect("read"), Seq(20));
}

// Readers list while rows are applied: each list is of one moment, so no job of a batch is there without the others.
pub(crate) fn a_reader_sees_whole_batches(open: Open) {
    let opened = open(StoreLimits::default());
    let store = &opened.store;
    std::thread::scope(|scope| {
        let readers = [0, 1].map(|_| {
            scope.spawn(|| {
                while listed(store, any()).len() < 300 {
                    assert!(listed(store, any()).len().is_multiple_of(10));
                }
            })
        });
        for n in 0..30 {
            let rows: Vec<_> = (n * 10 + 1..=n * 10 + 10).map(row).collect();
            store.catalog.apply(Seq(n + 1), &rows, &[]).expect("applied");
        }
        for reader in readers {
            reader.join().expect("the reader saw what it should");
        }
    });
}

// Ends of tasks come in the order in which they were applied, and by task; each once, those of one job alone; they go with
// their job.
pub(crate) fn ends_of_tasks_come_back(open: Open) {
    let opened = open(StoreLimits::default());
    let catalog = &opened.store.catalog;
    let part = |job: u64, first: u32, last: u32| CatalogEnds {
        job: JobId(job),
        first: TaskId(first),
        last: TaskId(last),
        body: vec![first as u8; CATALOG_PARTS_BYTES / 2],
    };
    catalog.apply(Seq(3), &[], &[part(1, 50, 90), part(2, 1, 9), part(1, 1, 40)]).expect("applied");
    catalog.apply(Seq(3), &[], &[part(1, 50, 90)]).expect("nothing happens");
    catalog.apply(Seq(5), &[row(1)], &[part(1, 30, 99)]).expect("applied");
    let firsts = |parts: &[CatalogPart]| parts.iter().map(|part| part.first.0).collect::<Vec<_>>();
    let begin = catalog.ends_after(JobId(1), Seq(0), 0).expect("read");
    assert_eq!(firsts(&begin), [50, 1], "as many as one reader takes");
    let rest = catalog.ends_after(JobId(1), Seq(0), begin[1].id).expect("read");
    assert_eq!(firsts(&rest), [30]);
    assert_eq!(rest[0].body, part(1, 30, 99).body);
    assert_eq!(firsts(&catalog.ends_after(JobId(1), Seq(3), 0).expect("read")), [30]);
    let among = |first, last, behind: Option<&CatalogPart>| {
        catalog.ends_among(JobId(1), TaskId(first), TaskId(last), behind).expect("read")
    };
    let page = among(35, 95, None);
    assert_eq!(firsts(&page), [1, 30]);
    assert_eq!(firsts(&among(35, 95, page.last())), [50]);
    assert_eq!(firsts(&among(41, 49, None)), [30]);
    assert_eq!(catalog.expire(u64::MAX, 0, 10).expect("removed"), [JobId(1)]);
    assert!(catalog.ends_after(JobId(1), Seq(0), 0).expect("read").is_empty());
    assert_eq!(firsts(&catalog.ends_after(JobId(2), Seq(0), 0).expect("read")), [1]);
}
