//! The rules that compare files: who may depend on whom, what the map names, what files may be called and contain.
//!
//! `tidy` reads the files and calls the functions here, which only compare texts.
//! Deliberately not here: reading folders (`tidy`), rules about one Rust file (`rules`).

use crate::tidy::Finding;
use anyhow::Context;

/// Which rooms each room may know. Hub and worker never meet but in `proto` (and in the binary).
const ARROWS: &[(&str, &[&str])] = &[
    ("proto", &[]),
    ("sandbox", &[]),
    ("ui", &[]),
    ("core", &["proto"]),
    ("store", &["proto"]),
    ("net", &["proto"]),
    ("view", &["proto"]),
    ("gui", &["net", "proto", "view"]),
    ("worker", &["core", "net", "proto", "sandbox", "store", "view"]),
    ("hub", &["core", "net", "proto", "store", "ui", "view"]),
    ("essaim", &["core", "gui", "hub", "net", "proto", "sandbox", "store", "ui", "view", "worker"]),
    ("xtask", &[]),
];

/// File and folder names that say nothing about what is inside.
const NAMES_WITHOUT_MEANING: &[&str] = &["utils", "util", "common", "helpers", "helper"];

/// Hosts of package registries, written in two parts so that this file keeps its own rule.
const HOSTS: &[&str] =
    &[concat!("crates", ".io"), concat!("py", "pi"), concat!("npm", "js"), concat!("debian", ".org")];

/// Folders whose paths ARCHITECTURE.md may name and must not misname.
const MAPPED: &[&str] = &["crates/", "docs/", "examples/", "benches/", "xtask/", ".ci/", "fuzz/"];

/// Who a package is and what it depends on.
pub(crate) struct Manifest {
    path: String,
    /// The room: the package's folder.
    room: String,
    /// Packages of any kind of dependency, ours and others.
    dependencies: Vec<String>,
}

impl Manifest {
    pub(crate) fn read(path: &str, text: &str) -> anyhow::Result<Manifest> {
        let table: toml::Table = text.parse().with_context(|| format!("{path} is not TOML"))?;
        let mut dependencies = Vec::new();
        collect(&table, &mut dependencies);
        for target in table.get("target").and_then(|t| t.as_table()).into_iter().flat_map(|t| t.values()) {
            if let Some(target) = target.as_table() {
                collect(target, &mut dependencies);
            }
        }
        dependencies.sort();
        dependencies.dedup();
        let room = path.rsplit('/').nth(1).unwrap_or_default().to_owned();
        Ok(Manifest { path: path.to_owned(), room, dependencies })
    }

    fn finding(&self, rule: &'static str, message: String) -> Finding {
        Finding { path: self.path.clone(), line: 0, rule, message }
    }
}

fn collect(table: &toml::Table, dependencies: &mut Vec<String>) {
    for kind in ["dependencies", "dev-dependencies", "build-dependencies"] {
        for (name, value) in table.get(kind).and_then(|t| t.as_table()).into_iter().flatten() {
            let renamed = value.get("package").and_then(|p| p.as_str());
            dependencies.push(renamed.unwrap_or(name).to_owned());
        }
    }
}

fn ours(package: &str) -> Option<&str> {
    if package == "essaim" { Some("essaim") } else { package.strip_prefix("essaim-") }
}

/// Arrows between rooms point down only, and a back-end is known to `store` alone.
pub(crate) fn check_arrows(manifests: &[Manifest]) -> Vec<Finding> {
    let mut found = Vec::new();
    for manifest in manifests {
        let Some((_, allowed)) = ARROWS.iter().find(|(room, _)| *room == manifest.room) else {
            let message = format!("the room `{}` has no row in ARROWS of xtask/src/house.rs: add one", manifest.room);
            found.push(manifest.finding("arrows", message));
            continue;
        };
        for package in &manifest.dependencies {
            match ours(package) {
                // A package may name itself, to switch features on for its tests.
                Some(room) if room != manifest.room && !allowed.contains(&room) => {
                    let message = format!(
                        "`{}` must not know `{room}` (it may know: {}): move what both need to a lower room",
                        manifest.room,
                        if allowed.is_empty() { "none of ours".to_owned() } else { allowed.join(", ") }
                    );
                    found.push(manifest.finding("arrows", message));
                }
                None if manifest.room != "store" && (package.contains("sqlite") || package.contains("etcd")) => {
                    let message = format!("`{package}` is a back-end: only crates/store may depend on it");
                    found.push(manifest.finding("backend", message));
                }
                _ => {}
            }
        }
    }
    found
}

