//! Requests that only the catalog can answer, or complete: jobs that the core has forgotten.
//!
//! Called by the session when the core has answered or knows no such job; a task of the session asks [`crate::past`], so
//! that a slow disk holds up this one request alone. Always true: each of these requests is answered once; who may see what
//! is the same as for jobs that the core knows.
//! Deliberately not here: reading the catalog, and what the core knows.

use super::answer::over;
use super::{ClientSession, Pending, TaskEnd};
use crate::catalog::Kept;
use crate::session::{answered, refused};
use essaim_core::hub::{may_watch, sight};
use essaim_proto::api::{Done, JobList, JobPage, TaskPage, Watch};
use essaim_proto::{Function, JobId, Refusal, RefusalCode};

/// What came of it.
pub(super) enum Looked {
    Page(Result<JobPage, Refusal>),
    Job(Result<Kept, Refusal>),
    Tasks(Result<TaskPage, Refusal>),
    /// For a watch, whose client may have heard an answer already.
    Watch {
        watch: Watch,
        answered: bool,
        found: Result<Kept, Refusal>,
    },
}

impl ClientSession {
    /// Has the catalog complete the core's page.
    pub(super) fn complete(&mut self, request: u64, list: Box<JobList>, page: JobPage) {
        self.pending.insert(request, Pending::Looking(Function::JOB_LIST));
        let (past, who) = (self.shared.past.clone(), self.who.clone());
        self.tasks.spawn(async move {
            let page = past.complete(&list, page, &who).await;
            TaskEnd::Looked(request, Box::new(Looked::Page(page)))
        });
    }

    /// Has the catalog say how the tasks of the core's page have ended: the core knows that they have.
    pub(super) fn complete_tasks(&mut self, request: u64, job: JobId, page: TaskPage) {
        self.pending.insert(request, Pending::Looking(Function::TASK_LIST));
        let past = self.shared.past.clone();
        self.tasks.spawn(async move {
            let page = past.complete_tasks(job, page).await;
            TaskEnd::Looked(request, Box::new(Looked::Tasks(page)))
        });
    }

    /// The core knows no such job: looks whether it has forgotten it. `false`: this request asked for no job.
    pub(super) fn look_for(&mut self, request: u64, pending: Option<Pending>) -> bool {
        let (job, function) = match &pending {
            Some(Pending::Show(job)) => (*job, Function::JOB_SHOW),
            Some(Pending::Tasks(list)) => (list.job, Function::TASK_LIST),
            Some(Pending::Watch { watch: Some(watch), .. }) => (watch.job, Function::WATCH),
            _ => return false,
        };
        self.pending.insert(request, Pending::Looking(function));
        let (past, who) = (self.shared.past.clone(), self.who.clone());
        self.tasks.spawn(async move {
            if let Some(Pending::Tasks(list)) = pending {
                let page = past.tasks(list, &who).await;
                return TaskEnd::Looked(request, Box::new(Looked::Tasks(page)));
            }
            let found = past.job(job).await;
            let looked = match pending {
                Some(Pending::Watch { watch: Some(watch), answered }) => {
                    Looked::Watch { watch: *watch, answered, found }
                }
                _ => Looked::Job(found),
            };
            TaskEnd::Looked(request, Box::new(looked))
        });
        true
    }

    /// Sends what was found.
    pub(super) fn looked(&mut self, request: u64, looked: Looked) {
        // `None`: its client has given it up.
        let Some(Pending::Looking(function)) = self.pending.remove(&request) else { return };
        let sent = match looked {
            Looked::Page(page) => page.map(|page| self.send(answered(function, request, &page))),
            Looked::Tasks(page) => page.map(|page| self.send(answered(function, request, &page))),
            Looked::Job(found) => found.map(|kept| {
                let view = sight(kept.view, &self.who.key, self.who.role);
                self.send(answered(function, request, &view));
            }),
            Looked::Watch { watch, answered: is_answered, found } => self.granted(&watch, found).map(|kept| {
                if !is_answered {
                    self.send(answered(function, request, &Done {}));
                }
                let view = sight(kept.view, &self.who.key, self.who.role);
                self.begin_watch(request, &watch, watch.job, over(view));
            }),
        };
        if let Err(refusal) = sent {
            self.send(refused(request, &refusal));
        }
    }

    /// The rules of the core, for a job that it has forgotten.
    fn granted(&self, watch: &Watch, found: Result<Kept, Refusal>) -> Result<Kept, Refusal> {
        let kept = found?;
        if watch.key.is_some_and(|key| key != kept.key) {
            return Err(no_such_job(watch.job));
        }
        may_watch(&kept.view.owner, &self.who.key, self.who.role)?;
        Ok(kept)
    }
}

fn no_such_job(job: JobId) -> Refusal {
    Refusal::new(RefusalCode::NoSuchJob).with("job", job)
}
