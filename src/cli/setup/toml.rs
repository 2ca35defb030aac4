//! TOML files changed in place: what is not touched keeps its order, form and comments.

use toml_edit::{Array, DocumentMut, Item, Key, Table, TableLike, Value};

/// First line of a file that `setup` made itself.
fn header(engine: &str) -> String {
    format!("# Made by `gpucell setup {engine}`; with --remove it goes away again.\n")
}

/// A file's content.
pub(super) struct File {
    document: DocumentMut,
    /// The header, if it is there: kept apart, since a comment otherwise belongs to the table behind it.
    header: String,
    /// It had something in it.
    given: bool,
}

impl File {
    /// Reads a text; none is a file that is yet to be made.
    ///
    /// # Errors
    /// What is wrong, and where.
    pub(super) fn parse(old: Option<&str>, engine: &str) -> Result<File, String> {
        let ours = header(engine);
        let text = old.unwrap_or(&ours);
        let (header, body) = match text.strip_prefix(&ours) {
            Some(rest) => (ours.clone(), rest),
            None => (String::new(), text),
        };
        let document = body.parse::<DocumentMut>().map_err(|e| {
            let lines = header.lines().count();
            let line = e.span().map_or(0, |span| {
                1 + lines
                    + body.as_bytes()[..span.start.min(body.len())]
                        .iter()
                        .filter(|b| **b == b'\n')
                        .count()
            });
            format!("line {line}: {}", e.message().replace('\n', "; "))
        })?;
        Ok(File {
            document,
            header,
            given: !body.trim().is_empty(),
        })
    }

    /// Is there nothing in it yet?
    pub(super) fn is_blank(&self) -> bool {
        !self.given
    }

    /// The value at a path.
    pub(super) fn get(&self, path: &[&str]) -> Option<&Item> {
        let mut at: &Item = self.document.as_item();
        for name in path {
            at = at.as_table_like()?.get(name)?;
        }
        Some(at)
    }

    /// Sets a value; tables on the way are made.
    ///
    /// # Errors
    /// Something on the way that is no table.
    pub(super) fn set(&mut self, path: &[&str], new: impl Into<Value>) -> Result<(), String> {
        let (last, way) = path.split_last().ok_or("an empty path")?;
        let at = self.table(way)?;
        let new = new.into();
        match at.get_mut(last).and_then(Item::as_value_mut) {
            // The comment behind it stays.
            Some(there) if !same(there, &new) => {
                let decor = there.decor().clone();
                *there = new;
                *there.decor_mut() = decor;
            }
            Some(_) => {}
            None => {
                at.insert(last, Item::Value(new));
            }
        }
        Ok(())
    }

    /// The table at a path, made if need be.
    fn table(&mut self, path: &[&str]) -> Result<&mut dyn TableLike, String> {
        let mut at: &mut dyn TableLike = self.document.as_table_mut();
        for (i, name) in path.iter().enumerate() {
            let item = at.entry(name).or_insert_with(|| {
                // No header of its own while it holds only tables.
                let mut table = Table::new();
                table.set_implicit(true);
                Item::Table(table)
            });
            at = item
                .as_table_like_mut()
                .ok_or_else(|| format!("{} is not a table", path[..=i].join(".")))?;
        }
        Ok(at)
    }

    /// Copies what a table has and another lacks, without comments and blank lines.
    ///
    /// # Errors
    /// One of them is no table.
    pub(super) fn copy(&mut self, from: &[&str], to: &[&str]) -> Result<(), String> {
        let Some(item) = self.get(from) else {
            return Ok(());
        };
        let source = item
            .as_table_like()
            .ok_or_else(|| format!("{} is not a table", from.join(".")))?;
        let bare = bare(source);
        let at = self.table(to)?;
        for (key, item) in bare.into_iter() {
            if !at.contains_key(&key) {
                at.insert(&key, item);
            }
        }
        Ok(())
    }

    /// Removes what is at a path, and tables on the way that are then empty.
    pub(super) fn remove(&mut self, path: &[&str]) {
        fn go(at: &mut dyn TableLike, path: &[&str]) {
            let Some((name, rest)) = path.split_first() else {
                return;
            };
            if rest.is_empty() {
                at.remove(name);
                return;
            }
            let Some(inner) = at.get_mut(name).and_then(Item::as_table_like_mut) else {
                return;
            };
            let before = inner.is_empty();
            go(inner, rest);
            if !before && inner.is_empty() {
                at.remove(name);
            }
        }
        go(self.document.as_table_mut(), path);
    }

    /// The text; `None` if the file was made by `setup` and holds nothing but `version` now.
    ///
    /// # Errors
    /// What was written can't be read again, which would be a mistake of ours.
    pub(super) fn text(&self) -> Result<Option<String>, String> {
        let body = self.document.to_string();
        let made = !self.header.is_empty();
        if made && !body.contains('#') && self.document.iter().all(|(key, _)| key == "version") {
            return Ok(None);
        }
        body.parse::<DocumentMut>()
            .map_err(|e| format!("the changed text is not valid: {}", e.message()))?;
        Ok(Some(format!("{}{body}", self.header)))
    }
}

/// Are two values equal, whatever their form in the text?
fn same(a: &Value, b: &Value) -> bool {
    let plain = |v: &Value| {
        let mut v = v.clone();
        v.decor_mut().clear();
        if let Some(list) = v.as_array_mut() {
            *list = list
                .iter()
                .cloned()
                .map(|mut v| {
                    v.decor_mut().clear();
                    v
                })
                .collect::<Array>();
        }
        v.to_string()
    };
    plain(a) == plain(b)
}

fn bare(from: &dyn TableLike) -> Table {
    let mut table = Table::new();
    for (key, item) in from.iter() {
        let item = match item {
            Item::Value(v) => {
                let mut v = v.clone();
                v.decor_mut().clear();
                Item::Value(v)
            }
            Item::Table(t) => Item::Table(bare(t)),
            other => other.clone(),
        };
        table.insert_formatted(&Key::new(key), item);
    }
    table
}
