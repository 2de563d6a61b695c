//! Notices: which job's end is to be posted to a URL, which URLs that may be, and what became of it.
//!
//! [`Hub::step`] calls it when a job is accepted, is over, or the shell says what became of a notice. Always true: a job that
//! asked for a notice and is over has either a record of what became of it or is in `Live::notices`; nothing is posted
//! before the shell has said which URLs an admin allows, and nothing outside of them; at most [`NOTICES_MAX`] are due at
//! once, and none holds a job that is to be forgotten.
//! Deliberately not here: posting, how often that is tried, and names of machines (the hub's shell).

use super::Hub;
use super::effect::{Effect, Out};
use super::record::Record;
use crate::Now;
use crate::limits::{NOTICE_ERROR_CHARS_MAX, NOTICES_MAX, URL_BYTES_MAX};
use essaim_proto::job::Notice;
use essaim_proto::{JobId, Refusal, RefusalCode};

/// The parts of a URL that a rule looks at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    is_tls: bool,
    /// Host and port, in small letters; the port of the scheme is left out.
    authority: String,
    /// From the first `/`, with everything behind it.
    path: String,
}

impl Url {
    /// Reads a URL.
    ///
    /// # Errors
    /// Why it is none that may be posted to.
    pub fn parse(text: &str) -> Result<Url, &'static str> {
        if text.len() > URL_BYTES_MAX {
            return Err("it is too long");
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) || text.contains(['\\', '"', '<', '>', '#']) {
            return Err("it has characters that no URL has; write them as %XX");
        }
        let (scheme, rest) = text.split_once("://").ok_or("it does not begin with http:// or https://")?;
        let is_tls = match scheme {
            "http" => false,
            "https" => true,
            _ => return Err("it does not begin with http:// or https://"),
        };
        let (authority, path) = rest.find(['/', '?']).map_or((rest, ""), |at| rest.split_at(at));
        let authority = authority.to_ascii_lowercase();
        if authority.is_empty() || authority.starts_with(':') || authority.contains('@') {
            return Err("it names no machine, or a password, which everybody would see who sees the job");
        }
        let authority = authority.strip_suffix(if is_tls { ":443" } else { ":80" }).unwrap_or(&authority).to_owned();
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        // Who reads `..` as the folder above would lead a prefix somewhere else.
        let way = path.split('?').next().unwrap_or_default().to_ascii_lowercase();
        if way.contains("%2e") || way.contains("%2f") || way.contains("%5c") || way.split('/').any(|part| part == "..")
        {
            return Err("its path leads back; write it without .. and without %2E, %2F and %5C");
        }
        Ok(Url { is_tls, authority, path })
    }

    /// Does it begin with that one? Whole parts of the path only: `/a` is no beginning of `/ab`.
    pub fn is_below(&self, prefix: &Url) -> bool {
        let rest = || self.path.strip_prefix(prefix.path.as_str());
        let is_whole = |rest: &str| prefix.path.ends_with('/') || rest.is_empty() || rest.starts_with(['/', '?']);
        (self.is_tls, &self.authority) == (prefix.is_tls, &prefix.authority) && rest().is_some_and(is_whole)
    }
}

impl Hub {
    /// May a job have this notice?
    ///
    /// # Errors
    /// `bad_job`, `notify_not_allowed`.
    pub(super) fn check_notice(&self, url: Option<&str>) -> Result<(), Refusal> {
        let Some(text) = url else { return Ok(()) };
        let bad = |why| Refusal::new(RefusalCode::BadJob).with("field", "notify").with("why", why);
        let url = Url::parse(text).map_err(bad)?;
        if self.is_allowed(&url) {
            return Ok(());
        }
        Err(Refusal::new(RefusalCode::NotifyNotAllowed).with("url", text))
    }

    fn is_allowed(&self, url: &Url) -> bool {
        self.live.notify_urls.iter().flatten().any(|prefix| url.is_below(prefix))
    }

