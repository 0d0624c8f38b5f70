//! Crates depend on each other only along the edges ARCHITECTURE.md allows.
//!
//! The table of crates in ARCHITECTURE.md is the rule, the manifests are what
//! is checked, development and build dependencies included: a test that needs
//! a forbidden edge is a sign that the code does, too.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// What a crate may depend on.
#[derive(Debug, PartialEq)]
enum Allowed {
    Everything,
    Only(BTreeSet<String>),
}

fn root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest
        .ancestors()
        .nth(2)
        .expect("the crate is two folders deep")
        .to_path_buf()
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The rows ``| `crate` | `edge`, `edge` | ... |`` of a document.
fn rules(document: &str) -> BTreeMap<String, Allowed> {
    let mut rules = BTreeMap::new();
    for line in document.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let ["", name, edges, _, ""] = cells[..] else {
            continue;
        };
        let Some(name) = name.strip_prefix('`').and_then(|name| name.strip_suffix('`')) else {
            continue;
        };
        let allowed = match edges {
            "everything" => Allowed::Everything,
            "nothing" => Allowed::Only(BTreeSet::new()),
            _ => Allowed::Only(
                edges
                    .split(',')
                    .map(|edge| edge.trim().trim_matches('`').to_owned())
                    .collect(),
            ),
        };
        assert!(
            rules.insert(name.to_owned(), allowed).is_none(),
            "ARCHITECTURE.md has two rows for {name}"
        );
    }
    rules
}

/// The crates of this project a manifest names as a dependency of any sort.
fn edges(manifest: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut inside = false;
    for line in manifest.lines().map(str::trim) {
        if let Some(header) = line.strip_prefix('[') {
            let header = header.trim_end_matches(']');
            inside = header.ends_with("dependencies");
            // [dependencies.skiff-base]
            if let Some((table, name)) = header.rsplit_once('.')
                && table.ends_with("dependencies")
            {
                inside = true;
                found.extend(name.trim_matches('"').strip_prefix("skiff-").map(str::to_owned));
            }
            continue;
        }
        if !inside || line.starts_with('#') {
            continue;
        }
        // skiff-base.workspace = true; other = { package = "skiff-base" }; package = "skiff-base"
        let key = line
            .split(['.', '='])
            .next()
            .unwrap_or_default()
            .trim()
            .trim_matches('"');
        found.extend(key.strip_prefix("skiff-").map(str::to_owned));
        let renamed = line
            .split("package")
            .nth(1)
            .and_then(|rest| rest.split('"').nth(1));
        found.extend(
            renamed
                .and_then(|name| name.strip_prefix("skiff-"))
                .map(str::to_owned),
        );
    }
    found
}

/// Every breach of `rules`, in words.
fn breaches(rules: &BTreeMap<String, Allowed>, crates: &BTreeMap<String, BTreeSet<String>>) -> Vec<String> {
    let mut found = Vec::new();
    for (name, edges) in crates {
        match rules.get(name) {
            None => found.push(format!("{name} has no row")),
            Some(Allowed::Everything) => {}
            Some(Allowed::Only(allowed)) => {
                found.extend(
                    edges
                        .difference(allowed)
                        .map(|edge| format!("{name} must not depend on {edge}")),
                );
            }
        }
    }
    found.extend(
        rules
            .keys()
            .filter(|name| !crates.contains_key(*name))
            .map(|name| format!("there is no crate {name}")),
    );
    for (name, allowed) in rules {
        if let Allowed::Only(allowed) = allowed {
            let unknown = allowed.iter().filter(|edge| !rules.contains_key(*edge));
            found.extend(unknown.map(|edge| format!("the row of {name} names {edge}, which has none")));
        }
    }
    found
}

#[test]
fn crates_keep_to_the_edges_of_the_architecture() {
    let rules = rules(&read(&root().join("ARCHITECTURE.md")));
    let mut crates = BTreeMap::new();
    for entry in fs::read_dir(root().join("src"))
        .expect("src")
        .map(|entry| entry.expect("entry").path())
    {
        let folder = entry.file_name().expect("name").to_string_lossy().into_owned();
        let manifest = read(&entry.join("Cargo.toml"));
        let package = if folder == "skiff" {
            folder.clone()
        } else {
            format!("skiff-{folder}")
        };
        assert!(
            manifest.contains(&format!("name = \"{package}\"")),
            "src/{folder} is not the package {package}"
        );
        crates.insert(folder, edges(&manifest));
    }
    assert_eq!(
        breaches(&rules, &crates),
        Vec::<String>::new(),
        "see the table of crates in ARCHITECTURE.md"
    );
}

#[test]
fn breaches_are_found_in_every_spelling() {
    let table = "\
| crate | may use | what for |\n|---|---|---|\n| `base` | nothing | x |\n| `api` | nothing | x |\n\
| `store` | `base`, `lost` | x |\n| `skiff` | everything | x |\n| `gone` | nothing | x |\n";
    let rules = rules(table);
    let crates: BTreeMap<String, BTreeSet<String>> = [
        ("base", "[package]\nname = \"skiff-base\"\n[dependencies]\n# skiff-api.workspace = true\nserde = \"1\"\n"),
        ("api", "[dev-dependencies]\nskiff-base.workspace = true\n[lints]\nworkspace = true\n"),
        ("store", "[dependencies]\nhidden = { workspace = true, package = \"skiff-api\" }\n[build-dependencies.skiff-skiff]\n"),
        ("skiff", "[dependencies]\nskiff-api = { path = \"../api\" }\n"),
        ("new", "[target.'cfg(unix)'.dependencies]\nskiff-base = { workspace = true }\n"),
    ]
    .map(|(name, manifest)| (name.to_owned(), edges(manifest)))
    .into();
    assert_eq!(
        breaches(&rules, &crates),
        [
            "api must not depend on base",
            "new has no row",
            "store must not depend on api",
            "store must not depend on skiff",
            "there is no crate gone",
            "the row of store names lost, which has none",
        ]
    );
    assert_eq!(crates["new"], BTreeSet::from(["base".to_owned()]));
}
