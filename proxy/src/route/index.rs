//! Finds the first route that may match a path without a walk over all routes.
//!
//! Exact paths and prefixes go into hash tables by length; what has no fixed text (regular expressions, templates,
//! CONNECT) is looked at one by one. Candidates come out in the order of the configuration, so that the first match wins.

use foldhash::HashMap;
use smallvec::SmallVec;
use weft_config::route::{PathMatch, RouteMatch};

/// Texts by their length, shortest first, each with the numbers of the routes that have it.
type ByLength = Vec<(usize, HashMap<Box<[u8]>, Vec<u32>>)>;

/// Routes of one virtual host by what their path condition needs.
#[derive(Debug, Default)]
pub struct PathIndex {
    /// Route numbers by exact path; the text in lower case for those that ignore case.
    exact: HashMap<Box<[u8]>, Vec<u32>>,
    exact_ignoring_case: HashMap<Box<[u8]>, Vec<u32>>,
    /// Prefixes by length, longest last; each with the routes that have it.
    prefixes: ByLength,
    prefixes_ignoring_case: ByLength,
    rest: Vec<u32>,
    /// Few routes are walked faster than looked up.
    walk: Option<u32>,
}

/// With fewer routes than this, a walk is cheaper than the look-ups.
const FEW: usize = 8;

impl PathIndex {
    pub fn new<'a>(routes: impl ExactSizeIterator<Item = &'a RouteMatch>) -> Self {
        let mut index = Self::default();
        if routes.len() <= FEW {
            index.walk = Some(routes.len() as u32);
            return index;
        }
        for (number, route) in (0u32..).zip(routes) {
            let (text, is_prefix) = match &route.path {
                PathMatch::Exact(path) => (path, false),
                PathMatch::Prefix(prefix) | PathMatch::SeparatedPrefix(prefix) => (prefix, true),
                PathMatch::Regex(_) | PathMatch::Connect | PathMatch::Template(_) => {
                    index.rest.push(number);
                    continue;
                }
            };
            let text: Box<[u8]> =
                if route.case_sensitive { text.as_bytes().into() } else { text.to_ascii_lowercase().as_bytes().into() };
            match (is_prefix, route.case_sensitive) {
                (false, true) => index.exact.entry(text).or_default().push(number),
                (false, false) => index.exact_ignoring_case.entry(text).or_default().push(number),
                (true, true) => add_prefix(&mut index.prefixes, text, number),
                (true, false) => add_prefix(&mut index.prefixes_ignoring_case, text, number),
            }
        }
        index
    }

    /// The first route, in order, that `matches` takes. It is asked only for routes whose text fits `path`.
    pub fn first(&self, path: &[u8], mut matches: impl FnMut(u32) -> bool) -> Option<u32> {
        if let Some(count) = self.walk {
            return (0..count).find(|number| matches(*number));
        }
        let mut lists: SmallVec<[&[u32]; 8]> = SmallVec::new();
        let mut add = |list| add_list(&mut lists, list);
        add(self.exact.get(path));
        for (length, prefixes) in &self.prefixes {
            if let Some(start) = path.get(..*length) {
                add(prefixes.get(start));
            }
        }
        if !self.exact_ignoring_case.is_empty() || !self.prefixes_ignoring_case.is_empty() {
            let lower = path.to_ascii_lowercase();
            add(self.exact_ignoring_case.get(&*lower));
            for (length, prefixes) in &self.prefixes_ignoring_case {
                if let Some(start) = lower.get(..*length) {
                    add(prefixes.get(start));
                }
            }
        }
        add(Some(&self.rest));
        // Merge by number: each list is in order already.
        loop {
            let (at, number) =
                lists.iter().enumerate().filter_map(|(i, list)| Some((i, *list.first()?))).min_by_key(|(_, n)| *n)?;
            if matches(number) {
                return Some(number);
            }
            lists[at] = &lists[at][1..];
        }
    }
}

fn add_list<'i>(lists: &mut SmallVec<[&'i [u32]; 8]>, list: Option<&'i Vec<u32>>) {
    lists.extend(list.map(Vec::as_slice));
}

fn add_prefix(prefixes: &mut ByLength, text: Box<[u8]>, number: u32) {
    let at = prefixes.binary_search_by_key(&text.len(), |(length, _)| *length).unwrap_or_else(|at| {
        prefixes.insert(at, (text.len(), HashMap::default()));
        at
    });
    prefixes[at].1.entry(text).or_default().push(number);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(path: PathMatch, case_sensitive: bool) -> RouteMatch {
        RouteMatch {
            path,
            case_sensitive,
            runtime_fraction: None,
            headers: Vec::new(),
            query_parameters: Vec::new(),
            cookies: Vec::new(),
            grpc: false,
            tls: None,
            dynamic_metadata: Vec::new(),
            filter_state: Vec::new(),
        }
    }

    fn fits(route: &RouteMatch, path: &[u8]) -> bool {
        let same = |a: &[u8], b: &str| {
            if route.case_sensitive { a == b.as_bytes() } else { a.eq_ignore_ascii_case(b.as_bytes()) }
        };
        match &route.path {
            PathMatch::Exact(text) => same(path, text),
            PathMatch::Prefix(text) => path.get(..text.len()).is_some_and(|start| same(start, text)),
            PathMatch::Regex(regex) => regex.is_match(path),
            _ => false,
        }
    }

    /// The index finds what a walk finds, for any routes in any order.
    #[test]
    fn the_first_route_wins() {
        let seed = 11;
        println!("seed {seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        let text = |rng: &mut fastrand::Rng| {
            (0..rng.usize(1..4)).map(|_| *rng.choice(&["/a", "/b", "/A", "c", "/"]).unwrap()).collect::<String>()
        };
        for _ in 0..300 {
            let routes: Vec<_> = (0..rng.usize(1..40))
                .map(|_| {
                    let path = match rng.u8(0..8) {
                        0 => {
                            PathMatch::Regex(weft_config::re2::compile(&format!("{}.*", text(&mut rng)), true).unwrap())
                        }
                        1..4 => PathMatch::Exact(text(&mut rng)),
                        _ => PathMatch::Prefix(text(&mut rng)),
                    };
                    route(path, rng.bool())
                })
                .collect();
            let index = PathIndex::new(routes.iter().collect::<Vec<_>>().into_iter());
            for _ in 0..20 {
                let path = text(&mut rng);
                let walked = routes.iter().position(|r| fits(r, path.as_bytes())).map(|n| n as u32);
                assert_eq!(
                    index.first(path.as_bytes(), |n| fits(&routes[n as usize], path.as_bytes())),
                    walked,
                    "{path}"
                );
            }
        }
    }

    /// Ten thousand routes: only those whose text fits are asked.
    #[test]
    fn a_match_does_not_walk() {
        let routes: Vec<_> = (0..10_000).map(|i| route(PathMatch::Exact(format!("/exact/{i}")), true)).collect();
        let index = PathIndex::new(routes.iter().collect::<Vec<_>>().into_iter());
        let mut asked = 0;
        let found = index.first(b"/exact/9999", |_| {
            asked += 1;
            true
        });
        assert_eq!((found, asked), (Some(9999), 1));
    }
}