    /// The shell says which URLs are allowed: what is due can be posted now.
    pub(super) fn allow_notices(&mut self, now: Now, urls: Vec<Url>, out: &mut Out) {
        self.live.notify_urls = Some(urls);
        let due: Vec<JobId> = self.durable.jobs.iter().filter(|(_, job)| job.owes_notice()).map(|(id, _)| id).collect();
        self.live.notices.clear();
        due.into_iter().for_each(|job| self.notice_is_due(now, job, out));
    }

    /// A job is over: is its end to be posted?
    pub(super) fn notice_is_due(&mut self, now: Now, id: JobId, out: &mut Out) {
        // Before the rules are known nothing is posted; then all that is due comes again.
        if self.live.notify_urls.is_none() {
            return;
        }
        let Some(url) = self.durable.jobs.get(&id).and_then(|job| job.accepted.notify().map(str::to_owned)) else {
            return;
        };
        let why = match Url::parse(&url) {
            Ok(parsed) if self.is_allowed(&parsed) => None,
            _ => Some("the hub's settings no longer allow this URL"),
        };
        let why =
            why.or_else(|| (self.live.notices.len() >= NOTICES_MAX).then_some("too many notices were due at once"));
        if let Some(why) = why {
            return self.notice_ended(now, id, 0, Some(why.to_owned()), out);
        }
        self.live.notices.insert(id);
        out.effects.push(Effect::Notify { job: id, url });
    }

    /// The shell says what became of a notice.
    pub(super) fn notice_ended(&mut self, now: Now, job: JobId, tries: u32, error: Option<String>, out: &mut Out) {
        self.live.notices.remove(&job);
        if self.durable.jobs.get(&job).is_some_and(|known| known.owes_notice()) {
            let error =
                error.map(|error| error.chars().filter(|c| !c.is_control()).take(NOTICE_ERROR_CHARS_MAX).collect());
            let notice = Notice { at_ms: now.unix_ms, tries, error };
            self.note(Record::NoticeEnded { job, notice }, out);
        }
    }

    /// A job is about to be forgotten: what is still due is given up, so that its row of the catalog tells so.
    pub(super) fn give_up_notice(&mut self, now: Now, job: JobId, out: &mut Out) {
        if self.live.notices.contains(&job) {
            self.notice_ended(now, job, 0, Some("too many jobs ended since".to_owned()), out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Which URLs are below which prefix: same scheme and machine, whole parts of the path.
    #[test]
    fn prefixes_are_whole() {
        let url = |text: &str| Url::parse(text).unwrap();
        for (prefix, below, not) in [
            (
                "http://a:8000",
                &["http://a:8000", "http://A:8000/x?y", "http://a:8000?x"][..],
                &["http://a:80001/", "http://a/", "https://a:8000/", "http://a:8000.evil/"][..],
            ),
            (
                "http://a/hook",
                &["http://a:80/hook", "http://a/hook/1", "http://a/hook?x"],
                &["http://a/hooks", "http://a/"],
            ),
            ("https://a:443/h/", &["https://a/h/x"], &["https://a/h", "https://b/h/x", "http://a/h/x"]),
        ] {
            below.iter().for_each(|text| assert!(url(text).is_below(&url(prefix)), "{text} {prefix}"));
            not.iter().for_each(|text| assert!(!url(text).is_below(&url(prefix)), "{text} {prefix}"));
        }
    }

    // What could be read in two ways is no URL.
    #[test]
    fn doubtful_urls_are_refused() {
        let long = format!("http://a/{}", "x".repeat(URL_BYTES_MAX));
        for text in [
            "",
            "a",
            "ftp://a",
            "http://",
            "http:///x",
            "http://:80/",
            "http://u:p@a/",
            "http://a/ x",
            "http://a/\n",
            "http://a/x/../y",
            "http://a/x/%2e%2E/y",
            "http://a/x%2fy",
            "http://a\\@b/",
            "http://a/#x",
            "http://é/",
            &long,
        ] {
            assert!(Url::parse(text).is_err(), "{text:?}");
        }
    }
}
