//! What a node is and how it stands, as lists show it.
//!
//! Deliberately not here: what a worker tells its hub (see [`crate::link`]).

use crate::job::Reason;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How a node stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// Named in a list, never joined.
    Listed,
    /// Its connection is being made.
    Connecting,
    /// Takes work.
    Online,
    /// Finishes, takes nothing new.
    Draining,
    /// Silent for a while: gets nothing new.
    Suspect,
    /// Not connected.
    #[default]
    Offline,
    /// Stopped by order.
    Stopped,
    /// A state of a newer version.
    #[serde(other)]
    Unknown,
}

impl NodeState {
    /// The state's word.
    pub fn name(self) -> &'static str {
        match self {
            NodeState::Listed => "listed",
            NodeState::Connecting => "connecting",
            NodeState::Online => "online",
            NodeState::Draining => "draining",
            NodeState::Suspect => "suspect",
            NodeState::Offline => "offline",
            NodeState::Stopped => "stopped",
            NodeState::Unknown => "unknown",
        }
    }
}

/// A toolchain that a node has.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Toolchain {
    /// The language's name in the table.
    pub lang: String,
    /// What its probe said, one line.
    pub version: String,
}

/// What a node is: told at registration.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Facts {
    /// Host name.
    pub hostname: String,
    /// `linux`, `macos`, `windows`.
    pub os: String,
    /// Processor architecture.
    pub arch: String,
    /// Processors.
    pub cpus: u32,
    /// Memory, in bytes.
    pub memory_bytes: u64,
    /// essaim's version there.
    pub version: String,
    /// Its addresses, the one used to reach the hub first.
    pub addresses: Vec<String>,
}

/// How loaded a node is: told with each heartbeat.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Load {
    /// Processors in use, 0.0 to 1.0 of the whole node.
    pub cpu: f64,
    /// Memory in use, in bytes.
    pub memory_used_bytes: u64,
}

/// A node, as lists show it.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct NodeView {
    /// Its name.
    pub name: String,
    /// How it stands.
    pub state: NodeState,
    /// Why.
    pub reason: Option<Reason>,
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
    /// Is it a worker that the hub's own `up` started?
    pub local: bool,
    /// Units of its capacity.
    pub slots: u32,
    /// Units in use.
    pub slots_used: u32,
    /// What it can run.
    pub toolchains: Vec<Toolchain>,
    /// Are its toolchains still being looked for?
    pub probing: bool,
    /// What it is.
    pub facts: Facts,
    /// How loaded it is, when it has said so.
    pub load: Option<Load>,
    /// Time of the last heartbeat there and back, in microseconds.
    pub rtt_us: Option<u64>,
    /// Running attempts, by job id.
    pub jobs: Vec<u64>,
    /// What its owner calls it by.
    pub labels: BTreeMap<String, String>,
}
