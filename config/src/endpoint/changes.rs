//! What differs between two versions of a load assignment, found in their bytes: one endpoint among ten thousand is found by
//! comparing, and only that one has to be checked and read.
//!
//! Called by the proxy's store with bytes that were accepted before, and those that came. Invariant: an endpoint that is kept is the
//! same to the byte, and nothing but endpoints differs; where that is not so there is no [`AssignmentChanges`], and all has to be read.

use std::{collections::HashMap, ops::Range};

/// How an assignment came out of an earlier one.
#[derive(Debug, PartialEq, Eq)]
pub struct AssignmentChanges {
    /// The new one with no endpoints but those that are new, in their order.
    pub reduced: Vec<u8>,
    /// One for each locality's group of endpoints, in order.
    pub groups: Vec<GroupChanges>,
}

/// How one group changed.
#[derive(Debug, PartialEq, Eq)]
pub struct GroupChanges {
    /// How many endpoints there were.
    pub before: usize,
    /// How many there are.
    pub now: usize,
    /// Places before, and what stands there now; in ascending order, without the endpoints that are kept between them.
    pub splices: Vec<(Range<usize>, Range<usize>)>,
}

/// Field numbers of `ClusterLoadAssignment`.
const GROUPS: u64 = 2;
const NAMED_ENDPOINTS: u64 = 5;
/// Field numbers of `LocalityLbEndpoints`.
const ENDPOINTS: u64 = 2;
const ENDPOINT_LIST: u64 = 7;
const LEDS: u64 = 8;

/// If more than one of so many changed, it is as quick to read all of them.
const MOST_CHANGED: usize = 2;

impl AssignmentChanges {
    /// `None`: something else than endpoints differs, or there is a part of which this knows nothing.
    pub fn between(before: &[u8], now: &[u8]) -> Option<Self> {
        let (before, now) = (Message::split(before, GROUPS)?, Message::split(now, GROUPS)?);
        let has_names = now.others.iter().any(|field| field.number == NAMED_ENDPOINTS);
        if before.others != now.others || has_names || before.list.len() != now.list.len() {
            return None;
        }
        let mut this = Self { reduced: now.others_written(), groups: Vec::with_capacity(now.list.len()) };
        for (before, now) in before.list.into_iter().zip(now.list) {
            let (before, now) = (Message::split(before, ENDPOINTS)?, Message::split(now, ENDPOINTS)?);
            let is_plain = |field: &Field<'_>| !matches!(field.number, ENDPOINT_LIST | LEDS);
            if before.others != now.others || !now.others.iter().all(is_plain) {
                return None;
            }
            let group = GroupChanges::between(&before.list, &now.list);
            let new = group.splices.iter().flat_map(|(_, places)| &now.list[places.clone()]);
            let mut reduced = now.others_written();
            new.for_each(|endpoint| put(&mut reduced, ENDPOINTS, endpoint));
            put(&mut this.reduced, GROUPS, &reduced);
            this.groups.push(group);
        }
        let all: usize = this.groups.iter().map(|group| group.now.max(group.before)).sum();
        let places = |(before, now): &(Range<usize>, Range<usize>)| before.len().max(now.len());
        let changed: usize = this.groups.iter().flat_map(|group| &group.splices).map(places).sum();
        (changed * MOST_CHANGED <= all).then_some(this)
    }
}

impl GroupChanges {
    fn between(before: &[&[u8]], now: &[&[u8]]) -> Self {
        let mut this = Self { before: before.len(), now: now.len(), splices: Vec::new() };
        let first = before.iter().zip(now).take_while(|(a, b)| a == b).count();
        let last = before[first..].iter().rev().zip(now[first..].iter().rev()).take_while(|(a, b)| a == b).count();
        let (until, end) = (before.len() - last, now.len() - last);
        // Where each stood, of those between.
        let places: HashMap<&[u8], usize> = before[first..until].iter().copied().zip(first..).collect();
        let mut old = first;
        // Where what is not kept begins, before and now.
        let mut open = (first, first);
        for (new, endpoint) in now.iter().enumerate().take(end).skip(first) {
            let kept = match before[..until].get(old) {
                Some(there) if there == endpoint => Some(old),
                _ => places.get(endpoint).copied().filter(|place| *place >= old),
            };
            if let Some(place) = kept {
                this.splice(open.0..place, open.1..new);
                old = place + 1;
                open = (old, new + 1);
            }
        }
        this.splice(open.0..until, open.1..end);
        this
    }

    fn splice(&mut self, before: Range<usize>, now: Range<usize>) {
        if !before.is_empty() || !now.is_empty() {
            self.splices.push((before, now));
        }
    }
}

/// A message taken apart: one repeated field of messages, and all others.
struct Message<'a> {
    list: Vec<&'a [u8]>,
    others: Vec<Field<'a>>,
}

#[derive(PartialEq)]
struct Field<'a> {
    number: u64,
    /// With its key.
    bytes: &'a [u8],
}

impl<'a> Message<'a> {
    /// `None`: it is no message.
    fn split(mut bytes: &'a [u8], list: u64) -> Option<Self> {
        let mut this = Self { list: Vec::new(), others: Vec::new() };
        while !bytes.is_empty() {
            let all = bytes;
            let key = varint(&mut bytes)?;
            let (number, kind) = (key >> 3, key & 7);
            let payload = match kind {
                0 => {
                    varint(&mut bytes)?;
                    None
                }
                1 => Some(bytes.split_off(..8)?),
                2 => {
                    let len = usize::try_from(varint(&mut bytes)?).ok()?;
                    Some(bytes.split_off(..len)?)
                }
                5 => Some(bytes.split_off(..4)?),
                _ => return None,
            };
            match payload {
                Some(payload) if number == list && kind == 2 => this.list.push(payload),
                _ => this.others.push(Field { number, bytes: &all[..all.len() - bytes.len()] }),
            }
        }
        Some(this)
    }

