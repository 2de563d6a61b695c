//! How the tasks of arrays have ended: of a job that the core knows, whose page of tasks lacks their results, and of one
//! that it has forgotten.
//!
//! Client sessions ask. Always true: a page never exceeds the limit of the wire; who may list the tasks of a job that the
//! core knows may list them here.
//! Deliberately not here: their output (the watch tasks).

use super::{Past, Who, kept};
use crate::catalog::unpacked;
use crate::ends::Wanted;
use essaim_core::hub::may_watch;
use essaim_core::limits::PAGE_BYTES_MAX;
use essaim_proto::api::{TaskList, TaskPage};
use essaim_proto::job::{TaskState, TaskView};
use essaim_proto::limits::PAGE_ENTRIES_MAX;
use essaim_proto::{JobId, Refusal, RefusalCode, TaskId, TaskSet};
use essaim_store::{Catalog, CatalogError, CatalogPart};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

impl Past {
    /// The core's page of tasks, with how those ended that are over.
    ///
    /// # Errors
    /// `store_error` when the catalog cannot be read.
    pub(crate) async fn complete_tasks(&self, job: JobId, mut page: TaskPage) -> Result<TaskPage, Refusal> {
        let lacks = |task: &&TaskView| task.state.is_over() && task.result.is_none();
        let wanted: BTreeSet<TaskId> = page.tasks.iter().filter(lacks).map(|task| task.task).collect();
        let (Some(first), Some(last)) = (wanted.first().copied(), wanted.last().copied()) else { return Ok(page) };
        let found = self.read(self.ended.load(Ordering::Acquire), move |catalog| {
            let mut found = BTreeMap::new();
            let mut parts = Parts::new(catalog, job, (first, last));
            while let Some(part) = parts.next()? {
                for ends in unpacked(job, &part.body) {
                    found.extend(ends.views(&|task, _| wanted.contains(&task)).map(|view| (view.task, view)));
                }
            }
            Ok(found)
        });
        let mut found = found.await?;
        for task in page.tasks.iter_mut().filter(|task| lacks(&&**task)) {
            if let Some(view) = found.remove(&task.task) {
                (task.result, task.reason) = (view.result, view.reason);
            }
        }
        Ok(cut(page))
    }

    /// A page of tasks of a job that the core has forgotten.
    ///
    /// # Errors
    /// `no_such_job`, `not_allowed`; `store_error` when the catalog cannot be read.
    pub(crate) async fn tasks(&self, list: TaskList, who: &Who) -> Result<TaskPage, Refusal> {
        let job = list.job;
        let row = self.read(self.must_see.load(Ordering::Acquire), move |catalog| catalog.job(job)).await?;
        let row = row.ok_or_else(|| Refusal::new(RefusalCode::NoSuchJob).with("job", job))?;
        let view = kept(&row).ok_or(RefusalCode::StoreError)?.view;
        if list.numbers_only {
            may_watch(&view.owner, &who.key, who.role)?;
        }
        let after = list.after.map_or(0, |after| after.0.saturating_add(1));
        if list.after == Some(TaskId(u32::MAX)) {
            return Ok(TaskPage::default());
        }
        let is_wanted = move |task: TaskId, state: TaskState| {
            task.0 >= after && (list.states.is_empty() || list.states.contains(&state))
        };
        let Some(ids) = view.array else {
            let tasks: Vec<TaskView> = view.tasks.into_iter().filter(|task| is_wanted(task.task, task.state)).collect();
            let set = tasks.iter().map(|task| task.task).collect();
            let tasks = if list.numbers_only { Vec::new() } else { tasks };
            return Ok(TaskPage { tasks, more: false, set });
        };
        let last = ids.last().unwrap_or_default();
        let limit = if list.limit == 0 { PAGE_ENTRIES_MAX } else { (list.limit as usize).min(PAGE_ENTRIES_MAX) };
        let numbers_only = list.numbers_only;
        let page = self.read(self.must_see.load(Ordering::Acquire), move |catalog| {
            if numbers_only {
                numbers(catalog, job, last, &is_wanted)
            } else {
                first_page(catalog, job, (TaskId(after), last), limit, &is_wanted)
            }
        });
        Ok(cut(page.await?))
    }
}

/// The parts that may tell how tasks in a range ended, by their smallest task.
struct Parts<'a> {
    catalog: &'a Catalog,
    job: JobId,
    range: (TaskId, TaskId),
    behind: Option<CatalogPart>,
    page: std::vec::IntoIter<CatalogPart>,
}

impl<'a> Parts<'a> {
    fn new(catalog: &'a Catalog, job: JobId, range: (TaskId, TaskId)) -> Parts<'a> {
        Parts { catalog, job, range, behind: None, page: Vec::new().into_iter() }
    }

    fn next(&mut self) -> Result<Option<CatalogPart>, CatalogError> {
        if let Some(part) = self.page.next() {
            return Ok(Some(part));
        }
        let (first, last) = self.range;
        let page = self.catalog.ends_among(self.job, first, last, self.behind.as_ref())?;
        self.behind = page.last().map(|part| CatalogPart { body: Vec::new(), ..part.clone() });
        self.page = page.into_iter();
        Ok(self.page.next())
    }
}

fn numbers(catalog: &Catalog, job: JobId, last: TaskId, wanted: Wanted<'_>) -> Result<TaskPage, CatalogError> {
    let mut found = BTreeSet::new();
    let mut parts = Parts::new(catalog, job, (TaskId(0), last));
    while let Some(part) = parts.next()? {
        for ends in unpacked(job, &part.body) {
            found.extend(ends.numbers(wanted));
        }
    }
    Ok(TaskPage { set: found.into_iter().collect(), ..TaskPage::default() })
}

fn first_page(
    catalog: &Catalog,
    job: JobId,
    range: (TaskId, TaskId),
    limit: usize,
    wanted: Wanted<'_>,
) -> Result<TaskPage, CatalogError> {
    let mut found: BTreeMap<TaskId, TaskView> = BTreeMap::new();
    let mut parts = Parts::new(catalog, job, range);
    while let Some(part) = parts.next()? {
        // One more says whether there are more. What comes behind all of these need not be looked at.
        let most = if found.len() > limit { found.keys().next_back().copied() } else { None };
        if most.is_some_and(|most| part.first > most) {
            break;
        }
        let is_before = |task: TaskId, state: TaskState| wanted(task, state) && most.is_none_or(|most| task < most);
        for ends in unpacked(job, &part.body) {
            found.extend(ends.views(&is_before).map(|view| (view.task, view)));
        }
        while found.len() > limit + 1 {
            found.pop_last();
        }
    }
    let more = found.len() > limit;
    Ok(TaskPage { tasks: found.into_values().take(limit).collect(), more, set: TaskSet::default() })
}

/// As many tasks as fit a frame.
fn cut(mut page: TaskPage) -> TaskPage {
    let mut bytes = 0;
    let fit = page.tasks.iter().take_while(|task| {
        bytes += essaim_proto::encode(task).len();
        bytes <= PAGE_BYTES_MAX
    });
    let fit = fit.count();
    page.more |= fit < page.tasks.len();
    page.tasks.truncate(fit);
    page
}
