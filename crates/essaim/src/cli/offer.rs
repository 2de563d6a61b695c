//! The words of `up` and `worker` about what a machine offers.
//!
//! `cli` has them in both, `settings` takes them as settings, [`Offered::of`] makes of those what a worker is started with.
//! Always true: what is given to `up` holds for each of its local workers; what nobody says is decided once, here.
//! Deliberately not here: keeping to it (the hub places, the worker measures).

use super::many::{labels, parse_label};
use crate::exit::Failure;
use crate::settings::{self, Settings, Size};
use clap::Args;
use essaim_worker::Offer;

/// What a machine offers besides slots.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "What it offers")]
pub(crate) struct Offered {
    /// What it is called by, for `run --label`; may be repeated.
    #[arg(long, value_name = "K=V", value_parser = parse_label)]
    pub(crate) label: Vec<(String, String)>,
    /// Memory that programs may reserve (16G) [default: 90 % of the machine's, shared among local workers].
    #[arg(long, value_name = "SIZE", value_parser = size_text)]
    pub(crate) mem: Option<String>,
    /// At most so many programs at once, however many slots are free [default: as many as slots].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(crate) max_tasks: Option<u32>,
    /// Nothing new while others use more than so many percent of its processors [default: whatever they use].
    #[arg(long, value_name = "PERCENT", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) max_cpu: Option<u32>,
}

impl Offered {
    /// The labels as one text, as the setting has them.
    pub(crate) fn label_text(&self) -> Option<String> {
        let pairs: Vec<String> = self.label.iter().map(|(name, value)| format!("{name}={value}")).collect();
        (!pairs.is_empty()).then(|| pairs.join(","))
    }

    /// What the settings say, for each of `workers` workers of this machine.
    ///
    /// # Errors
    /// A usage failure that names the place of a value that cannot be used.
    pub(crate) fn of(settings: &Settings, workers: u32) -> Result<Offer, Failure> {
        let memory = settings.parsed::<Size>(settings::MEM)?.map(|size| size.0);
        let in_range = |name: &str, max: u32| match settings.parsed::<u32>(name)? {
            Some(value) if value == 0 || value > max => {
                let message = format!("{name} is {value}; it must be from 1 to {max}");
                Err(Failure::usage("bad_settings", message))
            }
            value => Ok(value.unwrap_or(0)),
        };
        Ok(Offer {
            labels: labels(pairs(settings)?.into_iter())?,
            memory_bytes: memory.unwrap_or_else(|| essaim_worker::offered_memory(workers)),
            tasks_max: in_range(settings::MAX_TASKS, 4_096)?,
            cpu_percent_max: in_range(settings::MAX_CPU, 100)?,
        })
    }
}

/// The labels of the settings: `gpu=a100,room=B12`.
fn pairs(settings: &Settings) -> Result<Vec<(String, String)>, Failure> {
    let Some(value) = settings.get(settings::LABELS) else { return Ok(Vec::new()) };
    let texts = value.text.split(',').map(str::trim).filter(|text| !text.is_empty());
    texts
        .map(|text| {
            parse_label(text)
                .map_err(|why| Failure::usage("bad_settings", format!("{}: {text:?} is no label: {why}", value.origin)))
        })
        .collect()
}

/// A size that is kept as it was typed.
fn size_text(text: &str) -> Result<String, essaim_view::SizeError> {
    essaim_view::parse_size_bytes(text).map(|_| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::Parser;

    fn offer(words: &[&str]) -> Result<Offer, Failure> {
        let cli = Cli::try_parse_from([&["essaim"], words].concat()).unwrap();
        Offered::of(&Settings::of_flags(&cli), 2)
    }

    // What an owner says reaches the worker, from `up` and from `worker`; what he does not say is decided here.
    #[test]
    fn an_offer_is_what_its_owner_says() {
        let words =
            ["--label", "gpu=a100", "--label", "room=B 12", "--mem", "1.5G", "--max-tasks", "3", "--max-cpu", "40"];
        for command in ["up", "worker"] {
            let offer = offer(&[&[command], &words[..]].concat()).unwrap();
            assert_eq!((offer.memory_bytes, offer.tasks_max, offer.cpu_percent_max), (3 << 29, 3, 40));
            assert_eq!(offer.labels["room"], "B 12");
        }
        let plain = offer(&["up"]).unwrap();
        assert_eq!(plain, Offer { memory_bytes: essaim_worker::offered_memory(2), ..Offer::default() });
        assert!(offer(&["up", "--label", "a=1", "--label", "a=2"]).is_err());
        for words in [["up", "--mem", "0"], ["up", "--max-cpu", "101"], ["up", "--label", "a,b=1"]] {
            assert!(Cli::try_parse_from([&["essaim"], &words[..]].concat()).is_err(), "{words:?}");
        }
    }
}
