//! URI templates of routes (`envoy.extensions.path.match.uri_template.v3`): `/users/{id}/posts/{rest=**}`.

/// A parsed template: one element for each path segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UriTemplate {
    elements: Vec<Element>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Element {
    Literal(String),
    /// `*`
    One,
    /// `**`, with what must come after it in the last segment.
    Rest(String),
    Variable {
        name: String,
        pattern: Vec<Element>,
    },
}

/// What the variables of a template stood for.
pub type Captures<'p> = Vec<(String, &'p str)>;

/// What a rewrite is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UriTemplateRewrite {
    parts: Vec<RewritePart>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum RewritePart {
    Literal(String),
    Variable(String),
}

const LITERAL: &str = "-._~!$&'()+,;:@%";
const MOST_VARIABLES: usize = 5;

fn is_literal(c: char) -> bool {
    c.is_ascii_alphanumeric() || LITERAL.contains(c)
}

fn is_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 16
        && name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

impl UriTemplate {
    /// Parses a template, or says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut rest = text.strip_prefix('/').ok_or("a template starts with a slash")?;
        let mut elements = Vec::new();
        loop {
            let element = if let Some(body) = rest.strip_prefix('{') {
                let (body, after) = body.split_once('}').ok_or("an opening brace has no closing one")?;
                rest = after;
                variable(body)?
            } else {
                let end = rest.find(['/', '{']).unwrap_or(rest.len());
                let (segment, after) = rest.split_at(end);
                rest = after;
                segment_of(segment)?
            };
            elements.push(element);
            if rest.is_empty() {
                break;
            }
            // `**` may be followed by a literal suffix.
            let is_rest = matches!(elements.last(), Some(Element::Rest(_)))
                || matches!(elements.last(), Some(Element::Variable { pattern, .. }) if matches!(pattern.last(), Some(Element::Rest(_))));
            if is_rest {
                if rest.chars().all(is_literal) {
                    elements.push(Element::Rest(rest.to_owned()));
                    break;
                }
                return Err("nothing but a literal suffix follows **".into());
            }
            rest = rest.strip_prefix('/').ok_or("a variable fills its whole segment")?;
        }
        let names: Vec<&str> = elements
            .iter()
            .filter_map(|e| match e {
                Element::Variable { name, .. } => Some(name.as_str()),
                _ => None,
            })
            .collect();
        if names.len() > MOST_VARIABLES {
            return Err(format!("found {} variables, allowed are {MOST_VARIABLES}", names.len()));
        }
        if let Some(twice) = names.iter().enumerate().find(|(i, name)| names[..*i].contains(name)) {
            return Err(format!("variable {} stands twice", twice.1));
        }
        Ok(Self { elements })
    }

    /// Matches a whole path (without query) and says what the variables stand for.
    pub fn matches<'p>(&self, path: &'p str) -> Option<Captures<'p>> {
        let mut captures = Vec::new();
        let rest = path.strip_prefix('/')?;
        let end = walk(&self.elements, rest, &mut captures)?;
        end.is_empty().then_some(captures)
    }

    /// The names of the variables.
    pub fn variables(&self) -> impl Iterator<Item = &str> {
        self.elements.iter().filter_map(|e| match e {
            Element::Variable { name, .. } => Some(name.as_str()),
            _ => None,
        })
    }
}

fn segment_of(segment: &str) -> Result<Element, String> {
    match segment {
        "*" => Ok(Element::One),
        "**" => Ok(Element::Rest(String::new())),
        _ => match segment.strip_prefix("**") {
            Some(suffix) if suffix.chars().all(is_literal) => Ok(Element::Rest(suffix.into())),
            None if segment.chars().all(is_literal) => Ok(Element::Literal(segment.into())),
            _ => Err(format!("{segment:?} is neither a literal, nor * or **")),
        },
    }
}

fn variable(body: &str) -> Result<Element, String> {
    let (name, pattern) = body.split_once('=').unwrap_or((body, "*"));
    if !is_name(name) {
        return Err(format!("{name:?} is no variable name: a letter, then up to 15 letters, digits or _"));
    }
    let pattern = pattern.split('/').map(segment_of).collect::<Result<Vec<_>, _>>()?;
    if pattern.iter().rev().skip(1).any(|e| matches!(e, Element::Rest(_))) {
        return Err("nothing follows **".into());
    }
    Ok(Element::Variable { name: name.into(), pattern })
}

