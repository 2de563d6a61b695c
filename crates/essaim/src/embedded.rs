//! A hub and a worker for one `run`, when no hub is there and none was named.
//!
//! `cmd::run` starts one and goes on as the client of an ordinary hub. Always true: it lives in a private folder of its
//! own that is gone afterwards, also after Ctrl+C; should this process be killed, the worker removes the folder.
//! Deliberately not here: deciding that there is no hub (`target`), the program's run (`cmd::run`).

use crate::exit::{Failure, chain};
use crate::home::Home;
use crate::supervise::{Crew, CrewPlan};
use crate::target::Target;
use essaim_core::hub::{LocalPlan, Rules};
use essaim_core::lang::LanguageTable;
use essaim_hub::{HubConfig, Keep, Keeping, RunningHub};
use essaim_net::{Ticket, TicketKind};
use essaim_worker::Offer;
use std::path::PathBuf;
use std::sync::Arc;
use tempfile::TempDir;

/// A hub for one run.
pub(crate) struct Embedded {
    hub: Arc<RunningHub>,
    crew: Crew,
    home: Home,
    folder: TempDir,
}

impl Embedded {
    /// Starts it, with a worker that looks for the language of one program (`None`: a command needs none) and
    /// runs so many at once.
    ///
    /// # Errors
    /// When there is no place for its folder, or the hub does not start.
    pub(crate) async fn start(
        table: LanguageTable,
        lang: Option<&str>,
        log: &str,
        slots: u32,
    ) -> Result<Embedded, Failure> {
        let folder = private_folder()?;
        let home = Home::at(folder.path());
        let config = HubConfig {
            home: home.path().to_owned(),
            name: "embedded".into(),
            client_addr: "127.0.0.1:0".into(),
            worker_addr: "127.0.0.1:0".into(),
            table,
            keeping: Keeping::Memory,
            keep: Keep::default(),
            // It ends with the run: nothing could be told for sure.
            notify_urls: Vec::new(),
            rules: Rules::default(),
        };
        let hub = RunningHub::start(config).await;
        let hub = hub.map_err(|error| Failure::internal("hub", format!("no hub for this run: {}", chain(&error))))?;
        let hub = Arc::new(hub);
        let plan = CrewPlan {
            home: home.clone(),
            local: LocalPlan {
                workers: 1,
                workers_max: 1,
                slots,
                memory_bytes: essaim_worker::offered_memory(1),
                ..LocalPlan::default()
            },
            offer: Offer::default(),
            log: log.to_owned(),
            only: Some(lang.unwrap_or(NO_LANGUAGE).to_owned()),
        };
        let crew = Crew::start(&hub, &plan);
        Ok(Embedded { hub, crew, home, folder })
    }

    /// Where the client finds it.
    ///
    /// # Errors
    /// When the hub's own key is none, which does not happen.
    pub(crate) fn target(&self) -> Result<Target, Failure> {
        let key = Ticket::parse(&self.hub.admin_key().0, TicketKind::Key)
            .map_err(|error| Failure::broken("internal", "the hub's own key cannot be read", &error))?;
        Ok(Target::of_home(&self.home, self.hub.client_addresses(), key))
    }

    /// Stops worker and hub and removes the folder.
    pub(crate) async fn stop(self) {
        self.crew.stop().await;
        if let Some(hub) = Arc::into_inner(self.hub) {
            hub.shutdown().await;
        }
        // What cannot be removed now is in the system's folder for temporary files.
        let _ = self.folder.close();
    }
}

/// The name that no language has: a worker that runs commands only looks for nothing.
pub(crate) const NO_LANGUAGE: &str = "-";

/// A folder for its owner alone, in memory where the system offers that.
fn private_folder() -> Result<TempDir, Failure> {
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|path| path.is_absolute());
    let make = |parent: &PathBuf| tempfile::Builder::new().prefix("essaim-run-").tempdir_in(parent);
    // tempfile makes folders with mode 0700.
    let made = runtime.as_ref().and_then(|parent| make(parent).ok());
    let parent = std::env::temp_dir();
    made.map_or_else(|| make(&parent), Ok).map_err(|error| {
        Failure::broken("no_folder", format!("no temporary folder can be made in {}", parent.display()), &error)
    })
}
