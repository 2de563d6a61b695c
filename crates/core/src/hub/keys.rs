//! Keys, roles and join lines: who may come in, and what each may do.
//!
//! Called by [`super::Hub::step`]. Always true: secrets are compared by their hashes; a line that is unknown, expired or
//! used up is refused by its own name.
//! Deliberately not here: certificates (signed by the shell when `GrantJoin` leaves).

use super::effect::{Answer, Effect, Out};
use super::input::{NewKey, SessionId};
use super::record::Record;
use super::{Hub, Session};
use crate::Now;
use crate::limits::{JOIN_MEMORY_MS, JOIN_TTL_DEFAULT_MS, JOINS_MAX, KEYS_MAX, NODES_MAX, SESSIONS_MAX};
use essaim_proto::hello::Role;
use essaim_proto::{BlobHash, KeyName, NodeName, Refusal, RefusalCode};

impl Hub {
    pub(super) fn open_client(&mut self, session: SessionId, secret: BlobHash, out: &mut Out) {
        let refuse = |refusal: Refusal| Effect::Refuse { session, request: 0, refusal };
        let Some((name, key)) = self.durable.keys.iter().find(|(_, key)| key.secret == secret) else {
            return out.effects.push(refuse(RefusalCode::WrongKey.into()));
        };
        if self.live.sessions.contains_key(&session) {
            return out.effects.push(refuse(Refusal::new(RefusalCode::BadValue).with("function", "hello")));
        }
        if self.live.sessions.len() >= SESSIONS_MAX {
            return out.effects.push(refuse(too_many("sessions", SESSIONS_MAX)));
        }
        let (name, role) = (name.clone(), key.role);
        self.live.sessions.insert(session, Session::Client { key: name.clone(), role });
        let per_second = self.key_limits(&name).requests_per_second;
        out.effects.push(Effect::Admit { session, name: name.to_string(), role, per_second });
    }

    /// The key behind a client's session, if its role is at least `needs`.
    ///
    /// # Errors
    /// `not_allowed`, or `wrong_door` when a worker asks.
    pub(super) fn allowed(&self, session: SessionId, needs: Role) -> Result<(KeyName, Role), Refusal> {
        match self.live.sessions.get(&session) {
            Some(Session::Client { key, role }) if *role >= needs => Ok((key.clone(), *role)),
            Some(Session::Client { role, .. }) => {
                Err(Refusal::new(RefusalCode::NotAllowed).with("role", role.name()).with("needs", needs.name()))
            }
            _ => Err(Refusal::new(RefusalCode::WrongDoor).with("door", "clients")),
        }
    }

    pub(super) fn create_key(
        &mut self,
        now: Now,
        session: SessionId,
        request: u64,
        name: KeyName,
        key: NewKey,
        out: &mut Out,
    ) {
        let checked = self.allowed(session, Role::Admin).and_then(|_| {
            if self.durable.keys.contains_key(&name) {
                return Err(Refusal::new(RefusalCode::KeyExists).with("key", &name));
            }
            self.has_room()?;
            if self.durable.keys.len() >= KEYS_MAX { Err(too_many("keys", KEYS_MAX)) } else { Ok(()) }
        });
        if let Err(refusal) = checked {
            return out.effects.push(Effect::Refuse { session, request, refusal });
        }
        let NewKey { role, secret, quotas } = key;
        self.note(Record::KeyMade { name, role, secret, at_ms: now.unix_ms, quotas }, out);
        out.effects.push(Effect::Answer { session, request, answer: Answer::KeyMade });
    }

    pub(super) fn revoke_key(&mut self, now: Now, session: SessionId, request: u64, name: KeyName, out: &mut Out) {
        let checked = self.allowed(session, Role::Admin).and_then(|_| {
            let Some(key) = self.durable.keys.get(&name) else {
                return Err(Refusal::new(RefusalCode::NoSuchKey).with("key", &name));
            };
            let admins = self.durable.keys.values().filter(|k| k.role == Role::Admin).count();
            let last = key.role == Role::Admin && admins == 1;
            if last { Err(RefusalCode::LastAdmin.into()) } else { self.has_room() }
        });
        if let Err(refusal) = checked {
            return out.effects.push(Effect::Refuse { session, request, refusal });
        }
        if self.key_limits(&name).requests_per_second.is_some() {
            out.effects.push(Effect::Rate { key: name.clone(), per_second: None });
        }
        self.note(Record::KeyRevoked { name: name.clone() }, out);
        out.effects.push(Effect::Answer { session, request, answer: Answer::Done });
        let is_his = |s: &Session| matches!(s, Session::Client { key, .. } if *key == name);
        let his: Vec<SessionId> = self.live.sessions.iter().filter(|(_, s)| is_his(s)).map(|(id, _)| *id).collect();
        for session in his {
            // Forgotten now and not when its connection is gone: what it says meanwhile has no right any more.
            self.live.sessions.remove(&session);
            out.effects.push(Effect::Close { session, reason: "key_revoked" });
            self.cancel_ephemeral(now, session, out);
        }
    }

