//! Walks the workspace and collects what breaks a rule of the house.
//!
//! `main` and the test below call it; it calls `rules` for each Rust file and `house` for what concerns several files.
//! Deliberately not here: the rules themselves.

use crate::{house, rules, text::Source};
use anyhow::Context;
use std::fmt;
use std::path::Path;

/// Something that breaks a rule, and what to do instead.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Finding {
    /// Path from the root.
    pub(crate) path: String,
    /// Line from 1; 0 when it is about the whole file.
    pub(crate) line: usize,
    /// The rule's name.
    pub(crate) rule: &'static str,
    /// What is wrong and what to do instead.
    pub(crate) message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: [{}] {}", self.path, self.line.max(1), self.rule, self.message)
    }
}

/// Folders that hold nothing of ours: built things and what git keeps for itself.
const SKIPPED: &[&str] = &["target", ".git", "node_modules", "fuzz/corpus", "fuzz/artifacts", "fuzz/target"];

/// Everything in the workspace at `root` that breaks a rule, by path and line.
pub(crate) fn findings(root: &Path) -> anyhow::Result<Vec<Finding>> {
    let mut paths = Vec::new();
    walk(root, "", &mut paths)?;
    let mut found = Vec::new();
    let mut manifests = Vec::new();
    for path in &paths {
        found.extend(house::check_name(path));
        let bytes = std::fs::read(root.join(path)).with_context(|| format!("reading {path}"))?;
        let Ok(text) = String::from_utf8(bytes) else { continue };
        found.extend(house::check_hosts(path, &text));
        if rules::is_ours(path) {
            found.extend(rules::check(&Source::new(path, &text)));
        }
        if path.starts_with("crates/") && path.ends_with("/Cargo.toml") || path == "xtask/Cargo.toml" {
            manifests.push(house::Manifest::read(path, &text)?);
        }
    }
    found.extend(house::check_arrows(&manifests));
    match std::fs::read_to_string(root.join("ARCHITECTURE.md")) {
        Ok(map) => {
            found.extend(house::check_map(&map, &manifests, |path| root.join(path).exists()));
        }
        Err(_) => found.push(Finding {
            path: "ARCHITECTURE.md".into(),
            line: 0,
            rule: "map",
            message: "the map of the code is missing: write it".into(),
        }),
    }
    found.sort();
    Ok(found)
}

fn walk(root: &Path, folder: &str, paths: &mut Vec<String>) -> anyhow::Result<()> {
    let mut names: Vec<String> = Vec::new();
    for entry in std::fs::read_dir(root.join(folder)).with_context(|| format!("listing {folder:?}"))? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    for name in names {
        let path = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
        if SKIPPED.contains(&name.as_str()) || SKIPPED.contains(&path.as_str()) {
            continue;
        }
        let kind = std::fs::symlink_metadata(root.join(&path)).with_context(|| format!("looking at {path}"))?;
        if kind.is_dir() {
            walk(root, &path, paths)?;
        } else if kind.is_file() {
            paths.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    // The workspace keeps its own rules.
    #[test]
    fn workspace_is_tidy() {
        let found = super::findings(&crate::root()).expect("the workspace can be read");
        let lines: Vec<String> = found.iter().map(ToString::to_string).collect();
        assert!(lines.is_empty(), "{} finding(s):\n{}", lines.len(), lines.join("\n"));
    }
}
