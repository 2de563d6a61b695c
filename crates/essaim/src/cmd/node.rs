//! `node`: see the machines.
//!
//! `cmd` calls it. Always true: a list is complete, whatever number of pages it takes.
//! Deliberately not here: what a node is (the hub says), sentences for states (`essaim-view`), waiting for changes
//! (`changes`).

use super::changes::{self, Board};
use super::{Context, ago};
use crate::cli::Node;
use crate::exit::{Failure, OK, Outcome};
use crate::link::Link;
use crate::print::Printer;
use essaim_proto::api::{NodeChange, NodeList, NodePage, StateChange, StatesWatch};
use essaim_proto::node::{NodeState, NodeView};
use essaim_proto::{NodeName, Refusal, RefusalCode};
use essaim_view::Language;
use serde::Serialize;
use std::collections::BTreeMap;

pub(super) async fn run(context: &Context, command: Node) -> Outcome {
    let mut link = context.link().await?;
    match command {
        Node::List { watch: true } => {
            let mut nodes = Nodes { printer: context.printer, known: None };
            changes::watch(context.printer, &mut link, &mut nodes).await?;
        }
        Node::List { watch: false } => list(context, &mut link).await?,
        Node::Show { node } => show(context, &mut link, &node).await?,
    }
    link.close().await;
    Ok(OK)
}

/// All nodes, page after page.
async fn all(link: &mut Link) -> Result<Vec<NodeView>, Failure> {
    Ok(pages(link).await?.nodes)
}

/// All pages as one.
async fn pages(link: &mut Link) -> Result<NodePage, Failure> {
    let mut nodes: Vec<NodeView> = Vec::new();
    loop {
        let after = nodes.last().map(|node| node.name.clone());
        let page = link.request(&NodeList { after }).await?;
        let is_last = !page.more || page.nodes.is_empty();
        nodes.extend(page.nodes);
        if is_last {
            return Ok(NodePage { nodes, more: false, local: page.local });
        }
    }
}

async fn list(context: &Context, link: &mut Link) -> Result<(), Failure> {
    let NodePage { nodes, local, .. } = pages(link).await?;
    if context.printer.is_json() {
        return context.printer.json(&nodes);
    }
    table(context.printer, &nodes)?;
    if let Some(local) = local.filter(|local| !local.mode || local.workers_max > local.workers) {
        context.printer.note(&essaim_view::local_workers(&local, Language::English));
    }
    Ok(())
}

fn table(printer: Printer, nodes: &[NodeView]) -> Result<(), Failure> {
    let row = |node: &NodeView| {
        let languages: Vec<&str> = node.toolchains.iter().map(|tool| tool.lang.as_str()).collect();
        let cpu = node.load.as_ref().map_or_else(|| "-".into(), |load| format!("{:.0}%", load.cpu * 100.0));
        vec![
            node.name.clone(),
            essaim_view::node_state(node.state, Language::English).to_owned(),
            format!("{}/{}", node.slots_used, node.slots),
            cpu,
            languages.join(" "),
        ]
    };
    let rows: Vec<Vec<String>> = nodes.iter().map(row).collect();
    printer.table(&["NAME", "STATE", "USED", "CPU", "LANGUAGES"], &rows)?;
    if nodes.is_empty() {
        printer.note("no machine has joined yet: `essaim join-line` prints what to paste there");
    }
    Ok(())
}

/// A node of the list that `--watch --json` begins with.
#[derive(Serialize)]
struct NodeLine<'a> {
    r#type: &'static str,
    #[serde(flatten)]
    node: &'a NodeView,
}

/// A change, for `--watch --json`.
#[derive(Serialize)]
struct ChangeLine<'a> {
    r#type: &'static str,
    at_ms: u64,
    missed: u64,
    #[serde(flatten)]
    change: &'a NodeChange,
}

/// The nodes, for `--watch`.
struct Nodes {
    printer: Printer,
    /// How each stands, as far as it was told, and since when the list said so: a change of that moment is in the list.
    /// `None` before the first look.
    known: Option<BTreeMap<String, (NodeState, Option<u64>)>>,
}

impl Board for Nodes {
    fn wanted(&self) -> StatesWatch {
        StatesWatch { nodes: true, jobs: false }
    }

