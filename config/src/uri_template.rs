//! URI templates of routes (`envoy.extensions.path.match.uri_template.v3`): `/users/{id}/posts/{rest=**}`, and the
//! rewrites that go with them.

use crate::re2;
use regex::bytes::Regex;
use std::fmt::Write as _;

/// A compiled template.
#[derive(Clone, Debug)]
pub struct UriTemplate {
    regex: Regex,
    names: Vec<String>,
}

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

const MOST_VARIABLES: usize = 5;
const LONGEST_NAME: usize = 16;
/// `*` is one segment, `**` any number of them, of these characters.
const SEGMENT: &str = r"[-a-zA-Z0-9._~%!$&'()*+,;:@=]+";
const SEGMENTS: &str = r"[-a-zA-Z0-9._~%!$&'()*+,;:@=/]*";

fn is_literal(c: char) -> bool {
    c.is_ascii_alphanumeric() || "-._~%!$&'()+,;:@=".contains(c)
}

fn is_name(name: &str) -> bool {
    name.len() <= LONGEST_NAME
        && name.starts_with(|c: char| c.is_ascii_alphabetic())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

/// Turns a template into a regular expression.
#[derive(Default)]
struct Parser {
    out: String,
    names: Vec<String>,
    /// A `**` was there; no other wildcard may follow.
    had_rest: bool,
}

impl UriTemplate {
    /// Parses a template, or says what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(bad) = text.chars().find(|c| !c.is_ascii_graphic()) {
            return Err(format!("{bad:?} may not stand in a template"));
        }
        let rest = text.strip_prefix('/').ok_or("a template starts with a slash")?;
        let mut parser = Parser::default();
        parser.out.push('/');
        parser.path(rest)?;
        let regex = re2::compile(&parser.out, true)?;
        Ok(Self { regex, names: parser.names })
    }

    /// True if it takes a whole path (without query).
    pub fn matches(&self, path: &[u8]) -> bool {
        self.regex.is_match(path)
    }

    /// The path that `rewrite` makes of one that the template takes.
    pub fn rewrite(&self, path: &[u8], rewrite: &UriTemplateRewrite) -> Option<Vec<u8>> {
        let captures = self.regex.captures(path)?;
        let mut new = Vec::with_capacity(path.len());
        for part in &rewrite.parts {
            match part {
                RewritePart::Literal(text) => new.extend_from_slice(text.as_bytes()),
                RewritePart::Variable(name) => {
                    let group = self.names.iter().position(|known| known == name)?;
                    new.extend_from_slice(captures.get(group + 1).map_or(b"", |group| group.as_bytes()));
                }
            }
        }
        Some(new)
    }
}

impl Parser {
    /// A literal may stand before a variable in a segment; a literal after one is the template's end.
    fn path(&mut self, mut rest: &str) -> Result<(), String> {
        while !rest.is_empty() {
            if let Some(after) = self.wildcard(rest)? {
                rest = after;
            } else if let Some(body) = rest.strip_prefix('{') {
                let (body, after) = body.split_once('}').ok_or("an opening brace has no closing one")?;
                self.variable(body)?;
                rest = after;
            } else {
                rest = self.literal(rest)?;
                if !rest.starts_with('/') {
                    continue;
                }
            }
            match rest.strip_prefix('/') {
                Some(after) => {
                    self.out.push('/');
                    rest = after;
                }
                None if rest.chars().all(is_literal) => {
                    self.quoted(rest);
                    return Ok(());
                }
                None => return Err(format!("{rest:?} is no literal")),
            }
        }
        Ok(())
    }

