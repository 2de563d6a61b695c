//! `node`: see the machines.
//!
//! Deliberately not here: what a node is (the hub says), sentences for states (`essaim-view`).

use super::{Context, ago};
use crate::cli::Node;
use crate::exit::{Failure, OK, Outcome};
use crate::link::Link;
use essaim_proto::api::NodeList;
use essaim_proto::node::NodeView;
use essaim_proto::{NodeName, Refusal, RefusalCode};
use essaim_view::Language;

pub(super) async fn run(context: &Context, command: Node) -> Outcome {
    let link = context.link().await?;
    match command {
        Node::List => list(context, &link).await?,
        Node::Show { node } => show(context, &link, &node).await?,
    }
    link.close().await;
    Ok(OK)
}

/// All nodes, page after page.
async fn all(link: &Link) -> Result<Vec<NodeView>, Failure> {
    let mut nodes: Vec<NodeView> = Vec::new();
    loop {
        let after = nodes.last().map(|node| node.name.clone());
        let page = link.request(&NodeList { after }).await?;
        let is_last = !page.more || page.nodes.is_empty();
        nodes.extend(page.nodes);
        if is_last {
            return Ok(nodes);
        }
    }
}

async fn list(context: &Context, link: &Link) -> Result<(), Failure> {
    let nodes = all(link).await?;
    if context.printer.is_json() {
        return context.printer.json(&nodes);
    }
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
    context.printer.table(&["NAME", "STATE", "USED", "CPU", "LANGUAGES"], &rows)?;
    if nodes.is_empty() {
        context.printer.note("no machine has joined yet: `essaim join-line` prints what to paste there");
    }
    Ok(())
}

async fn show(context: &Context, link: &Link, name: &NodeName) -> Result<(), Failure> {
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
