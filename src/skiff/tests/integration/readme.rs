//! The README names every setting and every command, and no others.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

/// What the rows of the README's tables begin with, below a heading.
fn rows(readme: &str, heading: &str) -> BTreeSet<String> {
    let section = readme
        .split("\n## ")
        .find(|section| section.starts_with(heading))
        .unwrap_or_else(|| panic!("the README has no section {heading}"));
    let cells = section.lines().filter_map(|line| line.strip_prefix("| `"));
    // | `server` (`SKIFF_URL`) | ..., | `skiff server`, `skiff agent` | ...
    cells
        .flat_map(|row| {
            let cell = row.split(" | ").next().unwrap_or_default();
            let names = cell.split('`').step_by(2).map(str::to_owned).collect::<Vec<_>>();
            names.into_iter().filter(|name| !name.starts_with("SKIFF_"))
        })
        .collect()
}

fn help(arguments: &[&str]) -> String {
    let output = Command::new(env!("CARGO_BIN_EXE_skiff"))
        .args(arguments)
        .arg("--help")
        .output()
        .expect("skiff runs");
    assert!(output.status.success(), "{arguments:?}");
    String::from_utf8(output.stdout).expect("text")
}

fn readme() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../README.md");
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn every_setting_is_in_the_readme() {
    let known: BTreeSet<String> = ["server", "agent"]
        .iter()
        .flat_map(|role| {
            let text = help(&[role]);
            let flags = text
                .lines()
                .filter_map(|line| line.trim_start().strip_prefix("--").map(str::to_owned));
            flags.collect::<Vec<_>>()
        })
        .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
        // Which file to read is no setting of its own.
        .filter(|name| name != "config")
        .collect();
    assert!(known.contains("node-name") && known.contains("tls-san") && known.contains("token"));
    assert_eq!(rows(&readme(), "Settings"), known);
}

#[test]
fn every_command_is_in_the_readme() {
    let text = help(&[]);
    let listed = text
        .lines()
        .skip_while(|line| *line != "Commands:")
        .skip(1)
        .take_while(|line| !line.is_empty())
        .filter_map(|line| line.strip_prefix("  ").filter(|line| !line.starts_with(' ')))
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| *name != "help")
        .map(str::to_owned);
    let known: BTreeSet<String> = listed.collect();
    let named: BTreeSet<String> = rows(&readme(), "Commands")
        .iter()
        .filter_map(|text| {
            text.strip_prefix("skiff ")?
                .split_whitespace()
                .next()
                .map(str::to_owned)
        })
        .collect();
    assert!(known.contains("server") && known.contains("uninstall"));
    assert_eq!(named, known);
}