    async fn list(&mut self, link: &mut Link) -> Result<(), Failure> {
        let nodes = all(link).await?;
        let first = self.known.is_none();
        match (first, self.printer.is_json()) {
            (true, true) => nodes.iter().try_for_each(|node| self.printer.json(&NodeLine { r#type: "node", node }))?,
            (true, false) => table(self.printer, &nodes)?,
            (false, _) => {}
        }
        for node in nodes {
            let now = (node.state, Some(node.since_ms));
            let was = self.known.get_or_insert_default().insert(node.name.clone(), now);
            if !first && was.is_none_or(|(state, _)| state != node.state) {
                let was = was.map_or(NodeState::Offline, |(state, _)| state);
                let change = NodeChange { name: node.name, was, state: node.state, reason: node.reason };
                self.tell(node.since_ms, 0, &change)?;
            }
        }
        self.known.get_or_insert_default();
        Ok(())
    }

    fn change(&mut self, change: StateChange) -> Result<(), Failure> {
        let StateChange { at_ms, missed, node: Some(node), .. } = change else { return Ok(()) };
        let known = self.known.get_or_insert_default();
        let was = known.insert(node.name.clone(), (node.state, None));
        if let Some((state, Some(listed))) = was
            && state == node.state
            && at_ms <= listed
        {
            return Ok(());
        }
        self.tell(at_ms, missed, &node)
    }
}

impl Nodes {
    fn tell(&self, at_ms: u64, missed: u64, change: &NodeChange) -> Result<(), Failure> {
        if self.printer.is_json() {
            return self.printer.json(&ChangeLine { r#type: "node_change", at_ms, missed, change });
        }
        let word = |state| essaim_view::node_state(state, Language::English);
        let step = changes::step(Some(word(change.was)), word(change.state));
        let reason = change.reason.as_ref().map(|reason| essaim_view::reason(reason, Language::English));
        let line = [essaim_view::time_of_day(at_ms), change.name.clone(), step, reason.unwrap_or_default()];
        self.printer.data(&essaim_view::visible(line.join("  ").trim_end()))
    }
}

async fn show(context: &Context, link: &mut Link, name: &NodeName) -> Result<(), Failure> {
    let nodes = all(link).await?;
    let node = nodes
        .into_iter()
        .find(|node| node.name == name.as_str())
        .ok_or_else(|| Failure::from_refusal(&Refusal::new(RefusalCode::NoSuchNode).with("node", name)))?;
    if context.printer.is_json() {
        return context.printer.json(&node);
    }
    let facts = &node.facts;
    let reason = node.reason.as_ref().map(|reason| essaim_view::reason(reason, Language::English));
    let mut lines = vec![
        ("name", node.name.clone()),
        ("state", essaim_view::node_state(node.state, Language::English).to_owned()),
        ("why", reason.unwrap_or_default()),
        ("since", ago(node.since_ms)),
        ("slots", format!("{} of {} used", node.slots_used, node.slots)),
        ("labels", node.labels.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")),
        ("jobs", node.jobs.iter().map(u64::to_string).collect::<Vec<_>>().join(" ")),
        ("host", facts.hostname.clone()),
        ("system", format!("{} {}", facts.os, facts.arch)),
        ("processors", facts.cpus.to_string()),
        ("memory", essaim_view::bytes(facts.memory_bytes)),
        ("addresses", facts.addresses.join(" ")),
        ("essaim", facts.version.clone()),
    ];
    if let Some(load) = &node.load {
        let used = essaim_view::bytes(load.memory_used_bytes);
        lines.push(("load", format!("{:.0}% of the processors, {used} of memory", load.cpu * 100.0)));
    }
    if let Some(rtt_us) = node.rtt_us {
        lines.push(("round trip", format!("{:.2} ms", rtt_us as f64 / 1_000.0)));
    }
    for tool in &node.toolchains {
        lines.push(("has", format!("{}: {}", tool.lang, tool.version)));
    }
    print_lines(context, &lines)
}

/// Names and values under each other; what is empty is left out.
pub(super) fn print_lines(context: &Context, lines: &[(&str, String)]) -> Result<(), Failure> {
    let mut text = String::new();
    for (name, value) in lines.iter().filter(|(_, value)| !value.is_empty()) {
        text.push_str(&format!("{name:<11} {}\n", essaim_view::visible(value)));
    }
    context.printer.data(&text)
}