/// Every path that the map names exists, every room is on it, every dependency has its reason.
pub(crate) fn check_map(map: &str, manifests: &[Manifest], exists: impl Fn(&str) -> bool) -> Vec<Finding> {
    let finding = |line: usize, rule: &'static str, message: String| Finding {
        path: "ARCHITECTURE.md".into(),
        line,
        rule,
        message,
    };
    let mut found = Vec::new();
    for (line, path) in quoted_paths(map) {
        if !exists(path) {
            found.push(finding(line, "map", format!("`{path}` does not exist: correct the map or make the file")));
        }
    }
    for manifest in manifests.iter().filter(|m| m.path.starts_with("crates/")) {
        let (folder, room) = (format!("crates/{}", manifest.room), format!("`{}`", manifest.room));
        if !map.contains(&folder) && !map.contains(&room) {
            found.push(finding(
                0,
                "map",
                format!("`{folder}` is not named: say what the room is for and never contains"),
            ));
        }
    }
    let reasons = section(map, "dependencies");
    let mut asked: Vec<&str> = manifests.iter().flat_map(|m| &m.dependencies).map(String::as_str).collect();
    asked.sort_unstable();
    asked.dedup();
    for package in asked.into_iter().filter(|p| ours(p).is_none()) {
        let name = format!("`{package}`");
        // The line must say more than the name.
        let has_reason = |line: &str| line.contains(&name) && line.len() > name.len() + 16;
        if !reasons.iter().any(|line| has_reason(line)) {
            let message = format!("{name} has no line under \"Dependencies\": say what it saves and why this one");
            found.push(finding(0, "dependency-reason", message));
        }
    }
    found
}

/// Texts in backticks that look like paths of ours, with their line from 1.
fn quoted_paths(map: &str) -> Vec<(usize, &str)> {
    let is_path_byte = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'/' | b'.' | b'_' | b'-');
    let mut paths = Vec::new();
    for (index, line) in map.lines().enumerate() {
        let inside = line.split('`').skip(1).step_by(2);
        let ours = |text: &&str| MAPPED.iter().any(|folder| text.starts_with(folder)) && text.bytes().all(is_path_byte);
        paths.extend(inside.filter(ours).map(|path| (index + 1, path)));
    }
    paths
}

/// The lines under the heading that contains `title`, up to the next heading of the same level.
fn section<'a>(map: &'a str, title: &str) -> Vec<&'a str> {
    let level = |line: &str| line.chars().take_while(|c| *c == '#').count();
    let mut lines = map.lines().skip_while(|line| level(line) == 0 || !line.to_lowercase().contains(title));
    let Some(heading) = lines.next() else { return Vec::new() };
    lines.take_while(|line| level(line) == 0 || level(line) > level(heading)).collect()
}

/// A name says what is inside.
pub(crate) fn check_name(path: &str) -> Option<Finding> {
    let meaningless = path.split('/').any(|part| {
        let stem = part.split('.').next().unwrap_or(part);
        NAMES_WITHOUT_MEANING.contains(&stem)
    });
    meaningless.then(|| Finding {
        path: path.to_owned(),
        line: 0,
        rule: "name",
        message: "name the file after what is in it, in the lowest room that needs it".into(),
    })
}

