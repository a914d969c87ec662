//! The table of failures names tests that are there.

use std::path::Path;

#[test]
fn every_row_of_the_table_of_failures_names_a_test_that_is_there() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs");
    let table = std::fs::read_to_string(docs.join("failures.md")).unwrap();
    let mut links = 0;
    for (n, line) in (1..).zip(table.lines()) {
        if line.starts_with('|') && !line.contains("---") && !line.contains("shown by") {
            assert!(line.contains("](../"), "line {n} names no test");
        }
        for link in line.split("[`").skip(1) {
            let (name, rest) = link.split_once("`](").unwrap();
            let file = docs.join(rest.split_once(')').unwrap().0);
            let code = std::fs::read_to_string(&file)
                .unwrap_or_else(|e| panic!("line {n}: {}: {e}", file.display()));
            assert!(
                code.contains(&format!("fn {name}(")),
                "line {n}: no test {name} in {}",
                file.display()
            );
            links += 1;
        }
    }
    assert!(links > 25, "only {links} links were found");
}