    fn wildcard<'t>(&mut self, rest: &'t str) -> Result<Option<&'t str>, String> {
        let (regex, after) = match (rest.strip_prefix("**"), rest.strip_prefix('*')) {
            (Some(after), _) => (SEGMENTS, after),
            (None, Some(after)) => (SEGMENT, after),
            (None, None) => return Ok(None),
        };
        if self.had_rest {
            return Err("no wildcard follows **".into());
        }
        self.had_rest = regex == SEGMENTS;
        self.out.push_str(regex);
        Ok(Some(after))
    }

    fn literal<'t>(&mut self, rest: &'t str) -> Result<&'t str, String> {
        let (literal, after) = rest.split_at(rest.find(|c| !is_literal(c)).unwrap_or(rest.len()));
        if literal.is_empty() {
            return Err(format!("{rest:?} begins with what is neither a literal, nor a wildcard or variable"));
        }
        if after.starts_with('*') {
            return Err(format!("{rest:?} has a wildcard that does not fill its segment"));
        }
        self.quoted(literal);
        Ok(after)
    }

    /// Inside braces: `name` or `name=pattern`.
    fn variable(&mut self, body: &str) -> Result<(), String> {
        let (name, pattern) = body.split_once('=').unwrap_or((body, "*"));
        if !is_name(name) {
            return Err(format!(
                "{name:?} is no variable name: a letter, then letters, digits or _, {LONGEST_NAME} at the most"
            ));
        }
        if self.names.iter().any(|known| known == name) {
            return Err(format!("variable {name} stands twice"));
        }
        if self.names.len() == MOST_VARIABLES {
            return Err(format!("there are more than {MOST_VARIABLES} variables"));
        }
        self.names.push(name.to_owned());
        if pattern.is_empty() {
            return Err(format!("variable {name} has an empty pattern"));
        }
        self.out.push('(');
        let mut rest = pattern;
        while !rest.is_empty() {
            match self.wildcard(rest)? {
                Some(after) => rest = after,
                None => {
                    rest = self.literal(rest)?;
                    if !rest.starts_with('/') {
                        continue;
                    }
                }
            }
            match rest.strip_prefix('/') {
                Some(after) if !after.is_empty() => {
                    self.out.push('/');
                    rest = after;
                }
                None if rest.is_empty() => {}
                _ => return Err(format!("{rest:?} may not end a variable's pattern")),
            }
        }
        self.out.push(')');
        Ok(())
    }

    fn quoted(&mut self, literal: &str) {
        // Writing to a String cannot fail.
        let _ = write!(self.out, r"\Q{literal}\E");
    }
}

impl UriTemplateRewrite {
    /// Parses a rewrite; whether its variables are the template's is for [`UriTemplateRewrite::check`].
    pub fn parse(text: &str) -> Result<Self, String> {
        if !text.starts_with('/') {
            return Err("a rewrite starts with a slash".into());
        }
        if text.contains("//") {
            return Err("two slashes may not follow each other".into());
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let (literal, after) = rest.split_at(rest.find('{').unwrap_or(rest.len()));
            if let Some(bad) = literal.chars().find(|c| !"/*".contains(*c) && !is_literal(*c)) {
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
            RewritePart::Variable(name) if !template.names.contains(name) => Some(name),
            _ => None,
        });
        unknown.map_or(Ok(()), |name| Err(format!("variable {name:?} is not in the route's template")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(template: &str, rewrite: &str, path: &str) -> Option<String> {
        let template = UriTemplate::parse(template).unwrap();
        let rewrite = UriTemplateRewrite::parse(rewrite).unwrap();
        rewrite.check(&template).unwrap();
        assert_eq!(template.matches(path.as_bytes()), template.rewrite(path.as_bytes(), &rewrite).is_some());
        template.rewrite(path.as_bytes(), &rewrite).map(|new| String::from_utf8(new).unwrap())
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
        assert_eq!(run("/{v=**}.m3u8", "/r/{v}", "/a/b.m3u8").as_deref(), Some("/r/a/b"));
        assert_eq!(run("/a{v}.c", "/{v}", "/abc.c").as_deref(), Some("/bc"));
        assert_eq!(run("/{v}/**", "/{v}", "/a"), None);
        assert_eq!(run("/**", "/x", "/a/{b}"), None);
    }

    #[test]
    fn bad_templates() {
        for bad in [
            "a",
            "/{",
            "/{1a}",
            "/{a}/{a}",
            "/{a}{b}",
            "/a b",
            "/{a=}x",
            "/{a}/{b}/{c}/{d}/{e}/{f}",
            "//a",
            "/{a=**}/{b}",
            "/**/*",
            "/{a=*a}",
            "/{a=x/}",
            "/{a=/x}",
            "/}",
            "/a[b",
            "/{a-b}",
            "/{abcdefghijklmnopq}",
            "/a*",
            "/***",
        ] {
            assert!(UriTemplate::parse(bad).is_err(), "{bad}");
        }
        let template = UriTemplate::parse("/{a}").unwrap();
        assert!(UriTemplateRewrite::parse("/{b}").unwrap().check(&template).is_err());
        assert!(UriTemplateRewrite::parse("x").is_err() && UriTemplateRewrite::parse("//").is_err());
    }
}