/// Walks the elements over the path's segments; gives what is left of the path.
fn walk<'p>(elements: &[Element], mut rest: &'p str, captures: &mut Captures<'p>) -> Option<&'p str> {
    for (i, element) in elements.iter().enumerate() {
        if i > 0
            && !matches!((&elements[i - 1], element), (Element::Rest(_) | Element::Variable { .. }, Element::Rest(_)) if rest.is_empty())
        {
            rest = rest.strip_prefix('/')?;
        }
        let segment_end = rest.find('/').unwrap_or(rest.len());
        match element {
            Element::Literal(literal) => {
                if rest[..segment_end] != **literal {
                    return None;
                }
                rest = &rest[segment_end..];
            }
            Element::One => {
                if segment_end == 0 {
                    return None;
                }
                rest = &rest[segment_end..];
            }
            Element::Rest(suffix) => {
                if !rest.ends_with(suffix.as_str()) {
                    return None;
                }
                rest = "";
            }
            Element::Variable { name, pattern } => {
                let start = rest;
                rest = walk(pattern, rest, captures)?;
                captures.push((name.clone(), &start[..start.len() - rest.len()]));
            }
        }
    }
    Some(rest)
}

impl UriTemplateRewrite {
    /// Parses a rewrite; whether its variables are the template's is for [`UriTemplateRewrite::check`].
    pub fn parse(text: &str) -> Result<Self, String> {
        if !text.starts_with('/') {
            return Err("a rewrite starts with a slash".into());
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let (literal, after) = rest.split_at(rest.find('{').unwrap_or(rest.len()));
            if let Some(bad) = literal.chars().find(|c| *c != '/' && !is_literal(*c)) {
                return Err(format!("{bad:?} may not stand in a path"));
            }
            if !literal.is_empty() {
                parts.push(RewritePart::Literal(literal.into()));
            }
            rest = after;
            if let Some(body) = rest.strip_prefix('{') {
                let (name, after) = body.split_once('}').ok_or("an opening brace has no closing one")?;
                parts.push(RewritePart::Variable(name.into()));
                rest = after;
            }
        }
        Ok(Self { parts })
    }

    /// Says which variable `template` does not have, if there is one.
    pub fn check(&self, template: &UriTemplate) -> Result<(), String> {
        let unknown = self.parts.iter().find_map(|part| match part {
            RewritePart::Variable(name) if !template.variables().any(|known| known == name) => Some(name),
            _ => None,
        });
        unknown.map_or(Ok(()), |name| Err(format!("variable {name:?} is not in the route's template")))
    }

    /// The new path.
    pub fn apply(&self, captures: &Captures<'_>) -> String {
        let mut path = String::new();
        for part in &self.parts {
            match part {
                RewritePart::Literal(text) => path.push_str(text),
                RewritePart::Variable(name) => {
                    path.push_str(captures.iter().find(|(known, _)| known == name).map_or("", |(_, value)| value));
                }
            }
        }
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(template: &str, rewrite: &str, path: &str) -> Option<String> {
        let template = UriTemplate::parse(template).unwrap();
        let rewrite = UriTemplateRewrite::parse(rewrite).unwrap();
        template.matches(path).map(|captures| rewrite.apply(&captures))
    }

    #[test]
    fn matches_and_rewrites() {
        assert_eq!(run("/users/{id}/posts/{post}", "/p/{post}/{id}", "/users/7/posts/9").as_deref(), Some("/p/9/7"));
        assert_eq!(run("/users/{id}/posts/{post}", "/p/{post}/{id}", "/users/7/posts/"), None);
        assert_eq!(run("/users/{id}/posts/{post}", "/p/{post}/{id}", "/users/7/8/posts/9"), None);
        assert_eq!(run("/files/{rest=**}", "/f/{rest}", "/files/a/b/c").as_deref(), Some("/f/a/b/c"));
        assert_eq!(run("/files/{rest=**}", "/f/{rest}", "/files/").as_deref(), Some("/f/"));
        assert_eq!(run("/one/*", "/x", "/one/x").as_deref(), Some("/x"));
        assert_eq!(run("/one/*", "/x", "/one/x/y"), None);
        assert_eq!(run("/one/*", "/x", "/one"), None);
        assert_eq!(run("/a/{v=x/*}/b", "/{v}", "/a/x/1/b").as_deref(), Some("/x/1"));
    }

    #[test]
    fn bad_templates() {
        for bad in ["a", "/{", "/{1a}", "/{a}/{a}", "/{a}{b}", "/**/x", "/a b", "/{a=}x", "/{a}/{b}/{c}/{d}/{e}/{f}"] {
            assert!(UriTemplate::parse(bad).is_err(), "{bad}");
        }
        let template = UriTemplate::parse("/{a}").unwrap();
        assert!(UriTemplateRewrite::parse("/{b}").unwrap().check(&template).is_err());
        assert!(UriTemplateRewrite::parse("x").is_err());
    }
}