/// No file names a package registry: mirrors are the business of whoever builds.
pub(crate) fn check_hosts(path: &str, text: &str) -> Vec<Finding> {
    if path.ends_with("Cargo.lock") {
        return Vec::new();
    }
    let named = |line: &str| HOSTS.iter().copied().find(|host| line.contains(host));
    text.lines()
        .enumerate()
        .filter_map(|(index, line)| {
            let message =
                format!("`{}` is a registry: say `cargo`, `pip`, `npm` or `apt-get` and no host", named(line)?);
            Some(Finding { path: path.to_owned(), line: index + 1, rule: "registry-host", message })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(room: &str, dependencies: &str) -> Manifest {
        Manifest::read(&format!("crates/{room}/Cargo.toml"), &format!("[dependencies]\n{dependencies}")).unwrap()
    }

    // An arrow that points up or across is refused, one that points down is not.
    #[test]
    fn arrows_point_down() {
        let broken = |room, dependencies| check_arrows(&[manifest(room, dependencies)]).len();
        assert_eq!(broken("hub", "essaim-worker.workspace = true"), 1);
        assert_eq!(broken("worker", "essaim-hub = { path = \"../hub\" }"), 1);
        assert_eq!(broken("proto", "essaim-core.workspace = true"), 1);
        assert_eq!(broken("attic", ""), 1);
        assert_eq!(broken("core", "x = { package = \"essaim-net\", path = \"\" }"), 1);
        assert_eq!(broken("hub", "essaim-core.workspace = true\nessaim-net.workspace = true\nserde = \"1\""), 0);
        assert_eq!(broken("essaim", "essaim-hub.workspace = true\nessaim-worker.workspace = true"), 0);
    }

    // Dependencies for tests and for one platform count too.
    #[test]
    fn all_kinds_of_dependencies_count() {
        let text = "[dev-dependencies]\nessaim-hub = \"1\"\n[target.'cfg(unix)'.dependencies]\nlibc = \"1\"";
        let manifest = Manifest::read("crates/net/Cargo.toml", text).unwrap();
        assert_eq!(manifest.dependencies, ["essaim-hub", "libc"]);
        assert_eq!(check_arrows(&[manifest]).len(), 1);
    }

    // A back-end's package belongs to `store`.
    #[test]
    fn back_ends_are_known_to_store_alone() {
        assert_eq!(check_arrows(&[manifest("hub", "rusqlite = \"1\"")])[0].rule, "backend");
        assert!(check_arrows(&[manifest("store", "rusqlite = \"1\"")]).is_empty());
    }

    const MAP: &str = "# Map\n`crates/net/src/tcp.rs` and `hub` and `crates/net`\n\
                       ## Dependencies\n| `serde` | structs to bytes and back, saves 900 lines |\n## End\n`toml` is not there but here\n";

    // The map is complete and names nothing that is gone.
    #[test]
    fn map_is_true() {
        let rules = |manifests: &[Manifest], exists: bool| -> Vec<&'static str> {
            check_map(MAP, manifests, |_| exists).into_iter().map(|f| f.rule).collect()
        };
        assert!(rules(&[manifest("hub", "serde = \"1\"\nessaim-core = \"1\""), manifest("net", "")], true).is_empty());
        assert_eq!(rules(&[], false), ["map", "map"]);
        assert_eq!(rules(&[manifest("store", "")], true), ["map"]);
        assert_eq!(rules(&[manifest("hub", "toml = \"1\"")], true), ["dependency-reason"]);
    }

    // Only what is surely a path of ours is looked for.
    #[test]
    fn patterns_are_no_paths() {
        let map = "`crates/<name>` `crates/*/src` `cargo run` crates/none `/etc/x` `docs/protocol.md`";
        assert_eq!(quoted_paths(map), [(1, "docs/protocol.md")]);
    }

    // Names that say nothing are refused, in folders too.
    #[test]
    fn names_mean_something() {
        for bad in ["crates/hub/src/utils.rs", "crates/hub/tests/common/mod.rs", "crates/hub/src/helpers.rs"] {
            assert!(check_name(bad).is_some(), "{bad}");
        }
        assert!(check_name("crates/hub/src/uncommon.rs").is_none());
    }

    // A registry's host is refused everywhere but in the lock file.
    #[test]
    fn registries_are_not_named() {
        let text = format!("one\nsee https://{}/x", HOSTS[0]);
        assert_eq!(check_hosts("README.md", &text)[0].line, 2);
        assert!(check_hosts("Cargo.lock", &text).is_empty());
        assert!(check_hosts("README.md", "cargo install").is_empty());
    }
}