    pub(super) fn local_key(&mut self, now: Now, name: KeyName, role: Role, secret: BlobHash, out: &mut Out) {
        let known = self.durable.keys.get(&name);
        if !known.is_some_and(|key| key.secret == secret && key.role == role) {
            let quotas = known.map(|key| key.quotas).unwrap_or_default();
            self.note(Record::KeyMade { name, role, secret, at_ms: now.unix_ms, quotas }, out);
        }
    }

    #[allow(clippy::too_many_arguments)] // One argument per field of the input.
    pub(super) fn create_join(
        &mut self,
        now: Now,
        session: SessionId,
        request: u64,
        secret: BlobHash,
        uses: u32,
        ttl_ms: u64,
        out: &mut Out,
    ) {
        let checked = self.allowed(session, Role::Admin).and_then(|_| {
            self.has_room()?;
            if self.durable.joins.len() >= JOINS_MAX { Err(too_many("join lines", JOINS_MAX)) } else { Ok(()) }
        });
        if let Err(refusal) = checked {
            return out.effects.push(Effect::Refuse { session, request, refusal });
        }
        let expires_ms = self.local_join(now, secret, uses, ttl_ms, out);
        out.effects.push(Effect::Answer { session, request, answer: Answer::JoinMade { expires_ms } });
    }

    pub(super) fn local_join(&mut self, now: Now, secret: BlobHash, uses: u32, ttl_ms: u64, out: &mut Out) -> u64 {
        let ttl_ms = if ttl_ms == 0 { JOIN_TTL_DEFAULT_MS } else { ttl_ms };
        let expires_ms = now.unix_ms.saturating_add(ttl_ms);
        self.note(Record::JoinMade { secret, uses: uses.max(1), expires_ms }, out);
        expires_ms
    }

    pub(super) fn join(
        &mut self,
        now: Now,
        session: SessionId,
        request: u64,
        secret: BlobHash,
        wish: Option<NodeName>,
        out: &mut Out,
    ) {
        let checked = match self.durable.joins.get(&secret) {
            None => Err(RefusalCode::JoinUnknown.into()),
            Some(line) if line.expires_ms <= now.unix_ms => Err(RefusalCode::JoinExpired.into()),
            Some(line) if line.uses_left == 0 => Err(RefusalCode::JoinUsed.into()),
            Some(_) if self.durable.nodes.len() >= NODES_MAX => Err(too_many("nodes", NODES_MAX)),
            Some(_) => Ok(()),
        };
        if let Err(refusal) = checked {
            return out.effects.push(Effect::Refuse { session, request, refusal });
        }
        let name = self.free_name(wish);
        self.note(Record::JoinUsed { secret, name: name.clone() }, out);
        out.effects.push(Effect::GrantJoin { session, request, name });
    }

    /// The wished name, or it with the first free number: two machines called `lab` become `lab` and `lab-2`.
    fn free_name(&self, wish: Option<NodeName>) -> NodeName {
        let wish = wish.map_or_else(|| "node".to_owned(), String::from);
        let base: String = wish.chars().take(50).collect();
        let candidate = |n: usize| if n == 1 { wish.clone() } else { format!("{base}-{n}") };
        (1..=NODES_MAX + 1)
            .filter_map(|n| candidate(n).parse::<NodeName>().ok())
            .find(|name| !self.durable.nodes.contains(name))
            .expect("there are fewer nodes than candidates")
    }

    /// Forgets join lines long expired.
    pub(super) fn expire_joins(&mut self, now: Now, out: &mut Out) {
        let old = |expires_ms: u64| expires_ms.saturating_add(JOIN_MEMORY_MS) <= now.unix_ms;
        let gone: Vec<BlobHash> =
            self.durable.joins.iter().filter(|(_, l)| old(l.expires_ms)).map(|(s, _)| *s).collect();
        for secret in gone {
            self.note(Record::JoinForgotten { secret }, out);
        }
    }
}

pub(super) fn too_many(what: &str, limit: usize) -> Refusal {
    Refusal::new(RefusalCode::TooMany).with("what", what).with("limit", limit)
}