    fn others_written(&self) -> Vec<u8> {
        self.others.iter().flat_map(|field| field.bytes).copied().collect()
    }
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.split_off_first()?;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

/// Writes a field that is a message.
fn put(out: &mut Vec<u8>, number: u64, payload: &[u8]) {
    for mut value in [number << 3 | 2, payload.len() as u64] {
        while value >= 0x80 {
            out.push(value as u8 | 0x80);
            value >>= 7;
        }
        out.push(value as u8);
    }
    out.extend_from_slice(payload);
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_control_api::{
        Message as _,
        envoy::config::{core::v3 as core, endpoint::v3 as pb},
    };

    fn assignment(groups: &[&[u32]]) -> pb::ClusterLoadAssignment {
        let endpoint = |name: &u32| pb::LbEndpoint {
            host_identifier: Some(pb::lb_endpoint::HostIdentifier::EndpointName("x".repeat(*name as usize))),
            ..Default::default()
        };
        let group = |(priority, names): (usize, &&[u32])| pb::LocalityLbEndpoints {
            locality: Some(core::Locality { region: "r".into(), ..Default::default() }),
            lb_endpoints: names.iter().map(endpoint).collect(),
            priority: priority as u32,
            ..Default::default()
        };
        pb::ClusterLoadAssignment {
            cluster_name: "c".into(),
            endpoints: groups.iter().enumerate().map(group).collect(),
            ..Default::default()
        }
    }

    type Splices = Vec<(Range<usize>, Range<usize>)>;

    fn changes(before: &[&[u32]], now: &[&[u32]]) -> Option<(Vec<Splices>, Vec<Vec<u32>>)> {
        let bytes = |groups| assignment(groups).encode_to_vec();
        let found = AssignmentChanges::between(&bytes(before), &bytes(now))?;
        let reduced = pb::ClusterLoadAssignment::decode(&*found.reduced).unwrap();
        let name = |e: &pb::LbEndpoint| match &e.host_identifier {
            Some(pb::lb_endpoint::HostIdentifier::EndpointName(name)) => name.len() as u32,
            _ => 0,
        };
        let new = reduced.endpoints.iter().map(|group| group.lb_endpoints.iter().map(name).collect()).collect();
        // All else is there.
        let mut without = reduced;
        without.endpoints.iter_mut().for_each(|group| group.lb_endpoints.clear());
        assert_eq!(without, assignment(&vec![&[][..]; now.len()]));
        Some((found.groups.into_iter().map(|group| group.splices).collect(), new))
    }

    #[test]
    fn what_is_new_is_found_and_nothing_else() {
        let before: &[&[u32]] = &[&[1, 2, 3, 4, 5, 6, 7, 8]];
        let of = |now: &[u32]| changes(before, &[now]).map(|(mut splices, mut new)| (splices.remove(0), new.remove(0)));
        assert_eq!(of(before[0]), Some((vec![], vec![])));
        assert_eq!(of(&[1, 2, 3, 9, 5, 6, 7, 8]), Some((vec![(3..4, 3..4)], vec![9])));
        assert_eq!(of(&[1, 2, 4, 5, 6, 7, 8]), Some((vec![(2..3, 2..2)], vec![])));
        assert_eq!(of(&[9, 1, 2, 3, 4, 5, 6, 7, 8, 10]), Some((vec![(0..0, 0..1), (8..8, 9..10)], vec![9, 10])));
        assert_eq!(of(&[1, 9, 3, 4, 5, 6, 10, 8]), Some((vec![(1..2, 1..2), (6..7, 6..7)], vec![9, 10])));
        // One that moved is new at its place.
        assert_eq!(of(&[2, 3, 4, 5, 6, 7, 1, 8]), Some((vec![(0..1, 0..0), (7..7, 6..7)], vec![1])));
        // Twice the same.
        assert_eq!(of(&[1, 1, 2, 3, 4, 5, 6, 7, 8]), Some((vec![(1..1, 1..2)], vec![1])));
        // Too much of it.
        assert_eq!(of(&[9, 10, 11, 12, 13, 6, 7, 8]), None);
    }

    #[test]
    fn each_group_has_its_own_changes() {
        let (splices, new) = changes(&[&[1, 2, 3], &[4, 5, 6]], &[&[1, 3], &[4, 5, 6, 7]]).unwrap();
        assert_eq!((splices, new), (vec![vec![(1..2, 1..1)], vec![(3..3, 3..4)]], vec![vec![], vec![7]]));
        assert_eq!(changes(&[&[1, 2, 3]], &[&[1, 2, 3], &[4]]), None);
    }

    #[test]
    fn whatever_else_differs_has_to_be_read() {
        let base = assignment(&[&[1, 2, 3]]);
        let differs = |change: fn(&mut pb::ClusterLoadAssignment)| {
            let mut other = base.clone();
            change(&mut other);
            AssignmentChanges::between(&base.encode_to_vec(), &other.encode_to_vec()).is_none()
        };
        assert!(differs(|p| p.endpoints[0].priority = 1));
        assert!(differs(|p| p.endpoints[0].load_balancing_weight = Some(2)));
        assert!(differs(|p| p.cluster_name = "d".into()));
        assert!(differs(|p| p.policy = Some(Default::default())));
        assert!(differs(|p| {
            p.named_endpoints.insert("x".into(), Default::default());
        }));
        assert!(AssignmentChanges::between(&[2], &[2]).is_none());
        assert!(AssignmentChanges::between(&[0x12, 5, 1], &[]).is_none());
    }
}
